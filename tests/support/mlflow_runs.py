"""Stored sweeps, and what MLflow knows of them."""

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


def placed(
    folder: Path,
    uri: str,
    name: str = "planted",
    *,
    widths: tuple[int, ...] = (12, 14, 16),
    seeds: tuple[int, ...] = (0,),
) -> SweepRecord:
    """A planned sweep, of three trials if not told otherwise, with its storage and its MLflow."""
    record = planted.sweep(list(widths), seeds=seeds, name=name)
    tracking = record.spec.tracking.model_copy(update={"uri": uri})
    spec = record.spec.model_copy(update={"storage": f"{folder}/runs", "tracking": tracking})
    return record.model_copy(update={"spec": spec})


def trained(record: SweepRecord, num_evaluations: int = 10) -> list[TrialResult]:
    """Results with so many evaluations each."""

    def with_more(result: TrialResult) -> TrialResult:
        steps = [100 * (number + 1) // num_evaluations for number in range(num_evaluations)]
        more = [
            result.final.model_copy(update={"step": step, "exposures": float(step), "train_seconds": step / 10})
            for step in steps
        ]
        return result.model_copy(update={"evaluations": tuple(more)})

    return [with_more(result) for result in planted.results(record, 1.8).values()]


def store(record: SweepRecord, results: list[TrialResult]) -> Storage:
    """Write what a sweep leaves behind that has had these results."""
    storage = Storage.at(record.spec.storage)
    storage.write(f"{record.spec.name}/sweep.json", record.model_dump_json())
    storage.write(f"{record.spec.name}/run.json", planted.RUN.model_dump_json())
    for result in results:
        storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json(indent=1)))
    return storage


def runs_of(record: SweepRecord) -> tuple[mlflow.MlflowClient, Run, dict[str, Run]]:
    """MLflow, the sweep's run, and those of its trials, of which each has one."""
    client = mlflow.MlflowClient(record.spec.tracking.uri)
    found = client.search_runs([client.get_experiment_by_name(record.spec.tracking.experiment).experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("raycap.storage") == record.spec.storage]
    inside = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    by_trial = {run.data.tags["raycap.trial_id"]: run for run in inside}
    assert len(by_trial) == len(inside), "a trial has two runs"
    return client, parent, by_trial


def points_of(client: mlflow.MlflowClient, run: Run) -> dict[str, list[tuple[int, float, int]]]:
    """Every point of a run, as (step, value, time), by metric and in order."""
    return {
        key: sorted(
            (point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }


def assert_complete(record: SweepRecord, results: list[TrialResult], *, status: str = "FINISHED") -> None:
    """Every metric of every trial has each of its evaluations once, final ones once, and the loss is the one measured."""
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
    client, _, children = runs_of(record)
    run = children[result.trial_id]
    return any(point.step == step for point in client.get_metric_history(run.info.run_id, STEP))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
