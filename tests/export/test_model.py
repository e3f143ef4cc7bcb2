"""Exported models: equal logits under every parametrisation, and cards with the numbers of the result."""

import contextlib
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from raycap.analysis.capacity import capacities, lost_share
from raycap.analysis.measurements import Losses
from raycap.export.model import export_model
from raycap.export.model_card import EVERY_READING, model_card
from raycap.learner.trial import TrainedTrial
from raycap.results import TrialResult
from raycap.spec import (
    AdamW,
    Fill,
    Kind,
    ParentTrial,
    Steps,
    TrainingSpec,
    TrialSpec,
)
from raycap.storage import Storage, model_folder
from raycap.storage.saved_model import CONFIG, DIGEST_FILE, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS, digests
from tests.support.exported import MEMORIZED, MUP, PEOPLE, memorized
from tests.support.loaded import people, targets, write
from tests.support.tiny import trained

SHORT = TrainingSpec(length=Steps(steps=12), batch_size=16, num_evaluations=3, optimizer=AdamW(lr=0.01, warmup_steps=2))


def stored(trial: TrainedTrial, folder: Path) -> tuple[TrialResult, Storage]:
    storage = Storage.at(str(folder / "runs"))
    trial.save_model(storage, model_folder(trial.result.trial_id))
    return trial.result, storage


def exported(trial: TrainedTrial, folder: Path) -> tuple[Any, str]:
    """Export the model to folder/out; return the outcome and the card."""
    (folder / "out").mkdir()
    outcome = export_model(*stored(trial, folder), folder / "out")
    return outcome, model_card(trial.result, outcome, name=str(folder / "out"), questions={"grid": "How many bits?"})


VARIANTS: dict[str, dict[str, Any]] = {
    "muP, untied, narrow heads": {
        "model": {"hidden_size": 48, "num_layers": 2, "heads": {"head_size": 8}, "parametrization": MUP.model_dump()}
    },
    "two hops, spelled out, held out, BPE": {
        "questions": {"hops": [1, 2], "chain_of_thought": True, "held_out": {"relations": 0.5}},
        "tokenizer": {"kind": "bpe", "vocab_size": 400},
        "model": {"hidden_size": 16, "num_layers": 1, "heads": {"num_heads": 2}},
    },
    "biographies, looped, without gates": {
        "questions": {"kind": "biographies", "per_person": 2},
        "model": {
            "hidden_size": 16,
            "num_layers": 1,
            "loop": {"times": 2},
            "mlp": {"gated": False, "activation": "gelu"},
        },
    },
    "strings": {"profiles": {"source": "strings", "num_strings": 20}, "questions": {"kind": "names"}},
    "pairs, attention only": {
        "profiles": {"source": "pairs", "num_keys": 20},
        "model": {"hidden_size": 16, "num_layers": 1, "mlp": None},
    },
    "transformers": {
        "model": {
            "kind": "transformers",
            "config": {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 1, "n_head": 2, "n_positions": 32},
        }
    },
}


@pytest.mark.parametrize("arm", VARIANTS)
def test_logits_agree_and_cards_are_complete(arm: str, tmp_path: Path) -> None:
    raw = {
        "profiles": PEOPLE.model_dump(mode="json"),
        "model": {"hidden_size": 16, "num_layers": 1},
        "training": SHORT.model_dump(mode="json"),
    }
    trial = trained(TrialSpec.model_validate_json(json.dumps(raw | VARIANTS[arm])))
    outcome, card = exported(trial, tmp_path)
    assert outcome.max_difference < 1e-5
    assert [each.kind for each in outcome.agreements] == list(trial.result.spec.questions.kinds)
    check_card(card, trial.result, outcome)


def test_loaded_people_with_odd_values_are_exported_and_read_by_their_own_bits(tmp_path: Path) -> None:
    """Values that differ in white space or Unicode form, a constant column, and a relation that leads to one person."""
    odd = ["Acme", "Acme ", "Ac\u00a0me", "Caf\u00e9", "Cafe\u0301", "\u202eAcme", "acme", "A; B"]
    table = people(16, employer=odd * 2, university=["Alpha"] * 16, parent=targets([3] * 16))
    raw = {
        "profiles": {"source": "disk", "path": write(tmp_path / "people.parquet", table)},
        "questions": {"hops": [1, 2], "chain_of_thought": True},
        "model": {"hidden_size": 16, "num_layers": 1},
        "training": SHORT.model_dump(mode="json"),
    }
    trial = trained(TrialSpec.model_validate_json(json.dumps(raw)))
    outcome, _ = exported(trial, tmp_path)
    assert outcome.max_difference < 1e-5
    result = trial.result
    losses = Losses.of(result.spec, result.populations, result.evaluations)
    bits = {each.subject: each for each in capacities(losses, EVERY_READING) if each.kind is Kind.ONE_HOP}
    assert bits["employer"].dataset_bits == pytest.approx(16 * 3)
    for subject in ("university", "parent"):
        assert bits[subject].dataset_bits == 0
        assert bits[subject].learned_bits.tolist() == [0] * len(result.evaluations)
    assert all(np.isfinite(each.learned_bits).all() for each in capacities(losses, EVERY_READING))
    assert np.isfinite(lost_share(losses)).all()


def test_a_fill_model_is_compared_on_both_populations(tmp_path: Path) -> None:
    parent, storage = stored(memorized(), tmp_path)
    second = PEOPLE.model_copy(update={"num_profiles": 10, "seed": 1})
    fill = Fill(parent=ParentTrial(trial_id=parent.trial_id), profiles=second)
    trial = trained(MEMORIZED.model_copy(update={"training": SHORT, "fill": fill}), storage=storage)
    outcome, card = exported(trial, tmp_path)
    assert outcome.max_difference < 1e-4
    assert [(each.population, each.num_texts) for each in outcome.agreements] == [(0, 120), (1, 60)]
    assert "# 30 synthetic people in 53,696 parameters" in card
    check_card(card, trial.result, outcome)


def check_card(card: str, result: TrialResult, outcome: Any) -> None:
    """Check the front matter of the card, and its numbers against the result."""
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert "raycap" in data.tags
    assert f"at most **{outcome.max_difference:.1e}**" in card
    assert "> How many bits?" in card
    losses = Losses.of(result.spec, result.populations, result.evaluations)
    all_totals = [each for each in capacities(losses, EVERY_READING) if each.subject == "total"]
    totals = [each for each in all_totals if each.is_headline(losses, EVERY_READING)]
    assert len(totals) == 9
    different = {(each.reading.selection, each.dataset_bits, each.learned_bits[-1]): each for each in reversed(totals)}
    assert len(re.findall(r"^\| .* names \|", card, re.MULTILINE)) == len(different) >= 3
    for total in different.values():
        line = re.search(rf"\| {total.reading} \|(.*)", card)[1]
        assert f"| {total.learned_bits[-1]:,.0f}" in line
        per_param = total.learned_bits[-1] / result.parameters.total
        assert f"| {f'{per_param:.3f}' if per_param > 0 else '–'} |" in line
    for row in result.final.losses.rows:
        if row.trained and len([r for r in result.final.losses.rows if r.key[:3] == row.key[:3]]) == 1:
            assert re.search(rf"\| {row.kind}: {row.subject}.* \| {row.mean_bits:.3f} \|", card)
    assert f"| all | {result.parameters.total:,} |" in card
    assert f"{result.num_steps:,} steps" in card
    assert result.provenance.host not in card
    spec = YAML(typ="safe").load(card.split("```yaml\n")[1].split("```")[0])
    assert TrialSpec.model_validate_json(json.dumps(spec["trial"])).trial_id == result.trial_id


def test_the_usage_code_of_the_card_gives_the_answer(tmp_path: Path) -> None:
    outcome, card = exported(memorized(), tmp_path)
    assert outcome.max_difference < 1e-4
    assert outcome.agreements[0].num_texts == outcome.agreements[0].num_right == 120
    check_card(card, memorized().result, outcome)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(card.split("```python\n")[1].split("```")[0], {})
    assert output.getvalue() == f"{outcome.answer}\n"
    assert re.fullmatch(r"Question: What was \w+ \w+ \w+'s birth date\? Answer:", outcome.prompt)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_model_is_refused_if_damaged_or_if_logits_differ(tmp_path: Path) -> None:
    result, storage = stored(memorized(), tmp_path)
    model = Path(storage.path(model_folder(result.trial_id)))
    weights = load_file(model / WEIGHTS)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="is damaged"):
        export_model(result, storage, tmp_path / "out")
    (model / DIGEST_FILE).write_text(digests(model))
    with pytest.raises(ValueError, match=r"0\.001"):
        export_model(result, storage, tmp_path / "out")


def test_parallel_blocks_are_refused_with_the_field(tmp_path: Path) -> None:
    result = memorized().result
    model = result.spec.model.model_copy(update={"parallel": True})
    changed = result.model_copy(update={"spec": result.spec.model_copy(update={"model": model})})
    with pytest.raises(ValueError, match=r"model\.parallel"):
        export_model(changed, Storage.at(str(tmp_path)), tmp_path / "out")


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    """Return a function that changes entries of a JSON file of a model."""

    def change(model: Path) -> None:
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | values))

    return change


def put(name: str, content: bytes) -> Callable[[Path], None]:
    """Return a function that replaces a file of a model."""
    return lambda model: (model / name).write_bytes(content) and None


def other_shape(model: Path) -> None:
    """Replace the embedding of a model by a shorter one."""
    weights = load_file(model / WEIGHTS)
    save_file(
        weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:-1].clone()}, model / WEIGHTS
    )


HOSTILE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "code of a tokenizer": (edit(TOKENIZER_CONFIG, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
                            (TOKENIZER_CONFIG, "auto_map")),
    "code of a model": (edit(CONFIG, model_type="evil", auto_map={"AutoConfig": "evil.Config"}), (CONFIG, "auto_map")),
    "another architecture": (edit(CONFIG, model_type="evil"), ("model_type", "evil", "llama")),
    "a kernel of the hub": (edit(CONFIG, _attn_implementation="evil/kernel"), (CONFIG, "_attn_implementation")),
    "a quantization": (edit(CONFIG, quantization_config={"quant_method": "hqq"}), (CONFIG, "quantization_config")),
    "a template": (edit(TOKENIZER_CONFIG, chat_template="{{ 1 }}"), (TOKENIZER_CONFIG, "chat_template")),
    "another tokenizer class": (edit(TOKENIZER_CONFIG, tokenizer_class="GPT2"), (TOKENIZER_CONFIG, "tokenizer_class")),
    "another data type": (edit(CONFIG, dtype="bfloat16"), (CONFIG, "dtype")),
    "a vocabulary without weights": (edit(CONFIG, vocab_size=10**12), (WEIGHTS, "embed_tokens", str(10**12))),
    "a vocabulary that is no number": (edit(CONFIG, vocab_size="many"), (CONFIG, "vocab_size", "many")),
    "a vocabulary that is too small": (edit(CONFIG, vocab_size=7), (CONFIG, "vocab_size", "7")),
    "weights of another shape": (other_shape, (WEIGHTS, "embed_tokens")),
    "weights with a huge header": (put(WEIGHTS, b"\xff" * 8 + b"{}"), (WEIGHTS,)),
    "pickled weights": (put(WEIGHTS, pickle.dumps({"a": 1})), (WEIGHTS,)),
    "a deep tokenizer": (put(TOKENIZER, b"[" * 100_000), (TOKENIZER,)),
    "a tokenizer of a kind that does not exist": (put(TOKENIZER, b'{"model": {"type": "Evil"}}'), (TOKENIZER,)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_changed_model_with_matching_digests_is_refused_and_runs_no_code(case: str, tmp_path: Path) -> None:
    result, storage = stored(memorized(), tmp_path)
    model = Path(storage.path(model_folder(result.trial_id)))
    change, values = HOSTILE[case]
    change(model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (model / DIGEST_FILE).write_text(digests(model))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is checked below
        export_model(result, storage, tmp_path / "out")
    assert all(value in str(caught.value) for value in values), caught.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_its_population_or_files_is_refused(tmp_path: Path) -> None:
    result, storage = stored(memorized(), tmp_path)
    (tmp_path / "out").mkdir()
    (other,) = result.populations
    others = result.model_copy(update={"populations": (other.model_copy(update={"num_names": 7}),)})
    with pytest.raises(ValueError, match="population"):
        export_model(others, storage, tmp_path / "out")
    storage.delete(f"{model_folder(result.trial_id)}/tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        export_model(result, storage, tmp_path / "out")
