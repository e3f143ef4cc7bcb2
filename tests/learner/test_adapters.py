"""Adapters of frozen models: counted, trained, resumed, merged into the stored model, and credited with what they add."""

import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import raycap
from raycap.analysis.capacity import NAMES, TOTAL, capacities
from raycap.analysis.checks import UnreadableResult, check_own
from raycap.analysis.measurements import Losses
from raycap.learner import architectures
from raycap.learner.trial import TrainedTrial
from raycap.plan.sizes import computed_parameters, training_flops
from raycap.results import PlannedTrial
from raycap.spec import AnalysisSpec, Exposures, Steps
from raycap.spec.document import SpecError
from raycap.storage import Storage
from tests.support.tiny import TINY, trained, trained_with_a_pause, weights

ROOT = Path(__file__).parents[2]
RANK = 3
BASE = TINY.model_copy(update={"training": TINY.training.model_copy(update={"length": Exposures(exposures=40)})})
"""A trial that is long enough to know something about each subject."""
TRAINING = {
    "length": {"steps": 30},
    "batch_size": 32,
    "num_evaluations": 2,
    "optimizer": {"lr": 0.01, "warmup_steps": 5},
}


@cache
def trained_base() -> TrainedTrial:
    return trained(BASE)


@cache
def base() -> Path:
    """Save the model of BASE as a trial does, once for all tests, and return its folder."""
    folder = Path(mkdtemp(prefix="raycap-test-"))
    trained_base().save_model(Storage.at(str(folder)), "model")
    return folder / "model"


def sweep(seed: int = 1, **adapter: Any) -> raycap.Sweep:
    profiles = TINY.profiles.model_dump(mode="json", exclude_none=True) | {"seed": seed}
    trial = {
        "profiles": profiles,
        "model": {"kind": "pretrained", "path": str(base())},
        "adapter": {"kind": "lora", "r": RANK} | adapter,
        "training": TRAINING,
    }
    return raycap.Sweep.from_dict({"name": "adapters", "trial": trial})


def planned(seed: int = 1, **adapter: Any) -> PlannedTrial:
    (trial,) = sweep(seed, **adapter).trials
    return trial


@cache
def adapted(seed: int) -> TrainedTrial:
    """Train an adapter on people that the base does not know (seed 1), or on those that it does (seed 0)."""
    return trained(planned(seed).spec)


def test_only_the_matrices_of_the_adapter_are_parameters() -> None:
    trial, h = planned(), 16
    assert trial.parameters.attention == 2 * 4 * RANK * 2 * h  # two layers of four square matrices
    assert trial.parameters.mlp == 2 * 3 * RANK * (h + 4 * h)
    assert trial.parameters.total == trial.parameters.attention + trial.parameters.mlp
    assert trial.parameters.base == trained_base().result.parameters
    assert trial.demanded_bits_per_param("set") == trial.dataset_bits["set"] / trial.parameters.total
    assert computed_parameters(trial) == trial.parameters.total + trial.parameters.base.total
    frozen = trial.parameters.base.non_embedding
    assert training_flops(trial) == (6 * trial.parameters.total + 4 * frozen) * trial.tokens
    some = planned(targets=["q_proj", "self_attn.v_proj"])
    assert some.parameters.total == trial.parameters.attention / 2
    assert len({trial.trial_id, some.trial_id, planned(alpha=8).trial_id}) == 3


def test_an_adapter_trains_resumes_bit_equal_and_is_merged_into_the_stored_model(tmp_path: Path) -> None:
    whole = adapted(1)
    assert whole.result.parameters == planned().parameters
    first, last = whole.result.evaluations[0].losses, whole.result.final.losses
    assert last.select("one_hop").mean_bits < first.select("one_hop").mean_bits

    resumed = trained_with_a_pause(planned().spec, Storage.at(str(tmp_path / "runs")))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert [each.losses for each in resumed.result.evaluations] == [each.losses for each in whole.result.evaluations]
    assert [each.base_losses for each in resumed.result.evaluations] == [whole.result.final.base_losses] * 2

    whole.save_model(Storage.at(str(tmp_path)), "model")
    tokens = torch.arange(1, 9).repeat(2, 1)
    logits = whole.model.network(tokens).logits
    merged, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "model", base()))
    assert torch.allclose(merged(tokens).logits, logits, atol=1e-4)
    assert not torch.allclose(before(tokens).logits, logits, atol=1e-2)
    assert torch.equal(merged.get_input_embeddings().weight, before.get_input_embeddings().weight)
    loaded = architectures.load_model(planned().spec.model, tmp_path / "model")
    assert loaded.count_parameters() == trained_base().result.parameters


def bits(losses: Losses) -> dict[str, float]:
    """Final learned bits by part under the first reading."""
    found = {}
    for capacity in capacities(losses, AnalysisSpec()):
        found.setdefault(capacity.subject, float(capacity.learned_bits[-1]))
    return found


@pytest.mark.parametrize("seed", [0, 1], ids=["known people", "other people"])
def test_the_adapter_is_credited_with_the_bits_that_the_base_did_not_know(seed: int) -> None:
    result = adapted(seed).result
    check_own(result)
    known = result.model_copy(update={"spec": BASE}).evaluations[-1].base_losses
    if seed == 0:  # the losses of the base are those that it ended its own training with
        expected = trained_base().result.final.losses.select("one_hop").mean_bits
        assert known.select("one_hop").mean_bits == pytest.approx(expected, rel=1e-4)
    after, before = (
        bits(Losses.of(BASE, result.populations, [raycap.results.ModelLosses(losses=losses)]))
        for losses in (result.final.losses, known)
    )
    credited = bits(Losses.of(result.spec, result.populations, result.evaluations))
    parts = [part for part in credited if part not in (TOTAL, NAMES)]
    assert credited[TOTAL] == pytest.approx(sum(credited[part] for part in [*parts, NAMES]))
    assert credited[NAMES] == after[NAMES]
    for part in parts:
        assert credited[part] == pytest.approx(after[part] - max(0.0, before[part]))
    share_known = sum(max(0.0, before[part]) for part in parts) / sum(abs(before[part]) for part in parts)
    assert (share_known == 1) if seed == 0 else (share_known == 0)


def test_results_whose_base_is_missing_are_refused() -> None:
    result = adapted(1).result
    evaluations = tuple(each.model_copy(update={"base_losses": None}) for each in result.evaluations)
    with pytest.raises(UnreadableResult, match="base_losses"):
        check_own(result.model_copy(update={"evaluations": evaluations}))


def test_adapters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"adapter\.targets.*'query'.*q_proj"):
        _ = sweep(targets=["v_proj", "query"]).trials
    plain = {"trial": {"adapter": {"kind": "lora", "r": 2}}, "name": "plain"}
    with pytest.raises(SpecError, match=r"pretrained"):
        raycap.Sweep.from_dict(plain)


def test_the_shipped_sweep_starts_from_a_model_of_the_demo(tmp_path: Path) -> None:
    specs = ROOT / "sweeps" / "specs"
    spec = specs / "laptop" / "lora.yaml"
    (trial_id,) = re.findall(r"path: runs/trials/(\w+)/model", spec.read_text())
    (parent,) = [trial for trial in raycap.Sweep.from_yaml(specs / "grid.yaml").trials if trial.trial_id == trial_id]
    length = {"length": Steps(steps=10), "num_evaluations": 1}
    training = parent.spec.training.model_copy(update=length)
    stored = raycap.run_trial(parent.spec.model_copy(update={"training": training}), storage=str(tmp_path))
    path = f"trial.model.path={tmp_path}/trials/{stored.trial_id}/model"
    trials = raycap.Sweep.from_yaml(spec, path).trials
    assert len(trials) == 30
    assert [trial.demanded_bits_per_param("enumerate") for trial in trials] == pytest.approx([4] * 30, rel=0.05)
