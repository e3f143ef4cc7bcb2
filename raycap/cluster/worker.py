"""Training of one trial, or of a group of trials as one stack, on Ray Train workers.

The drivers of all trials import this module too, so modules that only a worker needs are imported inside its function.
"""

import platform
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.actor import ActorHandle
from ray.train.v2.api.config import RunConfig, ScalingConfig

from raycap.cluster import new_workers
from raycap.cluster.errors import TrainingError, TrialError
from raycap.cluster.ray_version import reuses_workers
from raycap.cluster.retries import RetryRule
from raycap.cluster.signals import poll_signal
from raycap.cluster.stall import StallGuard
from raycap.cluster.torch_backend import WorkersConfig
from raycap.errors import LeaseLostError
from raycap.host.user_code import add_folders
from raycap.learner.signals import PausedError
from raycap.results import Evaluation, PlannedTrial, TrialResult
from raycap.spec import AnalysisSpec, ExecutionSpec
from raycap.storage import Storage, checkpoint_steps, model_folder, trial_folder
from raycap.storage.lock import LeaseId, guarded
from raycap.storage.retries import TRIAL_RETRIES

READER_CPUS = 0.25
"""CPUs reserved for the Ray Data read task of a worker. They are part of the worker's `cpus_per_worker`."""


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration that the driver of a trial and its workers share. It is the same for all trials of a sweep."""

    execution: ExecutionSpec
    storage: str
    source_commit: str
    analyst: ActorHandle[Any]
    analysis: AnalysisSpec
    """Analysis that `execution.early_stop` evaluates the losses with."""
    lease: LeaseId | None = None
    """Lock of the sweep. Once it is lost, nothing is written any more."""
    cpu_only: bool = False
    """Train on the CPU even if `execution` reserves GPUs. The GPUs are then only a resource that Ray schedules by, so tests
    can check the placement of workers on machines without GPUs."""
    user_folders: tuple[str, ...] = ()
    """Folders in which the driver of the sweep found modules of the user."""

    def open_storage(self) -> Storage:
        """Return the storage of the sweep."""
        return guarded(Storage.at(self.storage, TRIAL_RETRIES), self.lease)

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on a GPU."""
        return self.execution.gpus_per_worker > 0 and not self.cpu_only


def train_group(
    trials: tuple[PlannedTrial, ...], finished: frozenset[str], config: WorkerConfig
) -> dict[str, TrialResult | TrialError]:
    """Train a group of trials together from their last common checkpoint, or from the start.

    Args:
        trials: Trials of the group.
        finished: Ids of those that have a result already and train along, since the numbers of the others depend on them.
        config: Configuration of the sweep.

    Returns:
        By trial_id, the result of a trial, or the error of a trial that would fail again if it were retried. Trials that
        were paused before their end, and finished ones, are missing.

    Raises:
        ray.train.v2.api.exceptions.TrainingFailedError: `RetryRule` gave up after other failures.
    """
    execution, storage = config.execution, config.open_storage()
    reserves_gpus = execution.gpus_per_worker > 0
    resources = {"CPU": execution.cpus_per_worker - READER_CPUS}
    if reserves_gpus:
        resources["GPU"] = execution.gpus_per_worker

    def steps_done() -> int:
        names = [storage.names(trial_folder(trial.trial_id)) for trial in trials]
        return sum(max(checkpoint_steps(names_of_trial), default=0) for names_of_trial in names)

    rule = RetryRule(execution.max_failures, steps_done)
    parameters = {
        "trials": [trial.model_dump_json() for trial in trials],
        "finished": finished,
        "config": config,
        "reports_start": not reuses_workers(execution),
    }
    run_config = RunConfig(
        name=trials[0].trial_id, storage_path=storage.path("trials"), storage_filesystem=storage.filesystem
    )
    options: dict[str, Any] = {
        "train_loop_config": parameters,
        "torch_config": WorkersConfig(backend="nccl" if config.on_gpu else "gloo"),
        "scaling_config": ScalingConfig(
            num_workers=execution.num_workers, use_gpu=reserves_gpus, resources_per_worker=resources
        ),
    }
    result: Any  # declared as the class of Train v1, which has no return_value
    if reuses_workers(execution):
        from raycap.cluster.worker_reuse import ReusingTrainer

        result = ReusingTrainer(
            _train_worker,
            run_config=run_config,
            rule=rule,
            report_start=lambda: _report_start(trials, finished, config),
            **options,
        ).fit()
    else:
        result = new_workers.fit(_train_worker, run_config, rule, **options)
    records: dict[str, dict[str, Any]] = result.return_value
    return {
        trial_id: TrialError.of(**record) if "error" in record else TrialResult.model_validate_json(record["result"])
        for trial_id, record in records.items()
    }


def _report_start(trials: Sequence[PlannedTrial], finished: frozenset[str], config: WorkerConfig) -> None:
    """Report to the analyst that the workers of a group have started."""
    storage = config.open_storage()
    steps = [set(checkpoint_steps(storage.names(trial_folder(trial.trial_id)))) for trial in trials]
    afresh = not set.intersection(*steps)
    for trial in trials:
        if trial.trial_id not in finished:
            config.analyst.start_trial.remote(trial.trial_id, afresh)


def _train_worker(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Train the trials of a group. Every worker runs this function. A worker that hangs is killed and restarted."""
    config: WorkerConfig = parameters["config"]
    add_folders(config.user_folders)
    if parameters["reports_start"]:
        new_workers.report_start()
        if ray.train.get_context().get_world_rank() == 0:
            trials = [*map(PlannedTrial.model_validate_json, parameters["trials"])]
            _report_start(trials, parameters["finished"], config)
    with StallGuard() as guard:
        return _train(parameters, guard)


def _train(parameters: dict[str, Any], guard: StallGuard) -> dict[str, dict[str, Any]]:
    """Train the trials of a group in a worker.

    Checkpoints are not reported to Ray Train. Each trial stores its own, so that it can resume in a different group.

    Returns:
        By trial_id, {"result": JSON}, or the record of an error that would occur again; empty if the trials were paused.
        Ray Train uses the return value of rank 0, which alone returns results.
    """
    import torch

    from raycap.cluster.data_stream import ray_rows
    from raycap.learner.checkpoints import Checkpoints
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.kept_models import ModelKeeper
    from raycap.learner.replica import WorkerContext
    from raycap.learner.trial import run_trials

    config: WorkerConfig = parameters["config"]
    planned = {trial.trial_id: trial for trial in map(PlannedTrial.model_validate_json, parameters["trials"])}
    finished: frozenset[str] = parameters["finished"]
    unfinished = [trial_id for trial_id in planned if trial_id not in finished]
    execution, storage = config.execution, config.open_storage()
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    # ray.train.torch.get_device() returns a GPU even if CUDA is not available, so the device follows from the configuration.
    device = torch.device("cpu")
    if config.on_gpu:
        if not torch.cuda.is_available():
            error = (
                f"Ray assigned a GPU of {platform.node()}, but torch {torch.__version__} finds no CUDA device there; "
                "install a CUDA build of torch that matches the driver"
            )
            return {trial_id: _error_record(RuntimeError(error)) for trial_id in unfinished}
        device = torch.device("cuda", torch.cuda.current_device())

    def report(trial_id: str, evaluation: Evaluation) -> None:
        if rank == 0:
            config.analyst.record_evaluation.remote(trial_id, evaluation.model_dump_json())

    def may_end(trial_id: str, evaluations: Sequence[Evaluation]) -> bool:
        if not execution.early_stop:
            return False
        from raycap.cluster.early_stopping import ends_early  # imports raycap.analysis

        return ends_early(planned[trial_id], config.analysis, execution.early_stop, evaluations)

    step: int | None = None

    def record_step(completed: int) -> None:
        nonlocal step
        step = completed
        guard.record_step()

    try:
        outcomes = run_trials(
            tuple(trial.spec for trial in planned.values()),
            source_commit=config.source_commit,
            storage=storage,
            open_rows=lambda sources, start_step: ray_rows(
                sources, start_step, num_cpus=READER_CPUS, user_folders=config.user_folders
            ),
            report=report,
            ends_early=may_end,
            finished=finished,
            checkpoints=Checkpoints(storage),
            checkpoint_every_s=execution.checkpoint_every_s,
            keeper=ModelKeeper(storage, execution.keep_models),
            poll_signal=poll_signal,
            on_step=record_step,
            context=WorkerContext(rank, context.get_world_size(), device),
            compiled=execution.compile,
            graphed=execution.cuda_graph,
        )
    except (PausedError, LeaseLostError):
        return {}
    except (DivergedError, ValueError) as error:  # deterministic errors
        return {trial_id: _error_record(error, step) for trial_id in unfinished}
    except Exception as error:
        if step is None:
            raise
        raise TrainingError(step, error) from error
    results: dict[str, dict[str, Any]] = {}
    for trial_id, outcome in zip(planned, outcomes, strict=True):
        if trial_id in finished:
            continue
        if isinstance(outcome, DivergedError):
            results[trial_id] = _error_record(outcome)
        elif rank == 0:
            with suppress(LeaseLostError):  # the trial then has no result, as if it was paused
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
