"""Lookup and creation of the runs of one sweep in MLflow: the run of the sweep, and the nested runs of its trials.

Runs are found by their tags, so that none is created twice. A search returns no deleted runs. A sweep is identified by its
name and its storage. The storage is compared by its canonical location, and for an SQLite database also by the path from the
database to the storage, which does not change if a folder that contains both is moved or copied.
"""

import os
from collections import defaultdict
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run

from raycap.errors import TrackingError
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import ResolvedModel
from raycap.spec.locations import canonical_location, database_path, local_path
from raycap.spec.uris import join_uri
from raycap.tracking.client import connect
from raycap.tracking.experiment import find_experiment
from raycap.tracking.lineage import dataset_inputs
from raycap.tracking.links import VIEW_TAG, Pages, colours, shared_view
from raycap.tracking.metrics import flat_params
from raycap.tracking.problems import unusable

SWEEP_TAG, STORAGE_TAG, RELATIVE_STORAGE_TAG = "raycap.sweep", "raycap.storage", "raycap.storage_from_database"
TRIAL_TAG, VERSION_TAG = "raycap.trial_id", "raycap.model_version"
PARENT_TAG, COLOUR_TAG = "mlflow.parentRunId", "mlflow.runColor"
STEP_METRIC = "train/exposures"
"""Logged last at every evaluation; its history has the steps that are complete in a run."""


@dataclass
class TrialRun:
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
    def of(cls, run: Run) -> "TrialRun":
        """Return the state of a run that MLflow has returned."""
        return cls(
            run.info.run_id,
            run.info.status,
            run.info.end_time or 0,
            has_params=bool(run.data.params),
            is_registered=VERSION_TAG in run.data.tags,
        )


class SweepRuns:
    """The runs of one sweep, which are searched once and then cached."""

    def __init__(self, client: MlflowClient, experiment: Experiment, sweep: SweepRecord) -> None:
        self._client, self._experiment_id, self._sweep = client, experiment.experiment_id, sweep
        self._planned = {trial.trial_id: trial for trial in sweep.trials}
        self._colours = colours(_width(trial) for trial in sweep.trials)
        self.clear_cache()

    def clear_cache(self) -> None:
        """Discard the cached runs, so that they are searched again: after a failure, the cache may be outdated."""
        self._sweep_run_id: str | None = None
        self._trial_runs: dict[str, TrialRun] | None = None

    def sweep_run_id(self) -> str:
        """Return the id of the sweep's run, which is created if it does not exist, and set its shared view."""
        if self._sweep_run_id is None:
            name, tags = self._sweep.spec.name, _tags(self._sweep)
            runs = _sweep_runs(self._client, self._experiment_id, self._sweep)
            if runs:
                run = self._one_of(runs)
                for tag, value in tags.items():
                    if run.data.tags.get(tag) != value:  # the project was moved or copied
                        self._client.set_tag(run.info.run_id, tag, value)
            else:
                run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
            run_id = run.info.run_id
            view = shared_view(self._sweep, run_id)
            self._client.set_experiment_tag(self._experiment_id, f"{VIEW_TAG}{run_id}", view)
            self._sweep_run_id = run_id
        return self._sweep_run_id

    def trial_runs(self) -> dict[str, TrialRun]:
        """Return the runs of trials by trial id."""
        if self._trial_runs is None:
            by_trial: dict[str, list[Run]] = defaultdict(list)
            children = f"tags.`{PARENT_TAG}` = '{self.sweep_run_id()}'"
            for run in _search(self._client, self._experiment_id, children):
                by_trial[run.data.tags.get(TRIAL_TAG, "")].append(run)
            by_trial.pop("", None)  # runs that raycap did not create
            self._trial_runs = {trial_id: TrialRun.of(self._one_of(runs)) for trial_id, runs in by_trial.items()}
        return self._trial_runs

    def trial_run(self, trial_id: str, start_ms: int) -> tuple[TrialRun, dict[int, int]]:
        """Return the run of a trial, which is created if it does not exist, and its logged steps with their times."""
        runs, planned = self.trial_runs(), self._planned[trial_id]
        if trial_id not in runs:
            tags = {TRIAL_TAG: trial_id, PARENT_TAG: self.sweep_run_id(), COLOUR_TAG: self._colours[_width(planned)]}
            run = self._client.create_run(self._experiment_id, start_ms, tags, planned.label)
            runs[trial_id] = TrialRun.of(run)
        found = runs[trial_id]
        if not found.has_params:
            self._client.log_inputs(found.run_id, dataset_inputs(planned))
            params = [Param(key, str(value)[:6000]) for key, value in flat_params(planned).items()]
            self._client.log_batch(found.run_id, params=params)
            found.has_params = True
        if found.steps is None:
            history: list[Metric] = self._client.get_metric_history(found.run_id, STEP_METRIC)
            found.steps = {point.step: point.timestamp for point in history}
        return found, found.steps

    def delete_trial_run(self, trial_id: str) -> None:
        """Delete the run of a trial, so that the next access creates a new one."""
        self._client.delete_run(self.trial_runs().pop(trial_id).run_id)

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


def find_pages(sweep: SweepRecord, *, is_running: bool = True) -> Pages:
    """Return MLflow's pages of a sweep. Creates nothing.

    Unless the sweep `is_running`, runs that a killed command has left as RUNNING are first marked as KILLED.

    Raises TrackingError if MLflow cannot be used or has no such sweep.
    """
    uri, name = sweep.tracking_uri, sweep.spec.tracking.experiment
    try:
        client = connect(uri, creates=False)
        experiment = find_experiment(client, uri, name)
        runs = _sweep_runs(client, experiment.experiment_id, sweep) if experiment else []
        if experiment and not is_running:
            for run in runs:
                _end_abandoned(client, experiment.experiment_id, run)
    except Exception as error:  # of MLflow, SQLAlchemy, Alembic or the system
        raise unusable(uri, error) from error
    if not experiment or not runs:
        raise TrackingError(
            f"tracking.uri {uri}: experiment {name!r} has no sweep {sweep.spec.name!r} of {sweep.storage}",
            f"run the sweep, or log its results: raycap sync {join_uri(sweep.storage, sweep.spec.name)}",
        )
    run_id = runs[0].info.run_id
    return Pages(experiment.experiment_id, run_id, f"{VIEW_TAG}{run_id}" in experiment.tags)


def _end_abandoned(client: MlflowClient, experiment_id: str, sweep_run: Run) -> None:
    """Mark the run of a sweep and those of its trials as KILLED if they are RUNNING."""
    trial_runs = _search(client, experiment_id, f"tags.`{PARENT_TAG}` = '{sweep_run.info.run_id}'")
    for run in (*trial_runs, sweep_run):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def _tags(sweep: SweepRecord) -> dict[str, str]:
    """Return the tags that identify the run of a sweep."""
    tags = {SWEEP_TAG: sweep.spec.name, STORAGE_TAG: canonical_location(sweep.storage)}
    file, storage = database_path(sweep.tracking_uri), local_path(sweep.storage)
    if file is not None and storage is not None:
        database_folder = os.path.dirname(os.path.realpath(file))
        tags[RELATIVE_STORAGE_TAG] = os.path.relpath(os.path.realpath(storage), database_folder)
    return tags


def _sweep_runs(client: MlflowClient, experiment_id: str, sweep: SweepRecord) -> list[Run]:
    """Return the runs of a sweep. Sweeps with one name in different storages are different sweeps.

    The storage is compared here because MLflow's filters cannot express a path with quotation marks.
    """
    runs = _search(client, experiment_id, f"tags.`{SWEEP_TAG}` = '{sweep.spec.name}'")
    tags = _tags(sweep)
    for tag in (STORAGE_TAG, RELATIVE_STORAGE_TAG):
        if found := [run for run in runs if tag in tags and run.data.tags.get(tag) == tags[tag]]:
            return found
    return []


def _search(client: MlflowClient, experiment_id: str, filter_string: str) -> list[Run]:
    """Return all runs of an experiment that match a filter, from all pages of the response."""
    runs: list[Run] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment_id], filter_string, max_results=1000, page_token=token)
        runs += page
        token = page.token or None
    return runs


def _width(planned: PlannedTrial) -> int:
    assert isinstance(planned.spec.model, ResolvedModel)
    return planned.spec.model.hidden_size
