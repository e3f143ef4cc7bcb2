"""One run of a sweep on Ray: connect to a cluster or start one, run the missing trials, and close the sweep."""

import math
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget, Spending
from raycap.cluster.connection import RayConnection, ray_session
from raycap.cluster.errors import TrialError, root_cause
from raycap.cluster.money import Meter, machine_types, refuse_without_price
from raycap.cluster.processes import RayDiedError, kill_children
from raycap.errors import TrackingError
from raycap.host.user_code import folder_of
from raycap.plan.stacks import StackGroup
from raycap.results import CostRecord, PlannedTrial, RunRecord, SweepRecord, source_commit
from raycap.storage import FAILURE_FILE, RESULT_FILE, TRIALS_FOLDER, Storage
from raycap.storage.lock import Lease, guarded
from raycap.storage.retries import advice
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from raycap.cluster.trial_queue import TrialQueue

POLL_INTERVAL_S = 0.5
"""Interval at which the processes of Ray are checked while trials run."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the trials to run, the number already finished, and the budget."""

    sweep: SweepRecord
    missing: list[PlannedTrial]
    stacks: list[StackGroup]
    """The stacks in which the missing trials train (see `plan.stacks.stacks_to_train`)."""
    num_finished: int
    began: float
    """Start time of the command, from time.monotonic(), since the system clock may jump."""
    lease: Lease
    """Lock of the sweep. Once it is lost, the run stops."""
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
    RAY_DIED = "ray died"
    """A process that Ray needs has died."""
    LOST = "lost"
    """The storage was lost: another process took over the lock of the sweep, its folder is gone, or it does not answer."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run."""

    law: str | None
    """The law as a sentence; None after an interruption, or if MLflow cannot be used at the end."""
    ending: Ending = Ending.OVER
    problems: tuple[str, ...] = ()
    """Messages for the user: what MLflow or the storage lacks, and what to do. One line each."""
    is_logged: bool = True
    """Whether MLflow has all records, so that no run is still marked as running."""


@dataclass
class _RayRun:
    """State of the part of a run that uses Ray, which is shared between two threads."""

    job: Job
    connection: RayConnection
    console: Console
    queue: "TrialQueue | None" = None
    """Exists once trials can start."""
    slots: int = 1
    has_opened: bool = False
    """Whether the sweep has a run in MLflow, which must be closed."""
    ended: Future[Outcome] = field(default_factory=Future)


def run_sweep(job: Job, console: Console) -> Outcome:
    """Run the missing trials, then update the sweep's folder and MLflow. Ray is used only if trials are missing.

    Raises:
        CannotRunError: Ray or MLflow cannot be used, or no trial can ever be scheduled. Raised before any trial starts.
    """
    if not job.missing:
        run = _last_run(job.sweep) or job.run_until_now(slots=1)
        return _conclude_without_ray(job, run, Ending.OVER)
    with ray_session() as connection:
        run_on_ray = _RayRun(job, connection, console)
        try:
            return _wait(run_on_ray)
        except RayDiedError as error:
            problem = f"{error}; free memory if the system has killed it, and run the command again"
            ending, problems = Ending.RAY_DIED, [problem]
            kill_children()  # otherwise ray.shutdown would wait for them
        except KeyboardInterrupt:
            ending, problems = Ending.INTERRUPTED, list[str]()
            if connection.processes:
                kill_children()
            if not run_on_ray.has_opened:
                raise
    return _close_without_ray(job, job.run_until_now(run_on_ray.slots), ending, *problems)


def _wait(run: _RayRun) -> Outcome:
    """Run the trials in another thread, and return their outcome.

    This thread is free to handle signals and to watch Ray: calls of Ray are not interrupted by signals, and block for
    minutes if Ray has died.

    Raises:
        KeyboardInterrupt: The run was interrupted before trials could start, or for the second time.
        RayDiedError: A process of Ray has died.
    """
    threading.Thread(target=_run_trials, args=[run], name="raycap-trials", daemon=True).start()
    while True:
        try:
            if run.connection.processes:
                run.connection.processes.check()
            wait([run.ended], POLL_INTERVAL_S)
            if run.ended.done():
                if run.connection.processes:
                    run.connection.processes.check()  # the trials may have ended because Ray died
                return run.ended.result()
        except KeyboardInterrupt:
            if run.queue is None or run.queue.was_stopped:
                raise
            run.queue.stop()
            run.console.print("Stopping: trials save a checkpoint. Press Ctrl-C again to stop at once.", style="yellow")


def _run_trials(run: _RayRun) -> None:
    try:
        run.ended.set_result(_run_on_ray(run))
    except BaseException as error:
        run.ended.set_exception(error)


def _conclude_without_ray(job: Job, run: RunRecord, ending: Ending) -> Outcome:
    """Close the sweep in this process, from what is stored.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    from raycap.cluster.analyst import Analyst

    analyst = Analyst(job.sweep.model_dump_json(), job.lease.id)
    analyst.open(run.slots)
    if ending is Ending.INTERRUPTED:
        analyst.interrupt(run.model_dump_json())
        law = None
    else:
        law = analyst.conclude(run.model_dump_json(), analyst.status())
    delivery = analyst.delivery()
    return Outcome(law, ending, delivery.problems, is_logged=not delivery.undelivered)


def _close_without_ray(job: Job, run: RunRecord, ending: Ending, *problems: str) -> Outcome:
    """Close the sweep in this process after problems, and return the outcome with the problems."""
    if job.lease.was_taken:  # the runs in MLflow belong to another process
        return Outcome(None, ending, (*problems, job.lease.reason), is_logged=False)
    try:
        outcome = _conclude_without_ray(job, run, ending)
    except (TrackingError, OSError) as error:
        return Outcome(None, ending, (*problems, str(error)), is_logged=False)
    return replace(outcome, problems=(*problems, *outcome.problems))


def _meter(job: Job) -> Meter:
    """Return a meter of what the machines of the connected cluster cost, which continues at the sum of earlier runs.

    Raises:
        CannotRunError: A machine has no price.
    """
    prices, bound = job.sweep.spec.execution.prices, job.budget.usd
    if not prices:
        return Meter({}, job.began)
    refuse_without_price(machine_types(), prices)
    folder = SweepFolder(guarded(Storage.at(job.sweep.storage), job.lease.id), job.sweep.spec.name)

    def save(spent_usd: float) -> None:
        record = CostRecord(spent_usd=spent_usd, budget_usd=bound if math.isfinite(bound) else None)
        with suppress(OSError):  # the next call stores the sum again
            folder.write(SweepFolder.COST, record.model_dump_json())

    before = folder.read_cost()
    return Meter(prices, job.began, machine_types, save, before.spent_usd if before else 0.0)


def _run_on_ray(run: _RayRun) -> Outcome:
    import ray

    from raycap.cluster.analyst import AnalystActor

    job, sweep, storage_uri = run.job, run.job.sweep, run.job.sweep.storage
    # The actor imports MLflow while this process imports Ray Tune; each takes seconds.
    analyst: ActorHandle[Any] = AnalystActor.remote(sweep.model_dump_json(), job.lease.id)

    from raycap.cluster.progress import ProgressDisplay
    from raycap.cluster.resources import concurrent_slots, input_paths
    from raycap.cluster.signals import clear_signals
    from raycap.cluster.trial_queue import TrialQueue, work_of
    from raycap.cluster.tuner import record_failure, run_queue
    from raycap.cluster.worker import WorkerConfig

    storage, execution = Storage.at(storage_uri), sweep.spec.execution
    meter = _meter(job)
    run.slots = slots = concurrent_slots(execution, {("storage", storage_uri)} | input_paths(job.missing))
    run.has_opened = True
    opened: ray.ObjectRef[None] = analyst.open.remote(slots)
    config = WorkerConfig(
        execution,
        storage_uri,
        source_commit(),
        analyst,
        sweep.spec.analysis,
        job.lease.id,
        cpu_only=job.cpu_only,
        user_folders=tuple({folder_of(code.function) for trial in job.missing for code in trial.spec.user_code}),
    )
    _get(opened)
    spending = Spending(job.budget, execution.num_workers * execution.gpus_per_worker, job.began, meter)
    # Longest stacks first, so that fewer slots are idle while the last one runs.
    stacks = sorted(job.stacks, key=work_of, reverse=True)
    queue = TrialQueue(stacks, spending, is_held=lambda: not job.lease.is_reachable)
    progress = ProgressDisplay(job.missing, job.num_finished, analyst, run.console)

    def stop_because_of_loss() -> None:
        queue.stop()
        run.console.print(f"Stopping: {job.lease.reason}", style="yellow", soft_wrap=True)

    job.lease.on_loss(stop_because_of_loss)
    clear_signals()
    progress.start()
    run.queue = queue
    try:
        causes = run_queue(queue, config, run.connection.folder / "tune", slots=slots)
    finally:
        meter.save(time.monotonic())
        progress.stop()
        clear_signals()
    if run.connection.processes:
        run.connection.processes.check()  # otherwise trials that Ray's death has ended would count as failed
    job.lease.check()
    try:
        inside = {} if job.lease.is_lost else storage.folders(TRIALS_FOLDER)
        problem = job.lease.reason
    except OSError as error:
        problem = f"storage {storage.location()} cannot be used: {error}; {advice(error)}"
    if problem:
        if not job.lease.was_taken:
            _conclude(job, job.run_until_now(slots), Ending.INTERRUPTED, analyst)
        ray.kill(analyst)
        was_interrupted = queue.was_stopped and not job.lease.is_lost
        return Outcome(None, Ending.INTERRUPTED if was_interrupted else Ending.LOST, (problem,), is_logged=False)
    left = {trial.trial_id for trial in job.missing if RESULT_FILE not in inside.get(trial.trial_id, [])}
    failed = {trial_id for trial_id in left if FAILURE_FILE in inside.get(trial_id, [])}
    if not queue.was_stopped:
        for trial_id in (left & set(causes)) - failed:  # the driver died before it could write the failure
            record_failure(storage, trial_id, TrialError(causes[trial_id]), analyst)
        failed |= left & set(causes)
    ending = Ending.OVER
    if left - failed:
        ending = Ending.BUDGET if queue.stopped_by_budget and not queue.was_stopped else Ending.INTERRUPTED
    outcome = _conclude(job, job.run_until_now(slots), ending, analyst)
    ray.kill(analyst)
    return outcome


def _conclude(job: Job, run: RunRecord, ending: Ending, analyst: "ActorHandle[Any]") -> Outcome:
    """Let the analyst close the sweep, or close it in this process if the analyst has died too often to be restarted."""
    import ray

    try:
        law: ray.ObjectRef[str | None]
        if ending is Ending.INTERRUPTED:
            law = analyst.interrupt.remote(run.model_dump_json())
        else:
            law = analyst.conclude.remote(run.model_dump_json(), ray.get(analyst.status.remote()))
        sentence = ray.get(law)
        delivery = ray.get(analyst.delivery.remote())
        return Outcome(sentence, ending, delivery.problems, is_logged=not delivery.undelivered)
    except ray.exceptions.RayError as error:
        problem = (
            f"the analyst, the process that logs to MLflow, died too often: {root_cause(error)}; run the same command again "
            "to log what is missing"
        )
    return _close_without_ray(job, run, ending, problem)


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
