"""Ray Train: the TorchTrainer of one trial, or of a group of them, and what each of its workers does.

The driver and the controller of every trial import this module too, so what only a worker needs is imported in it.
"""

from dataclasses import dataclass
from typing import Any

import ray.train
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from raycap.cluster.warm import WarmTrainer
from raycap.results import Evaluation, TrialResult
from raycap.spec import ExecutionSpec, TrialSpec
from raycap.storage import Storage, model_folder

CONTROLLER_FAILURE_LIMIT = 10
READER_CPUS = 0.25
"""CPUs reserved for the Ray Data read task of a worker, out of the worker's own share."""


@dataclass(frozen=True)
class Setting:
    """All that a driver and its workers must know beside the trials."""

    execution: ExecutionSpec
    storage: str
    source_commit: str
    analyst: ActorHandle


def fit(specs: tuple[TrialSpec, ...], setting: Setting) -> dict[str, TrialResult | str]:
    """Train trials together on their workers, each from its last checkpoint if there is one.

    Returns results by trial_id; of trials that failed and would fail again, why. Raises Ray Train's TrainingFailedError
    after max_failures other failures.
    """
    execution, storage = setting.execution, Storage.at(setting.storage)
    on_gpu = execution.gpus_per_worker > 0
    resources = {"CPU": execution.cpus_per_worker - READER_CPUS}
    if on_gpu:
        resources["GPU"] = execution.gpus_per_worker
    trainer = WarmTrainer(
        _train_worker,
        train_loop_config={"specs": [spec.model_dump_json() for spec in specs], "setting": setting},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=execution.num_workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=specs[0].trial_id,
            storage_path=storage.path("trials"),
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(
                max_failures=execution.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT
            ),
        ),
    )
    outcomes: dict[str, dict[str, str]] = trainer.fit().return_value
    return {
        trial_id: told["error"] if "error" in told else TrialResult.model_validate_json(told["result"])
        for trial_id, told in outcomes.items()
    }


def _train_worker(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What every worker runs. Returns by trial_id {"result": JSON}, or {"error": why} where trying again would not help.

    Ray Train is told of no checkpoint: trials keep their own, whichever trained together.
    """
    import torch

    from raycap.cluster.stream import ray_rows
    from raycap.learner.checkpoints import Checkpoints
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.trial import Place, run_trials

    setting: Setting = config["setting"]
    specs = tuple(map(TrialSpec.model_validate_json, config["specs"]))
    execution, storage = setting.execution, Storage.at(setting.storage)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    # ray.train.torch.get_device() names a GPU even where there is none, so the device follows from the spec.
    device = torch.device("cuda", torch.cuda.current_device()) if execution.gpus_per_worker > 0 else torch.device("cpu")

    def report(trial_id: str, evaluation: Evaluation) -> None:
        if rank == 0:
            setting.analyst.record_evaluation.remote(trial_id, evaluation.model_dump_json())

    def told(error: Exception) -> dict[str, str]:
        return {"error": f"{type(error).__name__}: {error}"}

    try:
        outcomes = run_trials(
            specs,
            source_commit=setting.source_commit,
            storage=storage,
            open_rows=lambda sources, start_step: ray_rows(sources, start_step, num_cpus=READER_CPUS),
            report=report,
            checkpoints=Checkpoints(storage),
            checkpoint_every=execution.checkpoint_every_steps,
            place=Place(rank, context.get_world_size(), device),
            compiled=execution.compile,
        )
    except (DivergedError, ValueError) as error:  # the same numbers, or the same data, would come out again
        return {spec.trial_id: told(error) for spec in specs}
    if rank > 0:
        return {}
    results = {}
    for spec, outcome in zip(specs, outcomes, strict=True):
        if isinstance(outcome, DivergedError):
            results[spec.trial_id] = told(outcome)
            continue
        outcome.save_model(storage, model_folder(spec.trial_id))
        results[spec.trial_id] = {"result": outcome.result.model_dump_json()}
    return results
