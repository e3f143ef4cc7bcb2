"""Analyses of stored models on Ray, one task per trial."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from raycap.analysis.stored import read_result
from raycap.cluster.connection import ray_session
from raycap.cluster.errors import root_cause
from raycap.cluster.processes import RayDiedError, kill_children
from raycap.errors import CannotRunError
from raycap.host.user_code import add_folders, folder_of
from raycap.results import Moment, PlannedTrial, SweepRecord, TrialResult, source_commit
from raycap.spec import ExecutionSpec
from raycap.storage import Storage, result_path
from raycap.storage.checksum import verify_checksum
from raycap.storage.inspections import is_inspected
from raycap.storage.kept_models import final_moment, stored_moments
from raycap.storage.retries import TRIAL_RETRIES

if TYPE_CHECKING:
    from raycap.learner.inspections import Inspection

POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Inspections:
    """Analyses of the stored models of some finished trials."""

    inspections: tuple["Inspection", ...]
    all_models: bool
    """Whether the models of earlier steps are analysed too, beside the final ones."""

    def due(self, trial_id: str, storage: Storage) -> "tuple[TrialResult, list[tuple[Moment, Inspection]]]":
        """Return the result of a finished trial, and its models and analyses without a result, by model.

        Raises:
            ValueError: The result or the record of a model is not valid.
            OSError: A file is missing.
        """
        result = read_result(verify_checksum(storage.read(result_path(trial_id))))
        moments = stored_moments(storage, result) if self.all_models else (final_moment(result),)
        return result, [
            (moment, each)
            for moment in moments
            for each in self.inspections
            if not is_inspected(storage, result, moment, each.name, each.options)
        ]


@dataclass(frozen=True)
class _Config:
    """Configuration that the tasks of all trials share."""

    inspections: Inspections
    execution: ExecutionSpec
    storage: str
    source_commit: str
    user_folders: tuple[str, ...]


def inspect_trials(
    sweep: SweepRecord, finished: Sequence[PlannedTrial], storage: Storage, inspections: Inspections, console: Console
) -> list[PlannedTrial]:
    """Compute the missing results for finished trials of a sweep, and print progress and problems.

    Ray is not started if every result is stored already.

    Args:
        sweep: The sweep.
        finished: Finished trials of the sweep.
        storage: Its storage.
        inspections: The analyses.
        console: Console for the progress and the problems.

    Returns:
        The trials of which all results are stored now.

    Raises:
        CannotRunError: Ray cannot be used or has died, or no task can ever be scheduled.
    """
    problems: dict[str, str] = {}
    waiting: list[PlannedTrial] = []
    for trial in finished:
        try:
            if inspections.due(trial.trial_id, storage)[1]:
                waiting.append(trial)
        except (ValueError, OSError) as error:
            problems[trial.label] = str(error)
    num_done = 0

    def report(trial: PlannedTrial, cause: str | None) -> None:
        nonlocal num_done
        num_done += 1
        if cause:
            problems[trial.label] = cause
        console.print(f"{num_done} of {len(waiting)}: {trial.label} {'failed' if cause else 'done'}", soft_wrap=True)

    if waiting:
        run_inspections(sweep, waiting, inspections, report)
    for label, problem in problems.items():
        console.print(f"{label}: {problem}", style="red", soft_wrap=True)
    return [trial for trial in finished if trial.label not in problems]


def run_inspections(
    sweep: SweepRecord,
    trials: Sequence[PlannedTrial],
    inspections: Inspections,
    report: Callable[[PlannedTrial, str | None], None],
) -> None:
    """Analyse stored models of finished trials on Ray. Results that exist already are not computed again.

    Args:
        sweep: The sweep, whose `execution` sets the resources of a task.
        trials: Finished trials of the sweep with missing results.
        inspections: The analyses.
        report: Called after each trial with the cause of its failure, or None.

    Raises:
        CannotRunError: Ray cannot be used or has died, or no task can ever be scheduled.
    """
    with ray_session() as connection:
        config = _Config(
            inspections,
            sweep.spec.execution,
            sweep.storage,
            source_commit(),
            tuple({folder_of(code.function) for trial in trials for code in trial.spec.user_code}),
        )
        ended: Future[None] = Future()
        threading.Thread(target=_run_tasks, args=[trials, config, report, ended], daemon=True).start()
        try:
            # Calls of Ray block for minutes if Ray has died, so they are made in the other thread.
            while not ended.done():
                if connection.processes:
                    connection.processes.check()
                wait([ended], POLL_INTERVAL_S)
        except RayDiedError as error:
            kill_children()  # otherwise ray.shutdown would wait for them
            raise CannotRunError(str(error), "run the same command again to continue") from error
        except KeyboardInterrupt:
            if connection.processes:
                kill_children()
            raise
        ended.result()


def _run_tasks(
    trials: Sequence[PlannedTrial],
    config: _Config,
    report: Callable[[PlannedTrial, str | None], None],
    ended: Future[None],
) -> None:
    """Run a task for each trial, at most as many at once as trials of a sweep, and set the result of `ended`."""
    import ray

    from raycap.cluster.resources import concurrent_slots, input_paths

    execution = config.execution
    try:
        slots = concurrent_slots(execution, {("storage", config.storage)} | input_paths(trials))
        task = ray.remote(_inspect_trial).options(
            num_cpus=execution.cpus_per_worker,
            num_gpus=execution.gpus_per_worker,
            max_retries=execution.max_failures,
        )
        waiting = list(trials)
        running: dict[ray.ObjectRef[str | None], PlannedTrial] = {}
        while waiting or running:
            while waiting and len(running) < slots:
                trial = waiting.pop(0)
                running[task.remote(trial.trial_id, config)] = trial
            (reference,), _ = ray.wait(list(running))
            trial = running.pop(reference)
            try:
                report(trial, ray.get(reference))
            except ray.exceptions.RayError as error:
                report(trial, root_cause(error))
        ended.set_result(None)
    except BaseException as error:
        ended.set_exception(error)


def _inspect_trial(trial_id: str, config: _Config) -> str | None:
    """Compute and store the missing results of one trial, and return the cause of failure, if any. A task of Ray."""
    add_folders(config.user_folders)
    from raycap.learner.inspections import inspect_models

    storage, execution = Storage.at(config.storage, TRIAL_RETRIES), config.execution
    try:
        result, due = config.inspections.due(trial_id, storage)
        inspect_models(
            result,
            storage,
            due,
            source_commit=config.source_commit,
            device="cuda" if execution.gpus_per_worker else "cpu",
            num_threads=max(1, int(execution.cpus_per_worker)),
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
