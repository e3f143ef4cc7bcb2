"""Analyses of stored models, which need no training: what an analysis is, and running several on the models of a trial."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from raycap.learner.compression import compressed
from raycap.learner.evaluation import losses, samples_of
from raycap.learner.hardware import num_threads_of_torch
from raycap.learner.kept_models import LoadedModel, load_model
from raycap.learner.provenance import provenance
from raycap.results import InspectionRecord, LossTable, ModelLosses, Moment, Record, TrialResult
from raycap.storage import Storage
from raycap.storage.inspections import inspection_folder, model_sha256, write_inspection

Inspect = Callable[[LoadedModel, dict[str, Any], Path], Record]
"""Analyses a loaded model with some options and returns the result. Files that it writes into the folder are stored beside
the record of the result. It must be a function of a module, which Ray can pickle, and must not depend on anything else."""


@dataclass(frozen=True)
class Inspection:
    """An analysis of stored models with its options."""

    name: str
    """Name of the analysis, which is that of its folder."""
    function: Inspect
    options: dict[str, Any] = field(default_factory=dict)
    """JSON values. Results with other options are stored beside each other."""


def inspect_models(
    result: TrialResult,
    storage: Storage,
    due: Iterable[tuple[Moment, Inspection]],
    *,
    source_commit: str,
    device: str,
    num_threads: int,
) -> None:
    """Analyse stored models of a finished trial and store the results, each as soon as it is computed.

    Args:
        result: Result of the trial.
        storage: Storage of the trial.
        due: Moments of the models with the analyses, in which those of one model follow each other.
        source_commit: Git commit of the code.
        device: Device of torch.
        num_threads: Number of threads of torch.

    Raises:
        ValueError: A model cannot be loaded.
    """
    loaded: LoadedModel | None = None
    with num_threads_of_torch(num_threads):
        for moment, inspection in due:
            if loaded is None or loaded.moment != moment:
                data = loaded.data if loaded else None
                loaded = load_model(result, storage, moment, data=data, device=torch.device(device))
            _inspect(loaded, inspection, storage, source_commit)


def _inspect(loaded: LoadedModel, inspection: Inspection, storage: Storage, source_commit: str) -> None:
    """Analyse a model and store the result. The record is written last."""
    result, moment = loaded.result, loaded.moment
    with TemporaryDirectory(prefix="raycap-") as name:
        began = time.perf_counter()
        body = inspection.function(loaded, inspection.options, Path(name))
        record = InspectionRecord[Record](
            trial_id=result.trial_id,
            moment=moment,
            name=inspection.name,
            options=inspection.options,
            model_sha256=model_sha256(storage, result, moment),
            seconds=time.perf_counter() - began,
            provenance=provenance(source_commit, loaded.model.device),
            body=body,
        )
        folder = inspection_folder(result.trial_id, inspection.name, inspection.options, moment.step)
        storage.write_folder(folder, Path(name))
        write_inspection(storage, record)


def evaluate(loaded: LoadedModel, options: dict[str, Any], folder: Path) -> ModelLosses:
    """Return the losses of a model, compressed by the options, on the texts that the evaluations in training use."""
    model = compressed(loaded.model, options)
    table = LossTable(rows=())
    for sample in samples_of(loaded.data):
        table += losses(model, sample, precision=loaded.spec.training.precision)
    return ModelLosses(losses=table, base_losses=loaded.result.final.base_losses)
