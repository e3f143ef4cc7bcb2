"""Logs a sweep as an MLflow run, and its trials as nested runs, with operations that are idempotent.

Restarts and lost responses leave neither duplicates nor gaps. This relies on these facts about MLflow:

- Runs can be searched by tags, so a run is found again by its sweep, storage and trial id instead of being created twice. A
  search returns no deleted runs.
- Metric points with equal run, key, step, value and timestamp are stored once: these fields are the primary key of the
  database's table. Each operation therefore has a fixed time.
- The points of a call of `log_batch` are written in one transaction. `STEP_METRIC` is the last point of an evaluation, so an
  evaluation whose step is in the history of this metric is complete.
- Params are immutable, and logging the same value again is allowed.

Methods of a Tracker are not thread-safe: after construction, only the thread of the outbox calls them.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mlflow.entities import Metric, Param, Run

from raycap.analysis.measurements import Measured
from raycap.errors import TrackingError
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import ModelByWidth, TrackingSpec
from raycap.storage import Storage
from raycap.storage.sweep_folder import SweepFolder
from raycap.tracking.client import connect, unavailable_as_tracking_error, unusable
from raycap.tracking.lineage import dataset_inputs, register_model
from raycap.tracking.links import VIEW_TAG, Pages, colours, shared_view, with_artifact_urls
from raycap.tracking.metrics import flat_params, trial_metrics
from raycap.tracking.outbox import Operation

SWEEP_TAG, STORAGE_TAG = "raycap.sweep", "raycap.storage"
TRIAL_TAG, VERSION_TAG = "raycap.trial_id", "raycap.model_version"
PARENT_TAG, NOTE_TAG, COLOUR_TAG = "mlflow.parentRunId", "mlflow.note.content", "mlflow.runColor"
STEP_METRIC = "train/exposures"
"""Logged last at every evaluation; its history has the steps that are complete in a run."""
METRICS_PER_CALL = 900
"""MLflow accepts at most 1000 metrics in one call of log_batch."""


@dataclass
class _TrialRun:
    """Cached state of a trial's run."""

    run_id: str
    status: str
    ended_ms: int
    """Time at which the run ended; 0 if it never has."""
    has_params: bool
    """Whether its datasets and params are logged. Datasets are logged first, so params imply both."""
    is_registered: bool
    """Whether its model has a version in the registry."""
    steps: dict[int, int] | None = None
    """Time in ms of each logged step; None until it is read from MLflow."""

    @classmethod
    def of(cls, run: Run) -> "_TrialRun":
        """Return the state of a run that MLflow has returned."""
        return cls(
            run.info.run_id,
            run.info.status,
            run.info.end_time or 0,
            has_params=bool(run.data.params),
            is_registered=VERSION_TAG in run.data.tags,
        )


class Tracker:
    """The runs of one sweep in MLflow.

    The constructor raises TrackingError if MLflow cannot be used. `deliver` raises TrackingError if it is unavailable, and
    other exceptions if it rejects the operation.
    """

    def __init__(
        self, sweep: SweepRecord, tracking: TrackingSpec, measured: Mapping[str, Measured] = MappingProxyType({})
    ) -> None:
        """`measured` maps trial ids to results; `finish_trial` reads the result from it at the time of its delivery."""
        self._sweep, self._uri, self._measured = sweep, tracking.uri, measured
        self._register_models = tracking.register_models
        self._planned = {trial.trial_id: trial for trial in sweep.trials}
        self._colours = colours(_width(trial) for trial in sweep.trials)
        self._storage = Storage.at(sweep.spec.storage)
        self.num_points = 0
        """Metric points logged so far."""
        self.clear_cache()
        try:
            self._client = connect(self._uri)
            self.experiment_id = self._experiment(tracking.experiment)
            self._runs()  # creates the sweep's run if it does not exist
        except Exception as error:  # of MLflow, SQLAlchemy, Alembic or the system
            raise unusable(self._uri, error) from error

    def deliver(self, operation: Operation) -> None:
        """Call the method below that the operation names."""
        with unavailable_as_tracking_error(self._uri):
            getattr(self, operation.name)(time_ms=operation.time_ms, **operation.arguments)

    def clear_cache(self) -> None:
        """Discard the cached runs, so that they are searched again: after a failure, the cache may be outdated."""
        self._parent_id: str | None = None
        self._trial_runs: dict[str, _TrialRun] | None = None

    def status(self, trial_id: str) -> str | None:
        """Return the status of a trial's run, or None if there is no run or its model has yet to be registered."""
        child = self._runs().get(trial_id)
        return child.status if child and not self._lacks_model(child) else None

    def start_trial(self, trial_id: str, afresh: bool, time_ms: int) -> None:
        """Mark a trial and the sweep as running.

        A trial that starts `afresh`, without a checkpoint, gets a new run if its run has points of an earlier attempt.
        """
        child, steps = self._child(trial_id, time_ms)
        if time_ms <= child.ended_ms:  # an operation from an old file: the trial has ended since
            return
        if afresh and any(logged_ms < time_ms for logged_ms in steps.values()):
            self._client.delete_run(child.run_id)
            del self._runs()[trial_id]
            child, _ = self._child(trial_id, time_ms)
        self._client.update_run(child.run_id, status="RUNNING")
        child.status = "RUNNING"
        self._client.update_run(self._parent(), status="RUNNING")

    def log_evaluation(self, trial_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log an evaluation of a trial unless its run already has the step."""
        child, steps = self._child(trial_id, time_ms)
        if step not in steps:
            self._log(child.run_id, _points(metrics, step, time_ms))
            steps[step] = time_ms

    def finish_trial(self, trial_id: str, time_ms: int) -> None:
        """Log the evaluations that a trial's run lacks and its final metrics, and mark it as finished.

        Registers the trial's model if the sweep has `tracking.register_models`.
        """
        measured = self._measured.get(trial_id)
        if measured is None:  # an operation from an old file: the result is gone
            return
        # `time_ms` is the time of the last evaluation. Those of earlier ones follow from the training time in between.
        train_s = measured.curve.train_seconds
        times_ms = [time_ms - round(1000 * seconds) for seconds in (train_s[-1] - train_s).tolist()]
        child, steps = self._child(trial_id, times_ms[0])
        if child.status != "FINISHED":
            self._log_result(child, steps, measured, times_ms)
        if self._lacks_model(child):
            name = f"raycap-{self._sweep.spec.name}"
            version = register_model(self._client, self._storage, trial_id, child.run_id, name)
            self._client.set_tag(child.run_id, VERSION_TAG, version)
            child.is_registered = True

    def _lacks_model(self, child: _TrialRun) -> bool:
        return self._register_models and child.status == "FINISHED" and not child.is_registered

    def _log_result(self, child: _TrialRun, steps: dict[int, int], measured: Measured, times_ms: list[int]) -> None:
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
        child, _ = self._child(trial_id, time_ms)
        if time_ms > child.ended_ms:  # otherwise an operation from an old file
            self._client.set_tag(child.run_id, NOTE_TAG, cause[:5000])
            self._end(child, "FAILED", time_ms)

    def log_sweep(
        self, num_finished: int, metrics: Mapping[str, float], description: str, files: list[str], time_ms: int
    ) -> None:
        """Update the sweep's run: metrics that have changed, description, and artifacts.

        `num_finished`, the number of finished trials, is the step of the metrics. `files` are names in the sweep's folder,
        among them the images of the description; their present content is logged.
        """
        parent_id = self._parent()
        before = self._client.get_run(parent_id).data.metrics
        changed = {key: value for key, value in metrics.items() if before.get(key) != value}
        self._log(parent_id, _points(changed, num_finished, time_ms))
        self._client.set_tag(parent_id, NOTE_TAG, with_artifact_urls(description, parent_id))
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            for file in files:
                (Path(folder) / file).write_bytes(SweepFolder(self._storage, self._sweep.spec.name).read(file))
            (Path(folder) / "spec.yaml").write_text(self._sweep.spec_yaml, encoding="utf-8")
            self._client.log_artifacts(parent_id, folder)

    def close(self, status: str, time_ms: int) -> None:
        """Mark the sweep as FINISHED, FAILED or KILLED, and trials that are still running as KILLED."""
        self.clear_cache()  # a creation whose response was lost may have succeeded later
        for child in self._runs().values():
            if child.status == "RUNNING":
                self._end(child, "KILLED", time_ms)
        parent_id = self._parent()
        if self._client.get_run(parent_id).info.status != status:
            self._client.set_terminated(parent_id, status, time_ms)

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment, which is created if it does not exist."""
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return existing.experiment_id
        if self._uri.startswith("sqlite:///"):
            # By default, artifacts would be in ./mlruns of the process's working directory. Put them next to the database.
            folder = Path(self._uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            return self._client.create_experiment(name, artifact_location=folder.as_uri())
        return self._client.create_experiment(name)

    def _parent(self) -> str:
        """Return the id of the sweep's run, which is created if it does not exist, and set its shared view."""
        if self._parent_id is None:
            name, storage = self._sweep.spec.name, self._sweep.spec.storage
            runs = _of_storage(self._search(_sweep_filter(name)), storage)
            tags = {SWEEP_TAG: name, STORAGE_TAG: storage}
            run = self._one_of(runs) if runs else self._client.create_run(self.experiment_id, run_name=name, tags=tags)
            parent_id = run.info.run_id
            view = shared_view(self._sweep, parent_id)
            self._client.set_experiment_tag(self.experiment_id, f"{VIEW_TAG}{parent_id}", view)
            self._parent_id = parent_id
        return self._parent_id

    def _runs(self) -> dict[str, _TrialRun]:
        """Return the runs of trials by trial id. They are searched once and then cached."""
        if self._trial_runs is None:
            by_trial: dict[str, list[Run]] = defaultdict(list)
            for run in self._search(f"tags.`{PARENT_TAG}` = '{self._parent()}'"):
                by_trial[run.data.tags.get(TRIAL_TAG, "")].append(run)
            by_trial.pop("", None)  # runs that raycap did not create
            self._trial_runs = {trial_id: _TrialRun.of(self._one_of(runs)) for trial_id, runs in by_trial.items()}
        return self._trial_runs

    def _child(self, trial_id: str, start_ms: int) -> tuple[_TrialRun, dict[int, int]]:
        """Return the run of a trial, which is created if it does not exist, and its logged steps with their times."""
        children, planned = self._runs(), self._planned[trial_id]
        if trial_id not in children:
            tags = {TRIAL_TAG: trial_id, PARENT_TAG: self._parent(), COLOUR_TAG: self._colours[_width(planned)]}
            run = self._client.create_run(self.experiment_id, start_ms, tags, planned.label)
            children[trial_id] = _TrialRun.of(run)
        child = children[trial_id]
        if not child.has_params:
            self._client.log_inputs(child.run_id, dataset_inputs(planned))
            params = [Param(key, str(value)[:6000]) for key, value in flat_params(planned).items()]
            self._client.log_batch(child.run_id, params=params)
            child.has_params = True
        if child.steps is None:
            history = self._client.get_metric_history(child.run_id, STEP_METRIC)
            child.steps = {point.step: point.timestamp for point in history}
        return child, child.steps

    def _search(self, filter_string: str) -> list[Run]:
        """Return all runs of the experiment that match a filter, from all pages of the response."""
        runs: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self.experiment_id], filter_string, max_results=1000, page_token=token)
            runs += page
            token = page.token or None
        return runs

    def _one_of(self, runs: list[Run]) -> Run:
        """Return the run that has progressed furthest and delete the others.

        Several runs of one trial or sweep exist if the response to a creation was lost and the creation was repeated.
        """
        *others, last = sorted(
            runs,
            key=lambda run: (run.info.status == "FINISHED", run.data.metrics.get(STEP_METRIC, 0), run.info.start_time),
        )
        for other in others:
            self._client.delete_run(other.info.run_id)
        return last

    def _end(self, child: _TrialRun, status: str, time_ms: int) -> None:
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


def _width(planned: PlannedTrial) -> int:
    assert isinstance(planned.spec.model, ModelByWidth)
    return planned.spec.model.hidden_size


def _sweep_filter(name: str) -> str:
    return f"tags.`{SWEEP_TAG}` = '{name}'"


def _of_storage(runs: Iterable[Run], storage: str) -> list[Run]:
    """Return the runs of sweeps in one storage. Sweeps with one name in different storages are different sweeps.

    The selection is made here because MLflow's filters cannot express a path with quotation marks.
    """
    return [run for run in runs if run.data.tags.get(STORAGE_TAG) == storage]


def find_pages(tracking: TrackingSpec, sweep_name: str, storage: str) -> Pages:
    """Return MLflow's pages of a sweep. Raises TrackingError if MLflow cannot be used or has no such sweep."""
    try:
        client = connect(tracking.uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        by_name = client.search_runs([experiment.experiment_id], _sweep_filter(sweep_name)) if experiment else []
        runs = _of_storage(by_name, storage)
    except Exception as error:
        raise unusable(tracking.uri, error) from error
    if not experiment or not runs:
        raise TrackingError(f"no sweep {sweep_name!r} in experiment {tracking.experiment!r} of {tracking.uri}")
    parent_id = runs[0].info.run_id
    return Pages(experiment.experiment_id, parent_id, f"{VIEW_TAG}{parent_id}" in experiment.tags)
