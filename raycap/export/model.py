"""A trial's model as a folder for anybody: files, settings of generate(), and how near transformers comes to raycap."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from raycap.facts.build import populations_of
from raycap.facts.corpus import render
from raycap.learner import pretrained
from raycap.learner.batches import Batch
from raycap.learner.model import CPU, Llama
from raycap.results import TrialResult
from raycap.spec import Kind, ModelByWidth
from raycap.storage import Storage, model_folder
from raycap.storage.saved_model import DIGEST_FILE, MODEL_FILES, sha256_of
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import END_ID, load_tokenizer
from raycap.tokens.training_data import TrainingData

TOLERANCE = 1e-3
"""Logits may differ by so much; a loss of one token then differs by at most 0.003 bits."""
NUM_TEXTS = 256
"""Trained texts of each corpus on which logits are compared, drawn at random."""
TEXTS_AT_ONCE = 16
"""transformers computes logits of every token: 16 texts of 30 tokens over 262,144 words take 0.5 GB."""
TOKENIZER_CONFIG = "tokenizer_config.json"


class Compared(NamedTuple):
    """What raycap's own model and the exported one made of some texts of one corpus."""

    kind: Kind
    population: int
    num_texts: int
    num_right: int
    """Texts of which the exported model finds every measured token the likeliest; greedy answers are right just there."""
    max_difference: float
    """Of logits at measured tokens, in absolute value."""


class Exported(NamedTuple):
    """A model as it was exported."""

    compared: tuple[Compared, ...]
    prompt: str
    """What stands before the first measured token of a text it was trained on, here of the last kind."""
    answer: str
    """How that text goes on, without the end token."""
    transformers_version: str

    @property
    def max_difference(self) -> float:
        """Of all logits that were compared; NaN if one was."""
        return float(np.max([compared.max_difference for compared in self.compared]))


def export_model(result: TrialResult, storage: Storage, folder: Path) -> Exported:
    """Write a trial's model and tokenizer into an empty folder, load them with transformers, and compare the logits.

    Raises ValueError where there is no model or a damaged one, where its population cannot be had again, and where
    transformers comes to other tokens, or to logits that differ by more than TOLERANCE.
    """
    _copy(result.trial_id, storage, folder)
    try:
        populations = populations_of(result.spec)
    except (ValueError, OSError) as error:
        raise ValueError(f"the people that the model was trained on cannot be asked about: {error}") from error
    if tuple(profiles.facts for profiles in populations) != result.populations:
        commit = result.provenance.git_commit
        raise ValueError(f"its spec no longer gives the people it was trained on; export it with raycap at {commit}")
    material = TrainingData.of(result.spec, populations, load_tokenizer(folder))
    _write_settings(folder, max(composer.row_length for composer in material.composers))

    assert isinstance(result.spec.model, ModelByWidth)
    ours = pretrained.load(result.spec.model, folder)
    transformers.utils.logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked = [
        (composer, population)
        for composer, population in zip(material.composers, material.population_of, strict=True)
        if len(composer.trained)
    ]
    compared = tuple(_compare(ours, theirs, tokenizer, *each) for each in asked)
    prompt, answer = _example(asked[-1][0], tokenizer)
    exported = Exported(compared, prompt, answer, transformers.__version__)
    if not exported.max_difference <= TOLERANCE:  # NaN is not either
        raise ValueError(
            f"the exported model's logits differ by up to {exported.max_difference:.2g} from raycap's own, more than "
            f"{TOLERANCE:g}; it is not exported"
        )
    return exported


def _copy(trial_id: str, storage: Storage, folder: Path) -> None:
    """The files of the stored model, as they were saved."""
    stored = model_folder(trial_id)
    if missing := {*MODEL_FILES, TOKENIZER_CONFIG, DIGEST_FILE} - set(storage.names(stored)):
        raise ValueError(f"its model is not at {storage.path(stored)}, which lacks {', '.join(sorted(missing))}")
    storage.read_folder(stored, folder)
    noted = (folder / DIGEST_FILE).read_bytes()
    (folder / DIGEST_FILE).unlink()
    if noted != sha256_of(folder).encode():
        raise ValueError(
            f"the model at {storage.path(stored)} is damaged: it is not as it was saved; delete the result.json beside "
            "it, and its sweep trains it again"
        )


def _write_settings(folder: Path, max_new_tokens: int) -> None:
    """generate() ends at the end token, and takes prompts of unequal lengths together."""
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
def _compare(ours: Llama, theirs: Any, tokenizer: Any, composer: Composer, population: int) -> Compared:
    trained = composer.trained
    places = np.random.default_rng(0).choice(len(trained), min(len(trained), NUM_TEXTS), replace=False)
    differences, num_right = [], 0
    for begin in range(0, len(places), TEXTS_AT_ONCE):
        ids = trained[places[begin : begin + TEXTS_AT_ONCE]]
        rows = composer.compose(ids, composer.row_length)
        told = tokenizer(render(composer.corpus, ids))["input_ids"]
        if told != [row[:n].tolist() for row, n in zip(rows.input_ids, rows.lengths, strict=True)]:
            raise ValueError(f"transformers cuts {composer.corpus.kind} texts into other tokens than raycap trained on")
        batch = Batch.of([rows], ours.vocab_size, CPU)
        text, before = batch.text_of[0], batch.position_ids[0][batch.answer_nodes[0]]
        own = (ours(batch) @ ours.unembedding.mT)[0]  # (A, V)
        found = theirs(torch.from_numpy(rows.input_ids.astype(np.int64))).logits[text, before]
        differences.append(float((own - found).abs().max()))
        wrong = torch.zeros(len(ids), dtype=torch.bool)
        wrong[text[found.argmax(dim=1) != batch.targets[0]]] = True
        num_right += int((~wrong).sum())
    return Compared(composer.corpus.kind, population, len(places), num_right, float(np.max(differences)))


def _example(composer: Composer, tokenizer: Any) -> tuple[str, str]:
    """Prompt and answer of the first trained text."""
    rows = composer.compose(composer.trained[np.arange(1)], composer.row_length)
    tokens = rows.input_ids[0, : rows.lengths[0]].tolist()
    first = int((rows.labels[0] > 0).argmax())
    return tokenizer.decode(tokens[:first]), tokenizer.decode(tokens[first:], skip_special_tokens=True).strip()
