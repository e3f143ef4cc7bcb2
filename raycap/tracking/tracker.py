"""MLflow: parent run = sweep, child run = trial. One thread at a time does all the logging.

Whatever is told twice is told once: runs are found again by tags (sweep, trial_id), a step that a run has is not logged
again, and a point carries the time at which it was made, for MLflow keeps one of those that are alike. So neither a restart
nor a lost answer leaves duplicates or gaps.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The courier tries again, and nobody waits for it; MLflow by itself would go on for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param, Run

from raycap.analysis.measurements import Measured
from raycap.errors import TrackingError
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import ModelByWidth, TrackingSpec
from raycap.storage import Storage
from raycap.storage.sweep_folder import SweepFolder
from raycap.tracking.client import cannot_be_used, client_of, reaching
from raycap.tracking.lineage import dataset_inputs, register_model
from raycap.tracking.links import VIEW_TAG, Pages, colours, shared_view, with_artifacts
from raycap.tracking.metrics import flat_params, trial_metrics
from raycap.tracking.outbox import Operation

SWEEP_TAG, STORAGE_TAG = "raycap.sweep", "raycap.storage"
TRIAL_TAG, VERSION_TAG = "raycap.trial_id", "raycap.model_version"
PARENT_TAG, NOTE_TAG, COLOUR_TAG = "mlflow.parentRunId", "mlflow.note.content", "mlflow.runColor"
STEP_METRIC = "train/exposures"
"""Logged at every evaluation, after all else: its history tells which steps a run has."""
METRICS_PER_CALL = 900


@dataclass
class _Child:
    """What is known of a trial's run."""

    run_id: str
    status: str
    ended_ms: int
    """0 if it never has."""
    has_params: bool
    is_registered: bool
    """Whether the registry has its model."""
    steps: dict[int, int] | None = None
    """When each step was logged, in ms; None before anybody asked."""

    @classmethod
    def of(cls, run: Run) -> "_Child":
        tags, has_params = run.data.tags, bool(run.data.params)
        return cls(run.info.run_id, run.info.status, run.info.end_time or 0, has_params, VERSION_TAG in tags)


class Tracker:
    """The runs of one sweep.

    Raises TrackingError while MLflow is away or broken, from the start or later; what it refuses raises something else.
    """

    def __init__(
        self, sweep: SweepRecord, tracking: TrackingSpec, measured: Mapping[str, Measured] = MappingProxyType({})
    ) -> None:
        """`measured` holds the results that `finish_trial` tells of, when it does."""
        self._sweep, self._uri, self._measured = sweep, tracking.uri, measured
        self._registers = tracking.register_models
        self._planned = {trial.trial_id: trial for trial in sweep.trials}
        self._colours = colours(_width(trial) for trial in sweep.trials)
        self._storage = Storage.at(sweep.spec.storage)
        self.num_points = 0
        """Metric points logged so far."""
        self.forget()
        try:
            self._client = client_of(self._uri)
            self.experiment_id = self._experiment(tracking.experiment)
            self._found()
        except Exception as error:  # MLflow's, SQLAlchemy's, Alembic's, the system's
            raise cannot_be_used(self._uri, error) from error

    def deliver(self, operation: Operation) -> None:
        """Do what an operation says: one of the methods below."""
        with reaching(self._uri):
            getattr(self, operation.name)(time_ms=operation.time_ms, **operation.arguments)

    def forget(self) -> None:
        """Read anew what runs there are: an answer was lost, or somebody deleted one."""
        self._parent_id: str | None = None
        self._children: dict[str, _Child] | None = None

    def status(self, trial_id: str) -> str | None:
        """MLflow's status of a trial's run, None if it has none or lacks the model of one that is finished."""
        child = self._found().get(trial_id)
        return child.status if child and not self._lacks_model(child) else None

    def start_trial(self, trial_id: str, afresh: bool, time_ms: int) -> None:
        """Mark a trial running, and the sweep. If it starts afresh, points from before are not its: it gets a new run."""
        child, steps = self._child(trial_id, time_ms)
        if time_ms <= child.ended_ms:  # an old outbox says again what has passed
            return
        if afresh and any(logged_ms < time_ms for logged_ms in steps.values()):
            self._client.delete_run(child.run_id)
            del self._found()[trial_id]
            child, _ = self._child(trial_id, time_ms)
        self._client.update_run(child.run_id, status="RUNNING")
        child.status = "RUNNING"
        self._client.update_run(self._parent(), status="RUNNING")

    def log_evaluation(self, trial_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log one evaluation of a trial, unless its run has it already."""
        child, steps = self._child(trial_id, time_ms)
        if step not in steps:
            self._log(child.run_id, _points(metrics, step, time_ms))
            steps[step] = time_ms

    def finish_trial(self, trial_id: str, time_ms: int) -> None:
        """Log what a trial's run lacks of its result, set its final metrics, mark it finished, and register its model if
        that is asked for.
        """
        measured = self._measured.get(trial_id)
        if measured is None:  # an old outbox says so, but the result has been lost since
            return
        spent_s = measured.curve.train_seconds
        times_ms = [time_ms - round(1000 * seconds) for seconds in (spent_s[-1] - spent_s).tolist()]
        child, steps = self._child(trial_id, times_ms[0])
        if child.status != "FINISHED":
            self._log_result(child, steps, measured, times_ms)
        if self._lacks_model(child):
            name = f"raycap-{self._sweep.spec.name}"
            version = register_model(self._client, self._storage, trial_id, child.run_id, name)
            self._client.set_tag(child.run_id, VERSION_TAG, version)
            child.is_registered = True

    def _lacks_model(self, child: _Child) -> bool:
        return self._registers and child.status == "FINISHED" and not child.is_registered

    def _log_result(self, child: _Child, steps: dict[int, int], measured: Measured, times_ms: list[int]) -> None:
        analysis, time_ms = self._sweep.spec.analysis, times_ms[-1]
        evaluations = trial_metrics(self._planned[measured.trial_id], analysis, measured.curve, measured.losses)
        points: list[Metric] = []
        for step, at_ms, metrics in zip(measured.curve.step.tolist(), times_ms, evaluations, strict=True):
            if step not in steps:
                points += _points(metrics, step, at_ms)
                steps[step] = at_ms
        final = {f"final/{name}": value for name, value in evaluations[-1].items()}
        self._log(child.run_id, points + _points(final, 0, time_ms))
        self._end(child, "FINISHED", time_ms)

    def fail_trial(self, trial_id: str, cause: str, time_ms: int) -> None:
        """Mark a trial failed, with the cause as its description."""
        child, _ = self._child(trial_id, time_ms)
        if time_ms > child.ended_ms:
            self._client.set_tag(child.run_id, NOTE_TAG, cause[:5000])
            self._end(child, "FAILED", time_ms)

    def log_sweep(
        self, num_finished: int, metrics: Mapping[str, float], description: str, files: list[str], time_ms: int
    ) -> None:
        """Refresh the parent run: law metrics after so many finished trials, where they have changed, description, whose
        images are among the files, and files of the sweep's folder, as they are now.
        """
        parent_id = self._parent()
        before = self._client.get_run(parent_id).data.metrics
        changed = {key: value for key, value in metrics.items() if before.get(key) != value}
        self._log(parent_id, _points(changed, num_finished, time_ms))
        self._client.set_tag(parent_id, NOTE_TAG, with_artifacts(description, parent_id))
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            for file in files:
                (Path(folder) / file).write_bytes(SweepFolder(self._storage, self._sweep.spec.name).read(file))
            (Path(folder) / "spec.yaml").write_text(self._sweep.spec_yaml, encoding="utf-8")
            self._client.log_artifacts(parent_id, folder)

    def close(self, status: str, time_ms: int) -> None:
        """Mark the sweep FINISHED, FAILED or KILLED; trials still running then are KILLED."""
        self.forget()  # a run whose making was not answered may have come since
        for child in self._found().values():
            if child.status == "RUNNING":
                self._end(child, "KILLED", time_ms)
        parent_id = self._parent()
        if self._client.get_run(parent_id).info.status != status:
            self._client.set_terminated(parent_id, status, time_ms)

    def _experiment(self, name: str) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return existing.experiment_id
        if self._uri.startswith("sqlite:///"):
            # Without this, artifacts would go to ./mlruns of whatever directory the actor happens to be in.
            beside = Path(self._uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            return self._client.create_experiment(name, artifact_location=beside.as_uri())
        return self._client.create_experiment(name)

    def _parent(self) -> str:
        """The id of the sweep's run, made or found once."""
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

    def _found(self) -> dict[str, _Child]:
        """The runs of trials under the sweep's run, read once."""
        if self._children is None:
            by_trial: dict[str, list[Run]] = defaultdict(list)
            for run in self._search(f"tags.`{PARENT_TAG}` = '{self._parent()}'"):
                by_trial[run.data.tags.get(TRIAL_TAG, "")].append(run)
            by_trial.pop("", None)  # somebody else's
            self._children = {trial_id: _Child.of(self._one_of(runs)) for trial_id, runs in by_trial.items()}
        return self._children

    def _child(self, trial_id: str, began_ms: int) -> tuple[_Child, dict[int, int]]:
        """The run of a trial, made or found, and the steps that it has."""
        children, planned = self._found(), self._planned[trial_id]
        if trial_id not in children:
            tags = {TRIAL_TAG: trial_id, PARENT_TAG: self._parent(), COLOUR_TAG: self._colours[_width(planned)]}
            run = self._client.create_run(self.experiment_id, began_ms, tags, planned.label)
            children[trial_id] = _Child.of(run)
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
        runs: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self.experiment_id], filter_string, max_results=1000, page_token=token)
            runs += page
            token = page.token or None
        return runs

    def _one_of(self, runs: list[Run]) -> Run:
        """The run that has come furthest of several that should be one, because an answer was lost; the others go."""
        *others, last = sorted(
            runs,
            key=lambda run: (run.info.status == "FINISHED", run.data.metrics.get(STEP_METRIC, 0), run.info.start_time),
        )
        for other in others:
            self._client.delete_run(other.info.run_id)
        return last

    def _end(self, child: _Child, status: str, time_ms: int) -> None:
        self._client.set_terminated(child.run_id, status, time_ms)
        child.status, child.ended_ms = status, time_ms

    def _log(self, run_id: str, points: list[Metric]) -> None:
        for begin in range(0, len(points), METRICS_PER_CALL):  # MLflow takes at most 1000 metrics at once
            some = points[begin : begin + METRICS_PER_CALL]
            self._client.log_batch(run_id, metrics=some)
            self.num_points += len(some)


def _points(metrics: Mapping[str, float], step: int, time_ms: int) -> list[Metric]:
    """Metrics at one step as points, the one that says that the step is there last."""
    ordered = sorted(metrics.items(), key=lambda item: item[0] == STEP_METRIC)
    return [Metric(name, float(value), time_ms, step) for name, value in ordered]


def _width(planned: PlannedTrial) -> int:
    assert isinstance(planned.spec.model, ModelByWidth)
    return planned.spec.model.hidden_size


def _sweep_filter(name: str) -> str:
    return f"tags.`{SWEEP_TAG}` = '{name}'"


def _of_storage(runs: Iterable[Run], storage: str) -> list[Run]:
    """Sweeps of one name in different storages are different: their trials were trained apart. (No filter of MLflow's: it
    has no way to write a path with quotation marks.)
    """
    return [run for run in runs if run.data.tags.get(STORAGE_TAG) == storage]


def find_pages(tracking: TrackingSpec, sweep_name: str, storage: str) -> Pages:
    """The pages of a sweep. Raises TrackingError where MLflow has none."""
    try:
        client = client_of(tracking.uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        found = client.search_runs([experiment.experiment_id], _sweep_filter(sweep_name)) if experiment else []
        runs = _of_storage(found, storage)
    except Exception as error:
        raise cannot_be_used(tracking.uri, error) from error
    if not experiment or not runs:
        raise TrackingError(f"no sweep {sweep_name!r} in experiment {tracking.experiment!r} of {tracking.uri}")
    parent_id = runs[0].info.run_id
    return Pages(experiment.experiment_id, parent_id, f"{VIEW_TAG}{parent_id}" in experiment.tags)
