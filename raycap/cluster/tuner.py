"""Ray Tune: one Tune trial per TrialSpec, or per stack of them, as many at once as the cluster holds, and only those that
are not finished yet.
"""

import contextlib
import io
import logging
import tempfile
import traceback
from typing import Any

import ray
import ray.tune
from ray.actor import ActorHandle
from ray.tune.schedulers import FIFOScheduler

from raycap.cluster.errors import TrialError, completed_steps, root_cause
from raycap.cluster.signals import poll_signal
from raycap.cluster.trial_queue import StopWhenDone, TrialQueue
from raycap.cluster.worker import WorkerConfig, fit
from raycap.cluster.worker_reuse import free_placement_groups
from raycap.learner.signals import Signal
from raycap.results import Failure, PlannedTrial
from raycap.spec import ExecutionSpec
from raycap.storage import Storage, failure_path, forget_checkpoints, result_path
from raycap.storage.checksum import verify_checksum, with_checksum


def run_trials(queue: TrialQueue, config: WorkerConfig, *, slots: int) -> dict[str, str]:
    """Run the groups of the queue, each trial to its result.json or failure.json, as long as the queue goes on.

    Returns causes of failure by trial_id, whether or not they could be written to a failure.json.

    Drivers hold no CPU: with one each they could fill a small cluster and wait for ever for their own workers. One that
    dies is started again up to max_failures times, and its trials go on from their checkpoints.
    """
    with tempfile.TemporaryDirectory(prefix="raycap-tune-") as folder:  # Tune's own notes; relaunching never reads them
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(_drive_trials, config=config), {"node:__internal_head__": 0.001}
            ),
            tune_config=ray.tune.TuneConfig(
                search_alg=queue,
                scheduler=_scheduler(config.execution),
                num_samples=-1,
                max_concurrent_trials=slots,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                stop=StopWhenDone(queue),
                failure_config=ray.tune.FailureConfig(max_failures=config.execution.max_failures),
            ),
        )
        logging.getLogger("ray.tune").setLevel(
            logging.CRITICAL
        )  # it logs every driver that dies; failures are told at the end
        with contextlib.redirect_stdout(io.StringIO()):  # Tune talks whatever its verbosity; Progress says it better
            try:
                grid = tuner.fit()
            finally:
                free_placement_groups(of_the_dead=False)
        causes: dict[str, str] = {}
        for outcome in grid:
            if outcome.error is not None:
                trials = map(PlannedTrial.model_validate_json, outcome.parameters["trials"])
                causes |= {trial.trial_id: root_cause(outcome.error) for trial in trials}
            elif outcome.metrics:
                causes |= outcome.metrics.get("causes", {})
        return causes


def _scheduler(execution: ExecutionSpec) -> FIFOScheduler:
    if not execution.early_stop:
        return FIFOScheduler()
    from raycap.cluster.early_stopping import EarlyStopping  # loads what reads losses

    return EarlyStopping(execution.early_stop)


def _drive_trials(parameters: dict[str, Any], config: WorkerConfig) -> dict[str, Any]:
    """The Tune trial: train, then write every result.json last. What fails is told, not raised: it would not help to try
    again what Ray Train has tried often enough.
    """
    storage, analyst = Storage.at(config.storage), config.analyst
    causes: dict[str, str] = {}
    asked = tuple(map(PlannedTrial.model_validate_json, parameters["trials"]))
    # A driver before this one may have been killed between its results.
    done = {trial.trial_id for trial in asked if storage.exists(result_path(trial.trial_id))}
    for trial_id in done:
        analyst.record_result.remote(verify_checksum(storage.read(result_path(trial_id))))
    trials = tuple(trial for trial in asked if trial.trial_id not in done)
    if not trials:
        return {"causes": causes, "all_finished": True}

    def fail(trial_id: str, error: BaseException) -> None:
        causes[trial_id] = record_failure(storage, trial_id, error, analyst).cause

    if poll_signal([trial.trial_id for trial in trials]) is Signal.PAUSE:
        return {"causes": causes, "all_finished": False}
    try:
        for trial in trials:
            storage.delete(failure_path(trial.trial_id))
        outcomes = fit(trials, config)
    except Exception as error:
        for trial in trials:
            fail(trial.trial_id, error)
        return {"causes": causes, "all_finished": False}
    for trial_id, outcome in outcomes.items():
        if isinstance(outcome, TrialError):
            fail(trial_id, outcome)
            continue
        try:
            storage.write(result_path(trial_id), with_checksum(outcome.model_dump_json(indent=1)))
            forget_checkpoints(storage, trial_id)
        except (
            OSError
        ) as error:  # a full disk: the checkpoint of the last step stays, and has all that the result needs
            fail(trial_id, error)
            continue
        analyst.record_result.remote(outcome.model_dump_json())
    analyst.refresh.remote()
    return {"causes": causes, "all_finished": len(outcomes) == len(trials) and not causes}


def record_failure(storage: Storage, trial_id: str, error: BaseException, analyst: ActorHandle) -> Failure:
    """Write a trial's failure.json, if the storage still takes it, and tell the analyst."""
    failure = Failure(
        trial_id=trial_id,
        cause=root_cause(error),
        traceback="".join(traceback.format_exception(error)),
        step=completed_steps(error),
    )
    with contextlib.suppress(OSError):
        storage.write(failure_path(trial_id), failure.model_dump_json(indent=1))
    with contextlib.suppress(ray.exceptions.RayError):  # without an analyst the others go on all the same
        ray.get(analyst.record_failure.remote(failure.model_dump_json()))
    return failure
