"""Export of a trial's model in the format of transformers, with a check that transformers computes the same logits."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from raycap.facts.corpus import render_texts
from raycap.learner import architectures
from raycap.learner.batches import Batch
from raycap.learner.kept_models import model_in, training_data_of
from raycap.learner.language_model import CPU, LanguageModel
from raycap.learner.transformers_model import NO_CODE
from raycap.results import TrialResult
from raycap.spec import Kind, ModelByWidth
from raycap.storage import Storage, model_folder
from raycap.storage.saved_model import CONFIG, RETRAIN, TOKENIZER_CONFIG, copy_model, differing_settings, read_settings
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import END_ID, TOKENIZER_SETTINGS

TOLERANCE = 1e-3
"""Largest accepted difference of a logit. The loss of one token then differs by at most 2 TOLERANCE / ln 2 = 0.003 bits."""
NUM_TEXTS = 256
"""Number of randomly drawn training texts of each corpus on which logits are compared."""
OTHER_VERSION = f"install another version of transformers than {transformers.__version__}, or retrain the trial"
BATCH_SIZE = 16
"""Texts per forward pass. transformers computes the logits of all tokens: 16 x 30 tokens x 262,144 words take 0.5 GB."""


class Agreement(NamedTuple):
    """Comparison of raycap's model with the exported one on some training texts of one corpus."""

    kind: Kind
    population: int
    num_texts: int
    num_right: int
    """Texts in which every measured token has the largest logit, so that greedy decoding gives the correct answer."""
    max_difference: float
    """Largest absolute difference of a logit at a measured token."""


class Exported(NamedTuple):
    """The results of `export_model` for the model card."""

    agreements: tuple[Agreement, ...]
    prompt: str
    """A training text of the last kind of question, up to its first measured token."""
    answer: str
    """The rest of that text without the end token."""
    transformers_version: str

    @property
    def max_difference(self) -> float:
        """Largest absolute difference of a logit over all texts; NaN if any logit is NaN."""
        return float(np.max([agreement.max_difference for agreement in self.agreements]))


def export_model(result: TrialResult, storage: Storage, folder: Path) -> Exported:
    """Write a trial's model and tokenizer into an empty folder, load them with transformers, and compare the logits.

    Raises ValueError if transformers has no such architecture, if the stored model is missing or damaged, if its population
    cannot be generated or loaded again, if its settings are not those that raycap writes, if transformers tokenizes texts
    differently, or if logits differ by more than TOLERANCE.
    """
    if isinstance(result.spec.model, ModelByWidth) and result.spec.model.parallel:
        raise ValueError(
            "model.parallel: transformers has no Llama whose attention and MLP read the output of one norm, so the model "
            "cannot be exported; train it with parallel: false, or load it in Python with "
            f"raycap.learner.pretrained.load_pretrained from {storage.location(model_folder(result.trial_id))}"
        )
    copy_model(storage, model_folder(result.trial_id), folder)
    data = training_data_of(result, folder)
    model = model_in(folder, result, data)
    _check_unchanged(model, folder)
    _write_settings(folder, max(composer.row_length for composer in data.composers))

    transformers.utils.logging.disable_progress_bar()
    hf_model = AutoModelForCausalLM.from_pretrained(folder, **NO_CODE, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
    corpora = [
        (composer, population)
        for composer, population in zip(data.composers, data.population_of, strict=True)
        if len(composer.trained)
    ]
    agreements = tuple(_compare(model, hf_model, tokenizer, *corpus) for corpus in corpora)
    prompt, answer = _example(corpora[-1][0], tokenizer)
    exported = Exported(agreements, prompt, answer, transformers.__version__)
    if not exported.max_difference <= TOLERANCE:  # `not <=` also refuses NaN
        raise ValueError(
            f"the logits of the exported model differ by up to {exported.max_difference:.2g} from raycap's own, more than "
            f"{TOLERANCE:g}, so the model is not exported; {OTHER_VERSION}"
        )
    return exported


def _check_unchanged(model: LanguageModel, folder: Path) -> None:
    """Raise ValueError unless the settings of the model are those that raycap writes.

    transformers reads many more settings than raycap writes, and some of them import code. So all others are refused,
    whatever they are called.
    """
    tokenizer = read_settings(folder / TOKENIZER_CONFIG)
    changed = {
        CONFIG: architectures.changed_settings(model, folder / CONFIG),
        TOKENIZER_CONFIG: differing_settings(tokenizer, TOKENIZER_SETTINGS),
    }
    for name, wrong in changed.items():
        if wrong:
            raise ValueError(
                f"{name} of the stored model is not as raycap writes it: {', '.join(wrong)} was changed; {RETRAIN}"
            )


def _write_settings(folder: Path, max_new_tokens: int) -> None:
    """Write settings with which generate() stops at the end token and left-pads batches of prompts."""
    generation = {
        "do_sample": False,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "max_new_tokens": max_new_tokens,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    config = folder / TOKENIZER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}, indent=2))


@torch.no_grad()
def _compare(model: LanguageModel, hf_model: Any, tokenizer: Any, composer: Composer, population: int) -> Agreement:
    """Compare tokens and logits on at most NUM_TEXTS training texts of a corpus.

    Raises ValueError if the tokens differ.
    """
    trained = composer.trained
    indices = np.random.default_rng(0).choice(len(trained), min(len(trained), NUM_TEXTS), replace=False)
    differences, num_right = [], 0
    for begin in range(0, len(indices), BATCH_SIZE):
        ids = trained[indices[begin : begin + BATCH_SIZE]]
        rows = composer.compose(ids, composer.row_length)
        tokens = tokenizer(render_texts(composer.corpus, ids))["input_ids"]
        if tokens != [row[:n].tolist() for row, n in zip(rows.input_ids, rows.lengths, strict=True)]:
            raise ValueError(
                f"transformers tokenizes {composer.corpus.kind} texts differently from raycap; {OTHER_VERSION}"
            )
        batch = Batch.of([rows], model.vocab_size, CPU)
        # raycap computes logits only at the A positions after which a measured token is predicted. `text` and `position`
        # are the indices of these positions in the (texts, T, V) logits of transformers.
        text, position = batch.text_of[0], batch.position_ids[0][batch.answer_nodes[0]]
        logits = model.answer_logits(batch)[0]  # (A, V)
        hf_logits = hf_model(torch.from_numpy(rows.input_ids.astype(np.int64))).logits[text, position]
        differences.append(float((logits - hf_logits).abs().max()))
        wrong = torch.zeros(len(ids), dtype=torch.bool)
        wrong[text[hf_logits.argmax(dim=1) != batch.targets[0]]] = True
        num_right += int((~wrong).sum())
    return Agreement(composer.corpus.kind, population, len(indices), num_right, float(np.max(differences)))


def _example(composer: Composer, tokenizer: Any) -> tuple[str, str]:
    """Return the prompt and the answer of the first training text."""
    rows = composer.compose(composer.trained[np.arange(1)], composer.row_length)
    tokens = rows.input_ids[0, : rows.lengths[0]].tolist()
    first = int((rows.labels[0] > 0).argmax())
    return tokenizer.decode(tokens[:first]), tokenizer.decode(tokens[first:], skip_special_tokens=True).strip()
