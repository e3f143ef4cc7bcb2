"""Runs a sweep on Ray: starts or joins a cluster, runs the missing trials, and closes the sweep."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget, Spending
from raycap.cluster.connection import ray_session
from raycap.cluster.errors import TrialError, root_cause
from raycap.plan.stacks import replica_groups
from raycap.results import PlannedTrial, RunRecord, SweepRecord, source_commit
from raycap.spec import ParentModel, ProfilesFromDisk
from raycap.storage import Storage, checkpoint_steps, failure_path, result_path
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from raycap.cluster.trial_queue import TrialQueue

SECOND_SIGNAL_EXIT_CODE = 130


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the trials to run, the number already finished, and the budget."""

    sweep: SweepRecord
    missing: list[PlannedTrial]
    num_finished: int
    began: float
    """Start time of the command, from time.monotonic(), since the system clock may jump."""
    budget: Budget = UNBOUNDED
    cpu_only: bool = False
    """See `WorkerConfig.cpu_only`."""

    def run_until_now(self, slots: int) -> RunRecord:
        """Return the record of this run up to now."""
        return RunRecord(wall_seconds=time.monotonic() - self.began, slots=slots)


class Ending(StrEnum):
    """Reason for which a run ended."""

    OVER = "over"
    """All trials finished or failed."""
    INTERRUPTED = "interrupted"
    BUDGET = "budget"
    """The budget was spent."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run."""

    law: str | None
    """The law as a sentence; None after an interruption or if the analyst died."""
    ending: Ending = Ending.OVER
    problems: tuple[str, ...] = ()
    """Messages for the user: what MLflow or the storage lacks, and what to do. One line each."""


def run_sweep(job: Job, console: Console) -> Outcome:
    """Run the missing trials, then update the sweep's folder and MLflow. Ray is used only if trials are missing.

    Raises:
        CannotRunError: Ray or MLflow cannot be used, or no trial can ever be scheduled. Raised before any trial starts.
    """
    if job.missing:
        with ray_session() as folder:
            return _run_on_ray(job, console, folder)
    from raycap.cluster.analyst import Analyst

    analyst = Analyst(job.sweep.model_dump_json())
    run = _last_run(job.sweep) or job.run_until_now(slots=1)
    analyst.open(run.slots)
    law = analyst.conclude(run.model_dump_json(), analyst.status())
    return Outcome(law, problems=analyst.delivery().problems)


def _input_paths(trials: list[PlannedTrial]) -> set[tuple[str, str]]:
    """Return (field name, path) of the files and folders that trials read."""
    paths = set()
    for trial in trials:
        fill = trial.spec.fill
        for name, profiles in (
            ("profiles.path", trial.spec.profiles),
            ("fill.profiles.path", fill.profiles if fill else None),
        ):
            if isinstance(profiles, ProfilesFromDisk):
                paths.add((name, profiles.path))
        if fill and isinstance(fill.parent, ParentModel):
            paths.add(("fill.parent.path", fill.parent.path))
    return paths


def _run_on_ray(job: Job, console: Console, folder: Path) -> Outcome:
    import ray

    from raycap.cluster.analyst import AnalystActor

    sweep, storage_uri = job.sweep, job.sweep.storage
    # The actor imports MLflow while this process imports Ray Tune; each takes seconds.
    analyst = AnalystActor.remote(sweep.model_dump_json())

    from raycap.cluster.progress import ProgressDisplay
    from raycap.cluster.resources import concurrent_slots
    from raycap.cluster.signals import clear_signals
    from raycap.cluster.trial_queue import TrialQueue, work_of
    from raycap.cluster.tuner import record_failure, run_queue
    from raycap.cluster.worker import WorkerConfig

    storage, execution = Storage.at(storage_uri), sweep.spec.execution
    slots = concurrent_slots(execution, {("storage", storage_uri)} | _input_paths(job.missing))
    opened = analyst.open.remote(slots)
    config = WorkerConfig(execution, storage_uri, source_commit(), analyst, sweep.spec.analysis, cpu_only=job.cpu_only)
    _get(opened)
    # Longest trials first, so that fewer slots are idle while the last trial runs.
    ordered = sorted(job.missing, key=lambda trial: -work_of((trial,)))
    checkpoints = {trial_id: checkpoint_steps(names) for trial_id, names in storage.folders("trials").items()}
    steps_done = {trial_id: steps[-1] for trial_id, steps in checkpoints.items() if steps}
    spending = Spending(job.budget, execution.num_workers * execution.gpus_per_worker, job.began)
    groups = replica_groups(ordered, execution.replicas, steps_done)
    queue = TrialQueue(groups, spending)
    progress = ProgressDisplay(job.missing, job.num_finished, analyst, console)
    progress.start()
    clear_signals()
    with _signal_handlers(queue, console):
        try:
            causes = run_queue(queue, config, folder / "tune", slots=slots)
        finally:
            progress.stop()
            clear_signals()
        left = {trial.trial_id for trial in job.missing if not storage.exists(result_path(trial.trial_id))}
        for trial_id in left & set(causes):
            if not storage.exists(failure_path(trial_id)):  # the driver died before it could write it
                record_failure(storage, trial_id, TrialError(causes[trial_id]), analyst)
        ending = Ending.OVER
        if left - set(causes):
            ending = Ending.BUDGET if queue.stopped_by_budget and not queue.was_stopped else Ending.INTERRUPTED
        outcome = _conclude(job.run_until_now(slots), ending, analyst)
    ray.kill(analyst)
    return outcome


def _conclude(run: RunRecord, ending: Ending, analyst: "ActorHandle") -> Outcome:
    """Let the analyst close the sweep, and return the outcome."""
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
def _signal_handlers(queue: "TrialQueue", console: Console) -> Iterator[None]:
    """Handle SIGINT and SIGTERM: the first one stops the queue, so that trials save; the second kills all processes."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if queue.was_stopped:
            _kill_all()
        queue.stop()
        console.print("Stopping: trials save a checkpoint. Press Ctrl-C again to stop at once.", style="yellow")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kill_all() -> None:
    """Kill all child processes, and exit at once without cleaning up."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(SECOND_SIGNAL_EXIT_CODE)


def _get(reference: Any) -> Any:
    """Return the value of a reference. If the call failed, raise its own exception instead of Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _last_run(sweep: SweepRecord) -> RunRecord | None:
    """Return the stored record of the last run that trained something, if any."""
    folder = SweepFolder(Storage.at(sweep.storage), sweep.spec.name)
    return folder.read_run() if folder.exists(SweepFolder.RUN) else None
