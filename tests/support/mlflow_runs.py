"""Stores synthetic sweeps, and reads and checks their runs in MLflow."""

import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from raycap.results import SweepRecord, TrialResult
from raycap.storage import Storage, result_path
from raycap.storage.checksum import with_checksum
from tests.support import planted

STEP = "train/exposures"


def planned_sweep(
    folder: Path,
    uri: str,
    name: str = "planted",
    *,
    widths: tuple[int, ...] = (12, 14, 16),
    seeds: tuple[int, ...] = (0,),
) -> SweepRecord:
    """Return the record of a sweep with a trial for each width and seed, and with storage in a folder."""
    record = planted.sweep(list(widths), seeds=seeds, name=name)
    tracking = record.spec.tracking.model_copy(update={"uri": uri})
    spec = record.spec.model_copy(update={"storage": f"{folder}/runs", "tracking": tracking})
    return record.model_copy(update={"spec": spec})


def make_results(record: SweepRecord, num_evaluations: int = 10) -> list[TrialResult]:
    """Return results of all trials, each with `num_evaluations` evaluations."""

    def with_evaluations(result: TrialResult) -> TrialResult:
        steps = [100 * (number + 1) // num_evaluations for number in range(num_evaluations)]
        evaluations = [
            result.final.model_copy(update={"step": step, "exposures": float(step), "train_seconds": step / 10})
            for step in steps
        ]
        return result.model_copy(update={"evaluations": tuple(evaluations)})

    return [with_evaluations(result) for result in planted.results(record, 1.8).values()]


def store(record: SweepRecord, results: list[TrialResult]) -> Storage:
    """Write the files of a sweep with these results."""
    storage = Storage.at(record.spec.storage)
    storage.write(f"{record.spec.name}/sweep.json", record.model_dump_json())
    storage.write(f"{record.spec.name}/run.json", planted.RUN.model_dump_json())
    for result in results:
        storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json(indent=1)))
    return storage


def runs_of(record: SweepRecord) -> tuple[mlflow.MlflowClient, Run, dict[str, Run]]:
    """Return a client, the run of the sweep and the runs of its trials by trial id. Each trial must have one run."""
    client = mlflow.MlflowClient(record.spec.tracking.uri)
    found = client.search_runs([client.get_experiment_by_name(record.spec.tracking.experiment).experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("raycap.storage") == record.spec.storage]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    by_trial = {run.data.tags["raycap.trial_id"]: run for run in children}
    assert len(by_trial) == len(children), "a trial has two runs"
    return client, parent, by_trial


def points_of(client: mlflow.MlflowClient, run: Run) -> dict[str, list[tuple[int, float, int]]]:
    """Return all points of a run as sorted tuples (step, value, time), by metric."""
    return {
        key: sorted(
            (point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }


def assert_complete(record: SweepRecord, results: list[TrialResult], *, status: str = "FINISHED") -> None:
    """Check that every metric of every trial has each evaluation once, final metrics once, and losses their values."""
    client, _, children = runs_of(record)
    for result in results:
        run = children[result.trial_id]
        assert run.info.status == status
        assert run.data.params["model.hidden_size"] == str(result.spec.model.hidden_size)
        steps = [evaluation.step for evaluation in result.evaluations]
        for key, points in points_of(client, run).items():
            assert [step for step, _, _ in points] == ([0] if key.startswith("final/") else steps), key
        losses = [value for _, value, _ in points_of(client, run)["loss/one_hop_bits"]]
        assert losses == [pytest.approx(e.losses.select("one_hop").mean_bits) for e in result.evaluations]
        if status == "FINISHED":
            assert "final/capacity/bits_per_param" in run.data.metrics


def has_step(record: SweepRecord, result: TrialResult, step: int) -> bool:
    """Whether the run of a trial has the evaluation at a step."""
    client, _, children = runs_of(record)
    run = children[result.trial_id]
    return any(point.step == step for point in client.get_metric_history(run.info.run_id, STEP))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
