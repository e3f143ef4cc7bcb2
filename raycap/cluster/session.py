"""A sweep on Ray: start or join a cluster, run the missing trials under the analyst's eyes, and leave it in order."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raycap.replicas import replica_groups
from raycap.results import PlannedTrial, RunRecord, SweepRecord, source_commit
from raycap.spec import ParentModel, ProfilesFromDisk
from raycap.storage import Storage, checkpoint_steps, failure_path, result_path

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A trial is a dozen small processes; on two cores Ray would warn of each new one.
    "RAY_worker_maximum_startup_concurrency": "16",
    # As many processes may stay though they are idle: the reader of the next trial's rows needs no start then.
    "RAY_num_workers_soft_limit": str(8 * (os.cpu_count() or 1)),
}
WORKER_ENVIRONMENT = QUIET | {
    # Ray Train's controller looks at its workers this often; reports wait for it (2 s by default).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Relative paths in a spec are relative to where the sweep was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
CLUSTER_HEAD_MARKER = Path("~/ray_bootstrap_config.yaml")
"""`ray up` leaves this file on the head of the clusters it starts."""


@dataclass(frozen=True)
class Job:
    """A sweep and how far it has come."""

    sweep: SweepRecord
    missing: list[PlannedTrial]
    num_finished: int
    began: float
    """When the command started, in seconds since the epoch."""

    def run_until_now(self, slots: int) -> RunRecord:
        """The record of this run, as if it ended here."""
        return RunRecord(wall_seconds=time.time() - self.began, slots=slots)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    law: str | None
    """The law as a sentence; None if the analyst could not conclude."""
    interrupted: bool


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, quiet: the cluster RAY_ADDRESS names or whose head this is, else one of our own for as long as we run.

    A session that is there already (tests, notebooks) is used and left alone.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    on_head = CLUSTER_HEAD_MARKER.expanduser().exists()
    address = os.environ.get("RAY_ADDRESS") or ("auto" if on_head else "local")
    # Without the dashboard's agent, trials that are killed leave their placement groups behind and retries hang.
    own: dict[str, Any] = {"include_dashboard": True} if address == "local" else {}
    # One machine is not preempted in parts; elsewhere the watcher of each trial is worth its process.
    watcher = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if address == "local" else {}
    if address == "local":  # inherited by every process: one that Ray has started in advance serves any purpose
        os.environ.update(WORKER_ENVIRONMENT | watcher)
    else:
        own["runtime_env"] = {"env_vars": WORKER_ENVIRONMENT}
    ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    try:
        yield
    finally:
        ray.shutdown()


def run_sweep(job: Job, console: Console) -> Outcome:
    """Run the missing trials and bring the sweep's folder and MLflow up to date.

    Raises TrackingError or ResourceError before any trial starts.
    """
    if job.missing:
        with ray_session():
            return _run_on_ray(job, console)
    from raycap.cluster.analyst import Analyst

    analyst = Analyst(job.sweep.model_dump_json())
    run = _last_run(job.sweep) or job.run_until_now(slots=1)
    analyst.open(run.slots)
    return Outcome(analyst.conclude(run.model_dump_json(), "FINISHED"), interrupted=False)


def _places_read(trials: list[PlannedTrial]) -> dict[str, str]:
    """Files and folders that trials read, by the name of the field that names one."""
    found = {}
    for trial in trials:
        fill = trial.spec.fill
        for name, part in (
            ("profiles.path", trial.spec.profiles),
            ("fill.profiles.path", fill.profiles if fill else None),
        ):
            if isinstance(part, ProfilesFromDisk):
                found[name] = part.path
        if fill and isinstance(fill.parent, ParentModel):
            found["fill.parent.path"] = fill.parent.path
    return found


def _run_on_ray(job: Job, console: Console) -> Outcome:
    import ray

    from raycap.cluster.analyst import AnalystActor

    sweep, place = job.sweep, job.sweep.spec.storage
    analyst = AnalystActor.remote(sweep.model_dump_json())  # loads MLflow while we load Ray Tune

    from raycap.cluster.progress import Progress
    from raycap.cluster.tuner import concurrent_slots, record_failure, run_trials
    from raycap.cluster.worker import Setting

    storage, execution = Storage.at(place), sweep.spec.execution
    slots = concurrent_slots(execution, {"storage": place} | _places_read(job.missing))
    opened = analyst.open.remote(slots)
    setting = Setting(execution, place, source_commit(), analyst)
    _unwrapped(opened)
    progress = Progress(job.missing, job.num_finished, analyst, console)
    progress.start()
    # The longest first, so that no slot stands empty while the last one runs.
    ordered = sorted(job.missing, key=lambda trial: -trial.parameters.total * trial.tokens)
    found = {trial_id: checkpoint_steps(names) for trial_id, names in storage.folders("trials").items()}
    done = {trial_id: steps[-1] for trial_id, steps in found.items() if steps}
    with _signals_kept():
        try:
            errors = run_trials(replica_groups(ordered, execution.replicas, done), setting, slots=slots)
        finally:
            progress.stop()
    left = {trial.trial_id for trial in job.missing if not storage.exists(result_path(trial.trial_id))}
    for trial_id in left & set(errors):
        if not storage.exists(failure_path(trial_id)):  # its driver could not tell any more
            record_failure(storage, trial_id, errors[trial_id], analyst)
    interrupted = bool(left - set(errors))
    status = "KILLED" if interrupted else "FAILED" if left else "FINISHED"
    run = job.run_until_now(slots)
    try:
        law = ray.get(analyst.conclude.remote(run.model_dump_json(), status))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        console.print(f"MLflow may be incomplete: {type(cause).__name__}: {cause}", style="yellow", markup=False)
        storage.write(f"{sweep.spec.name}/run.json", run.model_dump_json())
        law = None
    ray.kill(analyst)
    return Outcome(law, interrupted)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: Ray Tune stops its trials and returns as if all were well.

    Tune leaves a handler for Ctrl-C behind; it goes when this ends.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unwrapped(reference: Any) -> Any:
    """The value of a reference; a call that failed raises its own exception instead of Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _last_run(sweep: SweepRecord) -> RunRecord | None:
    """How the last run that trained something went; one that finds nothing to train leaves it standing."""
    storage = Storage.at(sweep.spec.storage)
    path = f"{sweep.spec.name}/run.json"
    return RunRecord.model_validate_json(storage.read_text(path)) if storage.exists(path) else None
