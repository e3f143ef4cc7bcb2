"""Tests of stored records with absurd values: they move no law, and stop neither the report nor the status."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from raycap.analysis.stored import analyse_stored, read_stored
from raycap.analysis.summary import summary
from raycap.cli import app
from raycap.commands.arguments import open_sweep
from raycap.plan.inventory import inventory
from raycap.results import EarlierTrials, Failure, SweepRecord
from raycap.spec.document import SpecError
from raycap.storage import Storage, failure_path, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.lock import locked
from raycap.storage.progress import Event, ProgressFile
from raycap.storage.sweep_folder import SweepFolder
from raycap.terminal.status import read_status
from tests.support import planted
from tests.support.mutations import mutations


def stored_sweep(folder: Path, seeds: tuple[int, ...] = (0, 1)) -> tuple[SweepRecord, Storage]:
    """Store a sweep of finished trials and one failed trial, six in all with two seeds, under runs/ of a folder."""
    record = planted.sweep([10, 14, 18], seeds=seeds, name="grid")
    storage = Storage.at(f"{folder}/runs")
    storage.write("grid/sweep.json", record.model_dump_json())
    storage.write("grid/run.json", planted.RUN.model_dump_json())
    *finished, failed = record.trials
    results = planted.results(record, 1.8)
    for trial in finished:
        storage.write(result_path(trial.trial_id), with_checksum(results[trial.trial_id].model_dump_json()))
    failure = Failure(trial_id=failed.trial_id, cause="OSError: gone", traceback="", step=3)
    storage.write(failure_path(failed.trial_id), failure.model_dump_json())
    earlier = EarlierTrials(labels={"0123456789ab": "old"})
    storage.write("grid/earlier.json", earlier.model_dump_json())
    return record, storage


def raycap(*arguments: str) -> Result:
    """Run a command in this process; an error must be one that the command line prints without a traceback."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SpecError | SystemExit | OSError), done.exc_info
    return done


@pytest.mark.slow
def test_no_mutated_result_moves_a_law(tmp_path: Path) -> None:
    """A mutated result is either named as unreadable or gives the final losses that it had before."""
    record, storage = stored_sweep(tmp_path)
    trial = record.trials[0]
    path = result_path(trial.trial_id)
    raw = json.loads(storage.read(path))
    del raw["sha256"]
    before = read_stored([trial], storage).measured[trial.trial_id]
    num_unreadable = 0
    for name, mutated in mutations(raw):
        Path(storage.path(path)).write_text(with_checksum(json.dumps(mutated)))
        stored = read_stored([trial], storage)
        num_unreadable += len(stored.unreadable)
        for after in stored.measured.values():
            assert after.parameters == before.parameters, name
            assert after.losses.questions == before.losses.questions, name
            for field in ("sum_bits", "sum_squares_bits2", "num_evaluated"):
                assert np.array_equal(getattr(after.losses, field)[-1], getattr(before.losses, field)[-1]), name
        for reason in stored.unreadable.values():
            assert "\n" not in reason, name
            assert "delete it" in reason, name
    assert num_unreadable > 500


ABSURD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "num_names": lambda raw: raw["populations"][0].update(num_names=10**400),
    "num_profiles": lambda raw: raw["populations"][0].update(num_profiles=2000),
    "birth_date": lambda raw: raw["populations"][0]["attribute_entropies_bits"].update(birth_date=15.0),
    "relations": lambda raw: raw["populations"][0].update(relations=["parent", "hero"]),
    "observed": lambda raw: raw["populations"][0]["observed"].update(num_names=7),
    "parameters": lambda raw: raw["parameters"].update(mlp=1),
    "vocab_size": lambda raw: raw.update(vocab_size=raw["vocab_size"] + 1),
    "num_steps": lambda raw: raw.update(num_steps=10**9) or raw["evaluations"][-1].update(step=10**9),
    "exposures": lambda raw: raw["evaluations"][-1].update(exposures=0.0),
    "step": lambda raw: raw["evaluations"][0].update(step=10**6),
    "1,000 texts": lambda raw: [
        row.update(num_texts=999, num_evaluated=999, histogram=[])
        for evaluation in raw["evaluations"]
        for row in evaluation["losses"]["rows"][:1]
    ],
    "500 of 1,000": lambda raw: [
        row.update(num_evaluated=500) for evaluation in raw["evaluations"] for row in evaluation["losses"]["rows"][:1]
    ],
    "sum_squares_bits2": lambda raw: raw["evaluations"][-1]["losses"]["rows"][0].update(sum_squares_bits2=0.0),
    "sum_bits": lambda raw: raw["evaluations"][-1]["losses"]["rows"][0].update(sum_bits=-5.0),
    "histogram": lambda raw: raw["evaluations"][-1]["losses"]["rows"][0].update(histogram=[1, 2]),
    "no such texts": lambda raw: [
        evaluation["losses"]["rows"].append({**evaluation["losses"]["rows"][0], "population": 1})
        for evaluation in raw["evaluations"]
    ],
    "spec": lambda raw: raw["spec"]["training"].update(batch_size=3),
}


@pytest.mark.parametrize("field", ABSURD)
def test_an_absurd_result_is_named_and_left_out(tmp_path: Path, field: str) -> None:
    record, storage = stored_sweep(tmp_path)
    trial = record.trials[0]
    raw = json.loads(storage.read(result_path(trial.trial_id)))
    del raw["sha256"]
    ABSURD[field](raw)
    storage.write(result_path(trial.trial_id), with_checksum(json.dumps(raw)))
    stored = read_stored(record.trials, storage)
    assert field in stored.unreadable[trial.trial_id]
    assert len(stored.measured) == 4


@pytest.mark.slow
def test_the_report_works_without_an_absurd_result_and_names_it(tmp_path: Path) -> None:
    record, storage = stored_sweep(tmp_path)
    first = record.trials[0].trial_id
    expected = analyse_stored(record, storage).law.alpha.estimate
    raw = json.loads(storage.read(result_path(first)))
    del raw["sha256"]
    ABSURD["num_names"](raw)
    storage.write(result_path(first), with_checksum(json.dumps(raw)))
    storage.write("grid/run.json", '{"wall_seconds": NaN, "slots": 0}')
    storage.write("other/sweep.json", "[" * 10_000)
    folder = f"{tmp_path}/runs/grid"
    done = raycap("report", folder)
    assert done.exit_code == 0
    assert f"{first}/result.json cannot be read: populations.0.num_names: " in done.output
    law = json.loads((tmp_path / "runs/grid/summary.json").read_text())["laws"]["optimal"]["enumerate"]
    assert law["num_trials"] == 4
    assert law["alpha"] == pytest.approx(expected, rel=1e-3)
    html = (tmp_path / "runs/grid/report.html").read_text()
    assert "run.json, cannot be read" in html
    assert record.trials[0].label in html
    for command in (("status", folder), ("status", folder, "--json"), ("compare", folder, folder)):
        assert raycap(*command).exit_code == 0
    exported = raycap("export", first, "--storage", f"{tmp_path}/runs", "--to", f"{tmp_path}/model")
    assert isinstance(exported.exception, SpecError)
    assert "num_names" in str(exported.exception)


def test_no_mutated_record_of_a_sweep_ends_in_a_traceback(tmp_path: Path) -> None:
    """Commands on the sweep still work, or end in one line that names the file."""
    record, storage = stored_sweep(tmp_path, seeds=(0,))
    folder = f"{tmp_path}/runs/grid"
    storage.write("grid/summary.json", json.dumps(summary(analyse_stored(record, storage))))
    failure = failure_path(record.trials[-1].trial_id)
    for path in ("grid/sweep.json", "grid/run.json", "grid/earlier.json", "grid/summary.json", failure):
        whole = storage.read(path)
        raw = json.loads(whole)
        if "trials" in raw:
            raw = (
                {"trials": raw["trials"][:1]} if path.endswith("summary.json") else raw | {"trials": raw["trials"][:2]}
            )
        # Every fifth of the 12 mutations of a field: all mutations occur, and all fields have two or three.
        for name, mutated in islice(mutations(raw, max_items=1), 0, None, 5):
            Path(storage.path(path)).write_text(json.dumps(mutated))
            try:
                found, _ = open_sweep(folder)
            except SpecError as error:
                assert "\n" not in str(error), name
                assert f"{path}: " in str(error), name
                inventory(record, storage)  # as `raycap plan` and `raycap run` do
            else:
                read_status(found, storage).json()
                stored = read_stored(found.trials, storage)
                assert len(stored.measured) + len(stored.unreadable) + len(stored.failures) == len(found.trials), name
        storage.write(path, whole)


def test_no_mutated_progress_ends_in_a_traceback(tmp_path: Path) -> None:
    record, storage = stored_sweep(tmp_path, seeds=(0,))
    trial_id = record.trials[-1].trial_id
    with locked(storage, "grid"):
        progress = ProgressFile(storage, "grid")
        progress.add(Event(trial_id, "started", 1e9))
        progress._written = float("-inf")
        progress.add(Event(trial_id, "evaluated", 1e9 + 5, 3, 1.0, 5.0, 1.0, 100.0))
        path = SweepFolder(storage, "grid").path(SweepFolder.PROGRESS)
        raw = json.loads(storage.read(path))
        assert raw["trials"][trial_id]["last"]["step"] == 3
        for _, mutated in mutations(raw):
            Path(storage.path(path)).write_text(json.dumps(mutated))
            status = read_status(record, storage)
            json.loads(status.json())
