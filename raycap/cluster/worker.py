"""Trains one trial, or a group of trials as one stack, on Ray Train workers.

The drivers of all trials import this module too, so modules that only a worker needs are imported inside its function.
"""

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
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from raycap.cluster.errors import TrainingError, TrialError
from raycap.cluster.signals import poll_signal
from raycap.cluster.stall import StallGuard
from raycap.cluster.trial_queue import PLACED
from raycap.cluster.worker_reuse import ReusingTrainer, WorkersConfig
from raycap.learner.signals import PausedError
from raycap.results import Evaluation, PlannedTrial, TrialResult
from raycap.spec import AnalysisSpec, ExecutionSpec
from raycap.storage import Storage, checkpoint_steps, model_folder, trial_folder

CONTROLLER_FAILURE_LIMIT = 10
"""Number of errors in starting the workers of a trial before it fails (see `ray.train.FailureConfig`)."""
READER_CPUS = 0.25
"""CPUs reserved for the Ray Data read task of a worker. They are part of the worker's `cpus_per_worker`."""


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration that the driver of a trial and its workers share. It is the same for all trials of a sweep."""

    execution: ExecutionSpec
    storage: str
    source_commit: str
    analyst: ActorHandle
    analysis: AnalysisSpec
    """Analysis that `execution.early_stop` evaluates the losses with."""
    cpu_only: bool = False
    """Train on the CPU even if `execution` reserves GPUs. The GPUs are then only a resource that Ray schedules by, so tests
    can check the placement of workers on machines without GPUs."""

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on a GPU."""
        return self.execution.gpus_per_worker > 0 and not self.cpu_only


class _ReportPlacement(WorkerGroupCallback):
    """Reports to Tune and to the analyst that the workers of a trial have started, also after every restart."""

    def __init__(self, report_start: Callable[[], None]) -> None:
        self._report_start = report_start

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray Train once the workers run."""
        ray.tune.report({PLACED: True})
        self._report_start()


class _ForwardToTune(UserCallback):
    """Forwards the workers' reports to Tune, which works because the controller runs in the process of the Tune trial."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train once all workers have reported. Only the metrics of rank 0 are used."""
        ray.tune.report(metrics[0])


def train_group(trials: tuple[PlannedTrial, ...], config: WorkerConfig) -> dict[str, TrialResult | TrialError]:
    """Train a group of trials together, each from its last checkpoint if it has one.

    Returns:
        By trial_id, the result of a trial, or the error of a trial that would fail again if it were retried. Trials that
        were paused before their end are missing.

    Raises:
        ray.train.v2.api.exceptions.TrainingFailedError: `RetryPolicy` gave up after other failures.
    """
    execution, storage = config.execution, Storage.at(config.storage)
    reserves_gpus = execution.gpus_per_worker > 0
    resources = {"CPU": execution.cpus_per_worker - READER_CPUS}
    if reserves_gpus:
        resources["GPU"] = execution.gpus_per_worker

    def steps_done() -> int:
        names = [storage.names(trial_folder(trial.trial_id)) for trial in trials]
        return sum(max(checkpoint_steps(names_of_trial), default=0) for names_of_trial in names)

    def report_start() -> None:
        for trial in trials:
            afresh = not checkpoint_steps(storage.names(trial_folder(trial.trial_id)))
            config.analyst.start_trial.remote(trial.trial_id, afresh)

    trainer = ReusingTrainer(
        _train_worker,
        train_loop_config={"trials": [trial.model_dump_json() for trial in trials], "config": config},
        torch_config=WorkersConfig(backend="nccl" if config.on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=reserves_gpus, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=trials[0].trial_id,
            storage_path=storage.path("trials"),
            storage_filesystem=storage.filesystem,
            callbacks=[_ReportPlacement(report_start), *([_ForwardToTune()] if execution.early_stop else [])],
            failure_config=FailureConfig(
                max_failures=execution.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT
            ),
        ),
        steps_done=steps_done,
    )
    records: dict[str, dict[str, Any]] = trainer.fit().return_value
    return {
        trial_id: TrialError.of(**record) if "error" in record else TrialResult.model_validate_json(record["result"])
        for trial_id, record in records.items()
    }


def _train_worker(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Train the trials of a group; the function that every worker runs. A worker that hangs is killed and restarted."""
    with StallGuard() as guard:
        return _train(parameters, guard)


def _train(parameters: dict[str, Any], guard: StallGuard) -> dict[str, dict[str, Any]]:
    """Train the trials of a group in a worker.

    Ray Train is given no checkpoints. Each trial stores its own, so that it can resume in a different group.

    Returns:
        By trial_id, {"result": JSON}, or the record of an error that would occur again. Trials are missing if they were
        paused or not started before the pause. Ray Train uses the return value of rank 0, which alone returns results.
    """
    import torch

    from raycap.cluster.data_stream import ray_rows
    from raycap.learner.checkpoints import Checkpoints
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.replica import WorkerContext
    from raycap.learner.trial import run_trials

    config: WorkerConfig = parameters["config"]
    planned = {trial.trial_id: trial for trial in map(PlannedTrial.model_validate_json, parameters["trials"])}
    execution, storage = config.execution, Storage.at(config.storage)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    # ray.train.torch.get_device() returns a GPU even if CUDA is not available, so the device follows from the configuration.
    device = torch.device("cpu")
    if config.on_gpu:
        if not torch.cuda.is_available():
            error = f"Ray assigned a GPU of {platform.node()}, but torch {torch.__version__} finds no CUDA device there"
            return {trial_id: _error_record(RuntimeError(error)) for trial_id in planned}
        device = torch.device("cuda", torch.cuda.current_device())

    def report(trial_id: str, evaluation: Evaluation) -> None:
        if rank == 0:
            config.analyst.record_evaluation.remote(trial_id, evaluation.model_dump_json())
        if execution.early_stop:
            from raycap.cluster.early_stopping import evaluation_metrics

            # Every worker must report, because Ray Train waits for all of them.
            ray.train.report(evaluation_metrics(planned[trial_id], config.analysis, evaluation) if rank == 0 else {})

    step: int | None = None

    def record_step(completed: int) -> None:
        nonlocal step
        step = completed
        guard.record_step()

    checkpoints = Checkpoints(storage)
    results: dict[str, dict[str, Any]] = {}
    # There is one stack unless a replica diverged before a restart: its last checkpoint is then older than the others'.
    for trial_ids in checkpoints.resumable_groups(list(planned)):
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
                graphed=execution.cuda_graph,
            )
        except PausedError:
            break
        except (DivergedError, ValueError) as error:  # deterministic errors
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
    """Return the record of an error that would occur again: the arguments of `TrialError.of`."""
    return {
        "error": f"{type(error).__name__}: {error}",
        "after_step": after_step,
        "traceback": "".join(traceback.format_exception(error)),
    }
