"""A sweep on Ray: start or join a cluster, run the missing trials under the analyst's eyes, and leave it in order."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget, Spending
from raycap.cluster.errors import TrialError, root_cause
from raycap.errors import CannotRunError
from raycap.plan.stacks import replica_groups
from raycap.results import PlannedTrial, RunRecord, SweepRecord, source_commit
from raycap.spec import ParentModel, ProfilesFromDisk
from raycap.storage import Storage, checkpoint_steps, failure_path, result_path
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from raycap.cluster.trial_queue import TrialQueue


EXIT_INTERRUPTED = 130
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Nobody goes on from Tune's own notes, and all that it notes of a trial stays in memory.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # Ctrl-C is the session's: trials save before they go.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A trial is a dozen small processes; on two cores Ray would warn of each new one.
    "RAY_worker_maximum_startup_concurrency": "16",
    # Ray remembers 100,000 tasks by default, dozens of every trial, in more memory than all else takes.
    "RAY_task_events_max_num_task_in_gcs": "5000",
    # As many processes may stay though they are idle: the reader of the next trial's rows needs no start then.
    "RAY_num_workers_soft_limit": str(8 * (os.cpu_count() or 1)),
}
WORKER_ENVIRONMENT = QUIET | {
    # Ray Train's controller looks at its workers this often; reports wait for it (2 s by default).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Relative paths in a spec are relative to where the sweep was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Job:
    """A sweep, how far it has come, and what this run of it may spend."""

    sweep: SweepRecord
    missing: list[PlannedTrial]
    num_finished: int
    began: float
    """When the command started, by time.monotonic(): the time of day may jump."""
    budget: Budget = UNBOUNDED

    def run_until_now(self, slots: int) -> RunRecord:
        """The record of this run, as if it ended here."""
        return RunRecord(wall_seconds=time.monotonic() - self.began, slots=slots)


class Ending(StrEnum):
    """How a run ended."""

    OVER = "over"
    """There was nothing left to do."""
    INTERRUPTED = "interrupted"
    BUDGET = "budget"
    """It was spent."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    law: str | None
    """The law as a sentence; None if nobody could conclude, or nobody was asked to."""
    ending: Ending = Ending.OVER
    problems: tuple[str, ...] = ()
    """What MLflow or the storage lacks, and what to do, a line each."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, quiet: the cluster RAY_ADDRESS names or whose head this is, else one of our own for as long as we run.
    Raises CannotRunError if there is no such cluster.

    A session that is there already (tests, notebooks) is used and left alone.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    import ray

    from raycap.cluster.resources import CLUSTER_HEAD_MARKER

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
        _use_token_where_asked(address)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    except ConnectionError as error:
        raise CannotRunError(
            f"RAY_ADDRESS {address}: no Ray cluster can be reached there: {root_cause(error)}"
        ) from error
    except (RuntimeError, ValueError) as error:  # as one of another Ray or another Python
        told = " ".join(str(error).split())
        raise CannotRunError(f"RAY_ADDRESS {address}: the Ray cluster there cannot be used: {told}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _use_token_where_asked(address: str) -> None:
    """`ray start` asks for a token wherever its user has one, but `ray.init` of the same user does not show it by itself;
    and a cluster without tokens cannot speak with one who uses them.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as authentication
    from ray._private.services import canonicalize_bootstrap_address

    try:
        ray._raylet.GcsClient(address=canonicalize_bootstrap_address(address))
    except ray.exceptions.AuthenticationError:
        authentication.logger.setLevel(logging.ERROR)
        authentication.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except Exception:  # that nobody is there is told by who connects
        return


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
    law = analyst.conclude(run.model_dump_json(), analyst.status())
    return Outcome(law, problems=analyst.delivery().problems)


def _places_read(trials: list[PlannedTrial]) -> set[tuple[str, str]]:
    """Files and folders that trials read, each with the name of the field that names it."""
    found = set()
    for trial in trials:
        fill = trial.spec.fill
        for name, part in (
            ("profiles.path", trial.spec.profiles),
            ("fill.profiles.path", fill.profiles if fill else None),
        ):
            if isinstance(part, ProfilesFromDisk):
                found.add((name, part.path))
        if fill and isinstance(fill.parent, ParentModel):
            found.add(("fill.parent.path", fill.parent.path))
    return found


def _run_on_ray(job: Job, console: Console) -> Outcome:
    import ray

    from raycap.cluster.analyst import AnalystActor

    sweep, place = job.sweep, job.sweep.spec.storage
    analyst = AnalystActor.remote(sweep.model_dump_json())  # loads MLflow while we load Ray Tune

    from raycap.cluster.progress import Progress
    from raycap.cluster.resources import concurrent_slots
    from raycap.cluster.signals import clear_signals
    from raycap.cluster.trial_queue import TrialQueue, work_of
    from raycap.cluster.tuner import record_failure, run_trials
    from raycap.cluster.worker import WorkerConfig

    storage, execution = Storage.at(place), sweep.spec.execution
    slots = concurrent_slots(execution, {("storage", place)} | _places_read(job.missing))
    opened = analyst.open.remote(slots)
    config = WorkerConfig(execution, place, source_commit(), analyst, sweep.spec.analysis)
    _unwrapped(opened)
    # The longest first, so that no slot stands empty while the last one runs.
    ordered = sorted(job.missing, key=lambda trial: -work_of((trial,)))
    found = {trial_id: checkpoint_steps(names) for trial_id, names in storage.folders("trials").items()}
    done = {trial_id: steps[-1] for trial_id, steps in found.items() if steps}
    spending = Spending(job.budget, execution.num_workers * execution.gpus_per_worker, job.began)
    groups = replica_groups(ordered, execution.replicas, done)
    queue = TrialQueue(groups, spending)
    progress = Progress(job.missing, job.num_finished, analyst, console)
    progress.start()
    clear_signals()
    with _signals_to(queue, console):
        try:
            causes = run_trials(queue, config, slots=slots)
        finally:
            progress.stop()
            clear_signals()
        left = {trial.trial_id for trial in job.missing if not storage.exists(result_path(trial.trial_id))}
        for trial_id in left & set(causes):
            if not storage.exists(failure_path(trial_id)):  # its driver could not tell any more
                record_failure(storage, trial_id, TrialError(causes[trial_id]), analyst)
        ending = Ending.OVER
        if left - set(causes):
            ending = Ending.BUDGET if queue.stopped_by_budget and not queue.was_stopped else Ending.INTERRUPTED
        outcome = _conclude(job.run_until_now(slots), ending, analyst)
    ray.kill(analyst)
    return outcome


def _conclude(run: RunRecord, ending: Ending, analyst: "ActorHandle") -> Outcome:
    """Have the analyst write everything once more, and say what could not be written."""
    import ray

    try:
        if ending is Ending.INTERRUPTED:
            law = ray.get(analyst.interrupt.remote(run.model_dump_json()))
        else:
            law = ray.get(analyst.conclude.remote(run.model_dump_json(), ray.get(analyst.status.remote())))
        return Outcome(law, ending, ray.get(analyst.delivery.remote()).problems)
    except ray.exceptions.RayError as error:
        return Outcome(None, ending, (f"MLflow may be incomplete: {root_cause(error)}",))


@contextmanager
def _signals_to(queue: "TrialQueue", console: Console) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM has trials save and leave; the second ends everything at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return

    def heed(number: int, frame: Any) -> None:
        if queue.was_stopped:
            _end_at_once()
        queue.stop()
        console.print("Stopping: trials save where they are. Once more ends everything at once.", style="yellow")

    previous = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_at_once() -> None:
    """Leave without a word, and leave no process behind."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(EXIT_INTERRUPTED)


def _unwrapped(reference: Any) -> Any:
    """The value of a reference; a call that failed raises its own exception instead of Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _last_run(sweep: SweepRecord) -> RunRecord | None:
    """How the last run that trained something went; one that finds nothing to train leaves it standing."""
    folder = SweepFolder(Storage.at(sweep.spec.storage), sweep.spec.name)
    return folder.read_run() if folder.exists(SweepFolder.RUN) else None
