"""A trial in this process without Ray, with the files that the workers of a sweep write for it."""

from collections.abc import Callable

import torch

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.hardware import num_threads_of_torch
from raycap.learner.replica import WorkerContext
from raycap.learner.trial import run_trial
from raycap.results import Evaluation, TrialResult, source_commit
from raycap.spec import TrialSpec
from raycap.storage import Storage, failure_path, forget_checkpoints, model_folder, result_path
from raycap.storage.checksum import with_checksum


def run_alone(
    spec: TrialSpec,
    storage: Storage,
    *,
    is_stored: bool,
    device: str,
    num_threads: int,
    report: Callable[[Evaluation], None],
) -> TrialResult:
    """Train and evaluate a resolved trial, and return its result.

    Args:
        spec: The resolved spec.
        storage: Storage of the parent model, and of the trial if `is_stored`.
        is_stored: Whether to save and resume checkpoints, and to write the model and the result.
        device: Device of torch.
        num_threads: Number of threads of torch.
        report: Called with each evaluation.
    """
    with num_threads_of_torch(num_threads):
        trained = run_trial(
            spec,
            source_commit=source_commit(),
            storage=storage,
            report=lambda _, evaluation: report(evaluation),
            checkpoints=Checkpoints(storage) if is_stored else None,
            context=WorkerContext(0, 1, torch.device(device)),
        )
    if is_stored:
        trained.save_model(storage, model_folder(spec.trial_id))
        storage.write(result_path(spec.trial_id), with_checksum(trained.result.model_dump_json(indent=1)))
        storage.delete(failure_path(spec.trial_id))
        forget_checkpoints(storage, spec.trial_id)
    return trained.result
