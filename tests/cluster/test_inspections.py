"""Analyses of stored models on Ray."""

import time
from pathlib import Path

import pytest
from rich.console import Console

import raycap
from raycap import pipeline
from raycap.cluster.inspections import Inspections
from raycap.learner.alone import run_alone
from raycap.learner.inspections import Inspection, evaluate
from raycap.results import ModelLosses, TextLosses
from raycap.storage import model_folder
from raycap.storage.inspections import RECORD_FILE, inspection_folder, read_inspections
from raycap.storage.saved_model import WEIGHTS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

SPEC = """\
name: small
trial:
  profiles: {num_profiles: 20, num_relations: 1, names: {first: 5, middle: 5, last: 5}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 5}, batch_size: 32, num_evaluations: 1, optimizer: {lr: 0.02, warmup_steps: 5}}
grid:
  training.seed: [0, 1, 2]
"""


def test_models_are_analysed_once_and_a_damaged_model_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    sweep, storage = pipeline.prepare("spec.yaml", ())
    first, damaged, unfinished = sweep.trials
    results = [
        run_alone(trial.spec, storage, is_stored=True, device="cpu", num_threads=1, report=lambda _: None)
        for trial in (first, damaged)
    ]
    weights = Path("runs") / model_folder(damaged.trial_id) / WEIGHTS
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1])
    inspections = Inspections((Inspection("evaluate", evaluate),), all_models=False)

    def inspect() -> tuple[list[str], int]:
        done, code = pipeline.inspect_models(sweep, storage, inspections, Console(quiet=True))
        return [trial.trial_id for trial in done], code

    assert inspect() == ([first.trial_id], 1)
    record = Path("runs") / inspection_folder(first.trial_id, "evaluate", {}, 5) / RECORD_FILE
    written = record.stat().st_mtime_ns
    weights.write_bytes(intact)
    assert inspect() == ([first.trial_id, damaged.trial_id], 1)  # the third trial is not finished
    assert record.stat().st_mtime_ns == written
    for result in results:
        (stored,) = read_inspections(storage, result.trial_id, "evaluate", ModelLosses)
        assert stored.body.losses == result.final.losses
    assert not read_inspections(storage, unfinished.trial_id, "evaluate", ModelLosses)


@pytest.mark.slow
def test_a_finished_sweep_gets_the_analyses_of_its_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPEC.replace("  training.seed: [0, 1, 2]", "  training.seed: [0]")
    (tmp_path / "spec.yaml").write_text(text + "inspect: {analyses: [evaluate, losses, localise], quantise: [int4]}\n")
    monkeypatch.chdir(tmp_path)
    sweep, storage = pipeline.prepare("spec.yaml", ())
    (trial,) = sweep.trials
    run_alone(trial.spec, storage, is_stored=True, device="cpu", num_threads=1, report=lambda _: None)
    for _ in range(2):
        assert pipeline.run_spec("spec.yaml", (), Console(quiet=True), time.monotonic()) == 0
    assert len(read_inspections(storage, trial.trial_id, "evaluate", ModelLosses)) == 2
    assert len(read_inspections(storage, trial.trial_id, "losses", TextLosses)) == 1
    assert not raycap.load("runs/small").localisation.empty
    weights = Path("runs") / model_folder(trial.trial_id) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    for record in Path("runs").glob("trials/*/inspections/losses/*/record.json"):
        record.unlink()
    assert pipeline.run_spec("spec.yaml", (), Console(quiet=True), time.monotonic()) == 1
