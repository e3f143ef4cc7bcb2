"""Labels are unique, readable, and accepted by --trials; the values of the grid can be grouped by."""

from pathlib import Path

import pytest

import raycap
from raycap import pipeline
from raycap.plan.expand import expand
from raycap.plan.lookup import lookup_trials
from raycap.results import PlannedTrial, RunRecord
from raycap.spec.file import load_sweep
from raycap.storage.sweep_folder import SweepFolder
from tests.support.loaded import people, write

SPEC = """\
# What are trials called?
name: labels
trial:
  profiles: PROFILES
  model: {num_layers: 1, hidden_size: 8, heads: {num_heads: 1}}
  training: {length: {steps: 5}, batch_size: 8, num_evaluations: 1}
grid: GRID
"""
LONG = "x" * 60
GRIDS = {
    "sections": "{training.length: [{exposures: 5}, {steps: 5}], training.optimizer: [{kind: adamw, lr: 0.01}, "
    "{kind: schedule_free, lr: 0.01}]}",
    "floats": "{training.optimizer.lr: [0.1, 0.10000000000000002, 1e-5, 1.0000000001e-5]}",
    "lists": "{training.optimizer.betas: [[0.9, 0.99], [0.9, 0.999], [0.99, 0.9]], questions.hops: [[1], [2], [1, 2]]}",
    "null and section": "{training.stop: [null, {window_exposures: 1, min_improvement: 0.1}], "
    "training.length: [{exposures: 5}], training.optimizer: [{kind: schedule_free}]}",
    "paths": "{profiles.source: [disk], profiles.path: ['a,b.parquet', 'a b.parquet', a=b.parquet, "
    f"{LONG}1.parquet, {LONG}2.parquet]}}",
    "same leaf": "{profiles.seed: [1, 2], training.order_seed: [1, 2], questions.held_out.seed: [1, 2]}",
    "curricula": "{questions.hops: [[1, 2]], training.curriculum: [[], [{weights: [1, 0], until: {steps: 1}}], "
    "[{weights: [1, 0], until: {steps: 2}}]]}",
}


@pytest.fixture
def trials(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedTrial]:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a,b", "a b", "a=b", f"{LONG}1", f"{LONG}2")):
        write(Path(f"{name}.parquet"), people(40, employer=[f"Employer {number}", "Other"] * 20))
    profiles = "{}" if request.param == "paths" else "{num_profiles: 40, names: {first: 10, middle: 10, last: 20}}"
    Path("labels.yaml").write_text(SPEC.replace("GRID", GRIDS[request.param]).replace("PROFILES", profiles))
    return expand(load_sweep("labels.yaml"))


@pytest.mark.parametrize("trials", GRIDS, indirect=True)
def test_labels_are_unique_and_select_their_trials(trials: list[PlannedTrial]) -> None:
    assert len(trials) > 1
    assert len({trial.label for trial in trials}) == len(trials)
    for trial in trials:
        assert lookup_trials(trials, trial.label) == [trial]
        assert trial.label.isascii()
        assert trial.label.isprintable()
        assert not set(trial.label) & set(" ,[]{}'\"")
        assert len(trial.label) < 150
    assert lookup_trials(trials, ",".join(trial.label for trial in trials)) == trials


@pytest.mark.parametrize("trials", ["sections", "lists", "null and section"], indirect=True)
def test_frames_can_be_grouped_by_every_axis(trials: list[PlannedTrial]) -> None:
    sweep, storage = pipeline.prepare("labels.yaml", ())
    folder = SweepFolder(storage, "labels")
    folder.write(SweepFolder.SWEEP, sweep.model_dump_json())
    folder.write(SweepFolder.RUN, RunRecord(wall_seconds=1, slots=1).model_dump_json())
    frame = raycap.load("runs/labels").trials
    for axis in trials[0].coordinates:
        sizes = frame.groupby(axis).size()
        assert sizes.sum() == len(frame)
        assert len(sizes) == len({str(trial.coordinates[axis]) for trial in trials})
