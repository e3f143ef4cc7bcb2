"""Logging of a sweep as an MLflow run, and of its trials as nested runs, by operations that are idempotent.

Restarts and lost responses leave neither duplicates nor gaps. This relies on these facts about MLflow:

- Runs can be searched by tags, so they are found again instead of being created twice (runs.py).
- Metric points with equal run, key, step, value and timestamp are stored once: these fields are the primary key of the
  database's table. Each operation therefore has a fixed time.
- The points of a call of `log_batch` are written in one transaction. `STEP_METRIC` is the last point of an evaluation, so an
  evaluation whose step is in the history of this metric is complete.
- Params are immutable, and logging the same value again is allowed.

Methods of a Tracker are not thread-safe: after construction, only the thread of the outbox calls them.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mlflow.entities import Metric

from raycap.analysis.measurements import Measured
from raycap.errors import TrackingError
from raycap.results import SweepRecord
from raycap.storage import Storage
from raycap.storage.sweep_folder import SweepFolder
from raycap.tracking.client import connect, unavailable_as_tracking_error
from raycap.tracking.experiment import find_or_create_experiment, log_text
from raycap.tracking.lineage import register_model
from raycap.tracking.links import with_artifact_urls
from raycap.tracking.metrics import trial_metrics
from raycap.tracking.outbox import Operation
from raycap.tracking.problems import explain, unusable
from raycap.tracking.runs import STEP_METRIC, VERSION_TAG, SweepRuns, TrialRun

NOTE_TAG, ANSWER_TAG = "mlflow.note.content", "raycap.answer"
MAX_TAG_LENGTH = 5000
"""Characters of a tag; servers accept at least as many."""
METRICS_PER_CALL = 900
"""MLflow accepts at most 1000 metrics in one call of log_batch."""


class Tracker:
    """The runs of one sweep in MLflow.

    The constructor raises TrackingError if MLflow cannot be used. `deliver` raises TrackingError if it is unavailable, and
    other exceptions if it rejects the operation.
    """

    def __init__(self, sweep: SweepRecord, measured: Mapping[str, Measured] = MappingProxyType({})) -> None:
        """Find or create the sweep's experiment and run, and test that artifacts can be written.

        `measured` maps trial ids to results; `finish_trial` reads the result from it at the time of its delivery.
        """
        self._sweep, self._uri, self._measured = sweep, sweep.tracking_uri, measured
        self._register_models = sweep.spec.tracking.register_models
        self._planned = {trial.trial_id: trial for trial in sweep.trials}
        self._storage = Storage.at(sweep.storage)
        self.num_points = 0
        """Metric points logged so far."""
        try:
            self._client = connect(self._uri)
            experiment = find_or_create_experiment(self._client, self._uri, sweep.spec.tracking.experiment)
            self._runs = SweepRuns(self._client, experiment, sweep)
            log_text(self._client, experiment, self._runs.sweep_run_id(), "spec.yaml", sweep.spec_yaml)
        except Exception as error:  # of MLflow, SQLAlchemy, Alembic or the system
            raise unusable(self._uri, error) from error
        if self._register_models:
            self._check_registry()

    def deliver(self, operation: Operation) -> None:
        """Call the method below that the operation names."""
        with unavailable_as_tracking_error(self._uri):
            getattr(self, operation.name)(time_ms=operation.time_ms, **operation.arguments)

    def clear_cache(self) -> None:
        """Discard the cached runs, so that they are searched again: after a failure, the cache may be outdated."""
        self._runs.clear_cache()

    def status(self, trial_id: str) -> str | None:
        """Return the status of a trial's run, or None if there is no run or its model has yet to be registered."""
        child = self._runs.trial_runs().get(trial_id)
        return child.status if child and not self._lacks_model(child) else None

    def start_trial(self, trial_id: str, afresh: bool, time_ms: int) -> None:
        """Mark a trial and the sweep as running.

        A trial that starts `afresh`, without a checkpoint, gets a new run if its run has points of an earlier attempt.
        """
        child, steps = self._runs.trial_run(trial_id, time_ms)
        if time_ms <= child.ended_ms:  # the operation comes from an old file, and the trial has ended since
            return
        if afresh and any(logged_ms < time_ms for logged_ms in steps.values()):
            self._runs.delete_trial_run(trial_id)
            child, _ = self._runs.trial_run(trial_id, time_ms)
        self._client.update_run(child.run_id, status="RUNNING")
        child.status = "RUNNING"
        self._client.update_run(self._runs.sweep_run_id(), status="RUNNING")

    def log_evaluation(self, trial_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log an evaluation of a trial unless its run already has the step."""
        child, steps = self._runs.trial_run(trial_id, time_ms)
        if step not in steps:
            self._log(child.run_id, _points(metrics, step, time_ms))
            steps[step] = time_ms

    def finish_trial(self, trial_id: str, time_ms: int) -> None:
        """Log the evaluations that a trial's run lacks and its final metrics, and mark it as finished.

        Registers the trial's model if the sweep has `tracking.register_models`.
        """
        measured = self._measured.get(trial_id)
        if measured is None:  # the operation comes from an old file, and the result has been deleted since
            return
        # `time_ms` is the time of the last evaluation. Those of earlier ones follow from the training time in between.
        train_s = measured.curve.train_seconds
        times_ms = [time_ms - round(1000 * seconds) for seconds in (train_s[-1] - train_s).tolist()]
        child, steps = self._runs.trial_run(trial_id, times_ms[0])
        if child.status != "FINISHED":
            self._log_result(child, steps, measured, times_ms)
        if self._lacks_model(child):
            name = f"raycap-{self._sweep.spec.name}"
            version = register_model(self._client, self._storage, trial_id, child.run_id, name)
            self._client.set_tag(child.run_id, VERSION_TAG, version)
            child.is_registered = True

    def _lacks_model(self, child: TrialRun) -> bool:
        return self._register_models and child.status == "FINISHED" and not child.is_registered

    def _log_result(self, child: TrialRun, steps: dict[int, int], measured: Measured, times_ms: list[int]) -> None:
        analysis, time_ms = self._sweep.spec.analysis, times_ms[-1]
        evaluations = trial_metrics(self._planned[measured.trial_id], analysis, measured.curve, measured.losses)
        points: list[Metric] = []
        for step, at_ms, metrics in zip(measured.curve.step.tolist(), times_ms, evaluations, strict=True):
            if step not in steps:  # if logging fails, the outbox discards these entries with the cache
                points += _points(metrics, step, at_ms)
                steps[step] = at_ms
        final = {f"final/{name}": value for name, value in evaluations[-1].items()}
        self._log(child.run_id, points + _points(final, 0, time_ms))
        self._end(child, "FINISHED", time_ms)

    def fail_trial(self, trial_id: str, cause: str, time_ms: int) -> None:
        """Mark a trial as failed, with the cause as the description of its run."""
        child, _ = self._runs.trial_run(trial_id, time_ms)
        if time_ms > child.ended_ms:  # otherwise the operation comes from an old file
            self._client.set_tag(child.run_id, NOTE_TAG, cause[:MAX_TAG_LENGTH])
            self._end(child, "FAILED", time_ms)

    def log_sweep(
        self,
        num_finished: int,
        metrics: Mapping[str, float],
        answer: str,
        description: str,
        files: list[str],
        time_ms: int,
    ) -> None:
        """Update the sweep's run: metrics that have changed, the answer as a tag, the description, and artifacts.

        `num_finished`, the number of finished trials, is the step of the metrics. `files` are names in the sweep's folder,
        among them the images of the description; their present content is logged.
        """
        parent_id = self._runs.sweep_run_id()
        before = self._client.get_run(parent_id).data.metrics
        changed = {key: value for key, value in metrics.items() if before.get(key) != value}
        self._log(parent_id, _points(changed, num_finished, time_ms))
        self._client.set_tag(parent_id, ANSWER_TAG, answer[:MAX_TAG_LENGTH])
        self._client.set_tag(parent_id, NOTE_TAG, with_artifact_urls(description, parent_id))
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            for file in files:
                (Path(folder) / file).write_bytes(SweepFolder(self._storage, self._sweep.spec.name).read(file))
            self._client.log_artifacts(parent_id, folder)

    def close(self, status: str, time_ms: int) -> None:
        """Mark the sweep as FINISHED, FAILED or KILLED, and trials that are still running as KILLED."""
        self.clear_cache()  # a creation whose response was lost may have succeeded later
        for child in self._runs.trial_runs().values():
            if child.status == "RUNNING":
                self._end(child, "KILLED", time_ms)
        parent_id = self._runs.sweep_run_id()
        if self._client.get_run(parent_id).info.status != status:
            self._client.set_terminated(parent_id, status, time_ms)

    def _check_registry(self) -> None:
        """Raise TrackingError if models cannot be registered."""
        try:
            self._client.search_registered_models(max_results=1)
        except Exception as error:
            registry = os.environ.get("MLFLOW_REGISTRY_URI") or self._uri
            problem, _ = explain(registry, error)
            raise TrackingError(
                f"tracking.register_models: the registry at {registry} cannot be used: {problem}; set or unset "
                "MLFLOW_REGISTRY_URI, or set tracking.register_models: false"
            ) from error

    def _end(self, child: TrialRun, status: str, time_ms: int) -> None:
        self._client.set_terminated(child.run_id, status, time_ms)
        child.status, child.ended_ms = status, time_ms

    def _log(self, run_id: str, points: list[Metric]) -> None:
        for begin in range(0, len(points), METRICS_PER_CALL):
            batch = points[begin : begin + METRICS_PER_CALL]
            self._client.log_batch(run_id, metrics=batch)
            self.num_points += len(batch)


def _points(metrics: Mapping[str, float], step: int, time_ms: int) -> list[Metric]:
    """Return metrics at one step as points, with `STEP_METRIC` last."""
    ordered = sorted(metrics.items(), key=lambda item: item[0] == STEP_METRIC)
    return [Metric(name, float(value), time_ms, step) for name, value in ordered]
