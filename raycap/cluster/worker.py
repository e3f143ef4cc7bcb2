"""Ray Train: the TorchTrainer of one trial, and what each of its workers does.

The driver and the controller of every trial import this module too, so what only a worker needs is imported in it.
"""

from pathlib import Path
from typing import Any

import ray.train
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raycap.results import Evaluation, TrialResult
from raycap.spec import ExecutionSpec, TrialSpec
from raycap.storage import Storage, model_folder

CONTROLLER_FAILURE_LIMIT = 10
READER_CPUS = 0.25
"""CPUs reserved for the Ray Data read task of a worker, out of the worker's own share."""


class TrialError(RuntimeError):
    """A trial that failed for a reason of its own and would fail again."""


def fit(
    spec: TrialSpec, execution: ExecutionSpec, storage_location: str, source_commit: str, analyst: ActorHandle
) -> TrialResult:
    """Train one trial on its workers, from its last checkpoint if there is one.

    Raises TrialError for failures that would repeat, Ray Train's TrainingFailedError after max_failures others.
    """
    storage = Storage.at(storage_location)
    trial_id = spec.trial_id
    on_gpu = execution.gpus_per_worker > 0
    resources = {"CPU": execution.cpus_per_worker - READER_CPUS}
    if on_gpu:
        resources["GPU"] = execution.gpus_per_worker
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "execution": execution.model_dump_json(),
            "storage": storage_location,
            "source_commit": source_commit,
            "analyst": analyst,
        },
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=execution.num_workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=trial_id,
            storage_path=storage.path("trials"),
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(
                max_failures=execution.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    outcome: dict[str, str] = trainer.fit().return_value
    if "error" in outcome:
        raise TrialError(outcome["error"])
    return TrialResult.model_validate_json(outcome["result"])


def _train_worker(config: dict[str, Any]) -> dict[str, str]:
    """What every worker runs. Returns {"result": JSON}, or {"error": why} where trying again would not help."""
    import torch

    from raycap.cluster.stream import ray_rows
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.trial import Place, run_trial

    spec = TrialSpec.model_validate_json(config["spec"])
    execution = ExecutionSpec.model_validate_json(config["execution"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(execution.cpus_per_worker)))
    # ray.train.torch.get_device() names a GPU even where there is none, so the device follows from the spec.
    device = torch.device("cuda", torch.cuda.current_device()) if execution.gpus_per_worker > 0 else torch.device("cpu")

    def report(evaluation: Evaluation | None, folder: Path | None) -> None:
        if evaluation is not None and rank == 0:
            config["analyst"].record_evaluation.remote(spec.trial_id, evaluation.model_dump_json())
        ray.train.report(
            {"step": evaluation.step} if evaluation else {},
            checkpoint=Checkpoint.from_directory(folder) if folder else None,
        )

    def run(resume_from: Path | None) -> dict[str, str]:
        try:
            trained = run_trial(
                spec,
                source_commit=config["source_commit"],
                storage=Storage.at(config["storage"]),
                open_rows=lambda source, start_step: ray_rows(source, start_step, num_cpus=READER_CPUS),
                report=report,
                resume_from=resume_from,
                checkpoint_every=execution.checkpoint_every_steps,
                place=Place(rank, context.get_world_size(), device),
            )
        except (DivergedError, ValueError) as error:  # the same numbers, or the same data, would come out again
            return {"error": f"{type(error).__name__}: {error}"}
        if rank == 0:
            trained.save_model(Storage.at(config["storage"]), model_folder(spec.trial_id))
        return {"result": trained.result.model_dump_json()}

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return run(None)
    with checkpoint.as_directory() as folder:
        return run(Path(folder))
