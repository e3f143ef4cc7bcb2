"""Execution of the unfinished trials with Ray Tune, one Tune trial per group of trials that train together."""

import contextlib
import io
import logging
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.actor import ActorHandle

from raycap.cluster.errors import TrialError, completed_steps, root_cause
from raycap.cluster.ray_version import reuses_workers
from raycap.cluster.signals import poll_signal
from raycap.cluster.trial_queue import StopWhenDone, TrialQueue
from raycap.cluster.worker import WorkerConfig, train_group
from raycap.errors import LeaseLostError
from raycap.learner.signals import Signal
from raycap.results import Failure, PlannedTrial
from raycap.storage import Storage, failure_path, forget_checkpoints, result_path
from raycap.storage.checksum import verify_checksum, with_checksum
from raycap.storage.retries import TRIAL_RETRIES, with_retries


def run_queue(queue: TrialQueue, config: WorkerConfig, folder: Path, *, slots: int) -> dict[str, str]:
    """Run the groups of the queue, at most `slots` at once, until the queue is over.

    Tune writes its state, which raycap never reads, into `folder`, which must not exist yet.

    Each trial ends with a result.json or a failure.json, unless it was paused. Returns the causes of failure by trial_id,
    including those that could not be written to a failure.json.

    Drivers reserve no CPU. If each had one, the drivers could occupy all CPUs of a small cluster and wait for their own
    workers for ever. A driver that dies is restarted up to `max_failures` times, and its trials resume from their
    checkpoints.
    """

    # A closure instead of ray.tune.with_parameters, which puts the parameters into the object store: Ray ends a process that
    # owns objects there as soon as the store dies, and the session could not close the sweep.
    def drive(parameters: dict[str, Any]) -> dict[str, Any]:
        return _drive_trials(parameters, config)

    folder.mkdir()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(drive, {"node:__internal_head__": 0.001}),
        tune_config=ray.tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=StopWhenDone(queue),
            failure_config=ray.tune.FailureConfig(max_failures=config.execution.max_failures),
        ),
    )
    # Tune logs every driver that dies; the sweep lists failures at its end.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):  # Tune prints even with verbose=0
        try:
            grid = tuner.fit()
        finally:
            if reuses_workers(config.execution):
                from raycap.cluster.worker_reuse import free_placement_groups

                free_placement_groups(dead_drivers_only=False)
    causes: dict[str, str] = {}
    for outcome in (grid[index] for index in range(len(grid))):
        if outcome.error is not None:
            group = queue.group_of(Path(outcome.path).name)  # the folder's name is the id, as set above
            causes |= {trial.trial_id: root_cause(outcome.error) for trial in group}
        elif outcome.metrics:
            causes |= outcome.metrics.get("causes", {})
    return causes


def _drive_trials(parameters: dict[str, Any], config: WorkerConfig) -> dict[str, Any]:
    """Train a group of trials and store their results; the function of a Tune trial.

    A result.json is the last file that is written for a trial. Checkpoints are deleted once all results of the group are
    written. If the driver is killed between the results, the group resumes from its last common checkpoint and writes the
    others without training. Failures are recorded and not raised: they have been retried already (see `RetryRule`), so Tune
    must not retry them again.

    Returns:
        `causes`, the failures by trial_id, and `all_finished`, whether every trial of the group has a result.
    """
    storage, analyst = config.open_storage(), config.analyst
    causes: dict[str, str] = {}
    group = tuple(map(PlannedTrial.model_validate_json, parameters["trials"]))
    # Finished trials train along with the others of their stack. An earlier driver of the group may also have been killed
    # after it wrote some of the results.
    finished = frozenset(trial.trial_id for trial in group if storage.exists(result_path(trial.trial_id)))
    for trial_id in finished:
        analyst.record_result.remote(verify_checksum(storage.read(result_path(trial_id))))
    trials = tuple(trial for trial in group if trial.trial_id not in finished)
    if not trials:
        _forget(storage, finished)
        return {"causes": causes, "all_finished": True}

    def fail(trial_id: str, error: BaseException) -> None:
        causes[trial_id] = record_failure(storage, trial_id, error, analyst).cause

    if poll_signal() is Signal.PAUSE:
        return {"causes": causes, "all_finished": False}
    try:
        for trial in trials:
            storage.delete(failure_path(trial.trial_id))
        # Before it starts workers, Ray Train also writes a file to the storage, without retries of its own.
        outcomes = with_retries(lambda: train_group(group, finished, config), TRIAL_RETRIES)
    except LeaseLostError:
        return {"causes": causes, "all_finished": False}
    except Exception as error:
        for trial in trials:
            fail(trial.trial_id, error)
        return {"causes": causes, "all_finished": False}
    written: set[str] = set()
    for trial_id, outcome in outcomes.items():
        if isinstance(outcome, TrialError):
            fail(trial_id, outcome)
            continue
        try:
            storage.write(result_path(trial_id), with_checksum(outcome.model_dump_json(indent=1)))
        except LeaseLostError:
            return {"causes": causes, "all_finished": False}
        except OSError as error:
            # For example a full disk. The checkpoint of the last step remains, from which a later run writes the result.
            fail(trial_id, error)
            continue
        written.add(trial_id)
        analyst.record_result.remote(outcome.model_dump_json())
    # Unwritten results need the checkpoints of the whole stack. Diverged trials keep theirs: the next run fails at once.
    if written and all(
        trial_id in written or isinstance(outcome, TrialError) for trial_id, outcome in outcomes.items()
    ):
        _forget(storage, finished | written)
    analyst.refresh.remote()
    return {"causes": causes, "all_finished": len(outcomes) == len(trials) and not causes}


def _forget(storage: Storage, trial_ids: Iterable[str]) -> None:
    """Delete the checkpoints of finished trials. Errors are ignored, because files that remain only take up space."""
    for trial_id in trial_ids:
        with contextlib.suppress(OSError):
            forget_checkpoints(storage, trial_id)


def record_failure(storage: Storage, trial_id: str, error: BaseException, analyst: ActorHandle[Any]) -> Failure:
    """Write a trial's failure.json, if the storage can still be written, and report the failure to the analyst."""
    failure = Failure(
        trial_id=trial_id,
        cause=root_cause(error),
        traceback="".join(traceback.format_exception(error)),
        step=completed_steps(error),
    )
    with contextlib.suppress(OSError):
        storage.write(failure_path(trial_id), failure.model_dump_json(indent=1))
    with contextlib.suppress(ray.exceptions.RayError):  # other trials continue if the analyst is dead
        ray.get(analyst.record_failure.remote(failure.model_dump_json()))
    return failure
