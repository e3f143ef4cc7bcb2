"""Ray Train: the TorchTrainer of one trial, or of a group of them, and what each of its workers does.

The driver and the controller of every trial import this module too, so what only a worker needs is imported in it.
"""

import os
import platform
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.tune
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from raycap.cluster.errors import TrainingError, TrialError
from raycap.cluster.signals import poll_signal
from raycap.cluster.trial_queue import PLACED
from raycap.cluster.worker_reuse import ReusingTrainer
from raycap.learner.signals import PausedError
from raycap.results import Evaluation, PlannedTrial, TrialResult
from raycap.spec import AnalysisSpec, ExecutionSpec
from raycap.storage import Storage, checkpoint_steps, model_folder, trial_folder

CONTROLLER_FAILURE_LIMIT = 10
PRETEND_GPUS = "RAYCAP_PRETEND_GPUS"
"""Where this is set in the environment, GPUs are Ray's word alone, and trials that take them train on the CPU: to rehearse
where a cluster would place them."""
READER_CPUS = 0.25
"""CPUs reserved for the Ray Data read task of a worker, out of the worker's own share."""


@dataclass(frozen=True)
class WorkerConfig:
    """All that a driver and its workers must know beside the trials."""

    execution: ExecutionSpec
    storage: str
    source_commit: str
    analyst: ActorHandle
    analysis: AnalysisSpec
    """What early stop reads losses by."""


class _Placed(WorkerGroupCallback):
    """Says when there is room for the workers of a trial, at once or after hours; again after every failure."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def after_worker_group_start(self, worker_group: Any) -> None:
        """The workers run."""
        ray.tune.report({PLACED: True})
        self._tell()


class _ToTune(UserCallback):
    """Hands what workers report to the scheduler of Tune: the controller runs in the driver, which is a Tune trial."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """All workers have reported; the first one's numbers are those of all."""
        ray.tune.report(metrics[0])


def fit(trials: tuple[PlannedTrial, ...], config: WorkerConfig) -> dict[str, TrialResult | TrialError]:
    """Train trials together on their workers, each from its last checkpoint if there is one.

    Returns results by trial_id; of trials that failed and would fail again, why; nothing of those that were asked to pause
    before their end.
    Raises Ray Train's TrainingFailedError after too many other failures (see retries.py).
    """
    execution, storage = config.execution, Storage.at(config.storage)
    on_gpu = execution.gpus_per_worker > 0
    resources = {"CPU": execution.cpus_per_worker - READER_CPUS}
    if on_gpu:
        resources["GPU"] = execution.gpus_per_worker

    def steps_done() -> int:
        names = [storage.names(trial_folder(trial.trial_id)) for trial in trials]
        return sum(max(checkpoint_steps(mine), default=0) for mine in names)

    def tell_start() -> None:
        for trial in trials:
            afresh = not checkpoint_steps(storage.names(trial_folder(trial.trial_id)))
            config.analyst.start_trial.remote(trial.trial_id, afresh)

    trainer = ReusingTrainer(
        _train_worker,
        train_loop_config={"trials": [trial.model_dump_json() for trial in trials], "config": config},
        torch_config=TorchConfig(backend="nccl" if on_gpu and PRETEND_GPUS not in os.environ else "gloo"),
        scaling_config=ScalingConfig(num_workers=execution.num_workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=trials[0].trial_id,
            storage_path=storage.path("trials"),
            storage_filesystem=storage.filesystem,
            callbacks=[_Placed(tell_start), *([_ToTune()] if execution.early_stop else [])],
            failure_config=FailureConfig(
                max_failures=execution.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT
            ),
        ),
        steps_done=steps_done,
    )
    outcomes: dict[str, dict[str, Any]] = trainer.fit().return_value
    return {
        trial_id: TrialError.of(**told) if "error" in told else TrialResult.model_validate_json(told["result"])
        for trial_id, told in outcomes.items()
    }


def _train_worker(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What every worker runs. Returns by trial_id {"result": JSON}, or {"error": why, ...} where trying again would not
    help; nothing of trials that were asked to pause.

    Ray Train is told of no checkpoint: trials keep their own, whichever trained together.
    """
    import torch

    from raycap.cluster.data_stream import ray_rows
    from raycap.learner.checkpoints import Checkpoints
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.trial import WorkerContext, run_trials

    config: WorkerConfig = parameters["config"]
    planned = {trial.trial_id: trial for trial in map(PlannedTrial.model_validate_json, parameters["trials"])}
    execution, storage = config.execution, Storage.at(config.storage)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    # ray.train.torch.get_device() names a GPU even where there is none, so the device follows from the spec.
    device = torch.device("cpu")
    if execution.gpus_per_worker and PRETEND_GPUS not in os.environ:
        if not torch.cuda.is_available():
            error = f"Ray gave it a GPU of {platform.node()}, but torch {torch.__version__} finds no CUDA there"
            return {trial_id: _error_record(RuntimeError(error)) for trial_id in planned}
        device = torch.device("cuda", torch.cuda.current_device())

    def report(trial_id: str, evaluation: Evaluation) -> None:
        if rank == 0:
            config.analyst.record_evaluation.remote(trial_id, evaluation.model_dump_json())
        if execution.early_stop:
            from raycap.cluster.early_stopping import evaluation_metrics

            # Every worker must report, or Ray Train waits for it.
            ray.train.report(evaluation_metrics(planned[trial_id], config.analysis, evaluation) if rank == 0 else {})

    step: int | None = None

    def record_step(completed: int) -> None:
        nonlocal step
        step = completed

    checkpoints = Checkpoints(storage)
    results: dict[str, dict[str, Any]] = {}
    for trial_ids in checkpoints.resumable_groups(list(planned)):  # one group unless a trial diverged before a crash
        specs = tuple(planned[trial_id].spec for trial_id in trial_ids)
        step = None
        try:
            outcomes = run_trials(
                specs,
                source_commit=config.source_commit,
                storage=storage,
                open_rows=lambda sources, start_step: ray_rows(sources, start_step, num_cpus=READER_CPUS),
                report=report,
                checkpoints=checkpoints,
                checkpoint_every_s=execution.checkpoint_every_s,
                poll_signal=partial(poll_signal, trial_ids),
                on_step=record_step,
                context=WorkerContext(rank, context.get_world_size(), device),
                compiled=execution.compile,
            )
        except PausedError:
            break
        except (DivergedError, ValueError) as error:  # the same numbers, or the same data, would come out again
            results |= {trial_id: _error_record(error, step) for trial_id in trial_ids}
            continue
        except Exception as error:
            if step is None:
                raise
            raise TrainingError(step, error) from error
        for trial_id, outcome in zip(trial_ids, outcomes, strict=True):
            if isinstance(outcome, DivergedError):
                results[trial_id] = _error_record(outcome)
            elif rank == 0:
                outcome.save_model(storage, model_folder(trial_id))
                results[trial_id] = {"result": outcome.result.model_dump_json()}
    return results


def _error_record(error: Exception, after_step: int | None = None) -> dict[str, Any]:
    """What a worker says of an error that would come again."""
    told = "".join(traceback.format_exception(error))
    return {"error": f"{type(error).__name__}: {error}", "after_step": after_step, "traceback": told}
