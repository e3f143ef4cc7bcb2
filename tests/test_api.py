"""Tests of the Python interface: sweeps from Python values, plans as data frames, and trials without Ray."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raycap
from raycap import pipeline
from raycap.analysis.checks import check_matches_plan
from raycap.spec import AdamW, ExecutionSpec, NumHeads
from raycap.spec.file import load_sweep
from tests.support.specs import GOOD

TREE = {
    "name": "good",
    "trial": {
        "profiles": {"num_profiles": 100, "names": {"first": 20, "middle": 20, "last": 40}},
        "model": {"num_layers": 2, "heads": NumHeads(num_heads=1)},
        "training": {"length": {"exposures": 5}, "optimizer": AdamW(lr=1e-2)},
    },
    "grid": {"model.hidden_size": np.array([8, 12]), "training.seed": range(3)},
}
"""The sweep `GOOD` as Python values."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_public_name_can_be_imported() -> None:
    assert set(raycap.__all__) <= set(dir(raycap))
    for name in raycap.__all__:
        assert getattr(raycap, name).__name__ == name
    with pytest.raises(AttributeError, match="unknown"):
        _ = raycap.unknown


def test_python_values_give_the_sweep_of_the_file(folder: Path) -> None:
    from_file = raycap.Sweep.from_yaml("good.yaml")
    spec = raycap.SweepSpec(
        name="good", trial=TREE["trial"], grid={"model.hidden_size": [8, 12], "training.seed": [0, 1, 2]}
    )
    for sweep in (
        raycap.Sweep.from_dict(TREE, question="What is asked?"),
        raycap.Sweep.from_dict(spec, question="What is asked?"),
    ):
        assert sweep.trials == from_file.trials
        assert sweep.folder == from_file.folder == f"{folder}/runs/good"
        record, _ = pipeline.plan_loaded(sweep._loaded, "")
        assert record.question == "What is asked?"
        (folder / "again.yaml").write_text(record.spec_yaml)
        points = [(point.trial, point.coordinates) for point in load_sweep("again.yaml").points]
        assert points == [(point.trial, point.coordinates) for point in load_sweep("good.yaml").points]
    changed = raycap.Sweep.from_dict(TREE, "trial.training.batch_size=64", "name=other")
    assert changed.spec.name == "other"
    assert changed.trials[0].spec.training.batch_size == 64


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({"name": "x", "trial": {"model": {"hiden_size": 8}}}, "trial.model.hiden_size"),
        ({"name": "x", "grid": {"model.hidden_size": [8, 7.5]}}, "trial.model.hidden_size"),
        ({"trial": {}}, "name"),
        ({"name": "x", "trial": {"model": object()}}, ""),
        ({"name": "x", "trial": {"training": {"optimizer": {"lr": float("nan")}}}}, "trial.training.optimizer.lr"),
    ],
)
def test_faults_of_python_values_name_their_field(tree: dict, field: str) -> None:
    with pytest.raises(raycap.SpecError) as caught:
        raycap.Sweep.from_dict(tree)
    assert [problem for problem in caught.value.problems if problem.startswith(f"sweep: {field}")]


def test_the_plan_is_a_frame_with_the_numbers_of_the_command(folder: Path) -> None:
    sweep = raycap.Sweep.from_yaml("good.yaml")
    plan = sweep.plan()
    assert list(plan)[:6] == ["trial_id", "label", "state", "reason", "model.hidden_size", "training.seed"]
    assert plan["trial_id"].to_list() == [trial.trial_id for trial in sweep.trials]
    assert plan["num_params"].to_list() == [trial.parameters.total for trial in sweep.trials]
    assert plan["dataset_bits"].to_list() == [trial.dataset_bits["enumerate"] for trial in sweep.trials]
    assert (plan["demanded_bits_per_param"] * plan["num_params"]).to_list() == pytest.approx(plan["dataset_bits"])
    assert pd.api.types.is_integer_dtype(plan["model.hidden_size"])
    assert set(plan["state"]) == {"new"}


def test_a_trial_without_ray_leaves_the_files_of_a_sweep(folder: Path) -> None:
    sweep = raycap.Sweep.from_dict(
        TREE | {"execution": ExecutionSpec(replicas=2)}, "grid.training.seed=[0]", "grid.model.hidden_size=[8]"
    )
    (planned,) = sweep.trials
    evaluations = []
    result = raycap.run_trial(planned.spec, storage="runs", report=evaluations.append)
    assert result.trial_id == planned.trial_id
    assert [each.step for each in evaluations] == [each.step for each in result.evaluations]
    check_matches_plan(result, planned)
    files = {path.name for path in (folder / "runs/trials" / planned.trial_id).rglob("*") if path.is_file()}
    assert {"result.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.startswith("checkpoint")]
    assert sweep.plan()["state"].to_list() == ["finished"]
    assert raycap.run_trial(planned.spec, storage="runs") == result  # read, not trained
    unstored = raycap.run_trial(json.loads(planned.spec.model_dump_json()))
    assert [each.losses for each in unstored.evaluations] == [each.losses for each in result.evaluations]
    with pytest.raises(raycap.SpecError, match=r"trial\.model\.hidden_size"):
        raycap.run_trial({"model": {"hidden_size": 9}})
    with pytest.raises(raycap.SpecError, match="good"):  # the sweep itself has not run
        sweep.report()
