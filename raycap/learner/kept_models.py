"""Storing models in training and afterwards, and loading them for analyses."""

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer

from raycap.facts.build import populations_of
from raycap.learner import architectures
from raycap.learner.language_model import CPU, LanguageModel
from raycap.learner.model import Llama
from raycap.learner.replica import Replica
from raycap.results import Moment, TrialResult
from raycap.spec import KeepModels, KeptModels, ResolvedModel, TrialSpec
from raycap.storage import Storage
from raycap.storage.kept_models import MOMENT_FILE, folder_of_model, kept_model_folder
from raycap.storage.saved_model import DIGEST_FILE, PARENT_FILES, copy_model, digests
from raycap.tokens.rows import RowSource
from raycap.tokens.tokenizers import load_tokenizer, save_tokenizer
from raycap.tokens.training_data import TrainingData


def save_model(
    model: LanguageModel, tokenizer: Tokenizer, storage: Storage, folder: str, moment: Moment | None = None
) -> None:
    """Write a single model and its tokenizer in the format of transformers, its moment if given, then their digests."""
    with TemporaryDirectory(prefix="raycap-") as name:
        local = Path(name)
        architectures.save_model(model, local)
        save_tokenizer(tokenizer, local)
        if moment:
            (local / MOMENT_FILE).write_text(moment.model_dump_json())
        storage.write_folder(folder, local)
        storage.write(f"{folder}/{DIGEST_FILE}", digests(local))


@dataclass(frozen=True)
class ModelKeeper:
    """Stores the models of trials in training at the moments that `execution.keep_models` asks for."""

    storage: Storage
    models: KeepModels

    @property
    def at_evaluations(self) -> bool:
        """Whether the models of evaluations are stored."""
        return self.models is KeptModels.EVALUATIONS

    def steps(self, replica: Replica, source: RowSource, after_step: int, num_steps: int) -> frozenset[int]:
        """Return the first steps after `after_step` before which a trial has had as many exposures as asked for.

        Args:
            replica: The trial.
            source: Its stream of rows from `after_step` on.
            after_step: Steps done.
            num_steps: Last step of the trial.
        """
        if isinstance(self.models, KeptModels):
            return frozenset()
        asked = [exposures for exposures in self.models if exposures > replica.exposures(source, after_step)]
        ahead = range(after_step + 1, num_steps + 1)
        indices = [bisect_left(ahead, each, key=lambda step: replica.exposures(source, step)) for each in asked]
        return frozenset(ahead[index] for index in indices if index < len(ahead))

    def keep(self, replica: Replica, source: RowSource, model: LanguageModel) -> None:
        """Store the model of a trial."""
        step, trial_id = replica.state.step, replica.spec.trial_id
        moment = Moment(step=step, exposures=replica.exposures(source, step))
        save_model(model, replica.data.tokenizer, self.storage, kept_model_folder(trial_id, step), moment)


@dataclass(frozen=True)
class LoadedModel:
    """A stored model with the data that it was trained on."""

    result: TrialResult
    moment: Moment
    model: LanguageModel
    data: TrainingData

    @property
    def spec(self) -> TrialSpec:
        """Spec of the trial."""
        return self.result.spec

    def llama(self) -> Llama:
        """Return the model. Raises ValueError if it is a model of transformers, whose residuals are not read."""
        if not isinstance(self.model, Llama):
            raise ValueError(f"model.kind: this analysis needs a model of kind llama, got {self.spec.model.kind}")
        return self.model


def load_model(
    result: TrialResult,
    storage: Storage,
    moment: Moment,
    *,
    data: TrainingData | None = None,
    device: torch.device = CPU,
) -> LoadedModel:
    """Load the model that a finished trial had at a moment.

    Args:
        result: Result of the trial.
        storage: Storage of the trial.
        moment: A moment of `storage.kept_models.stored_moments`.
        data: Training data of an earlier call for the same trial; by default the populations are drawn or loaded again.
        device: Device of the model.

    Raises:
        ValueError: The model is missing or damaged, or its population cannot be drawn or loaded again.
    """
    with TemporaryDirectory(prefix="raycap-") as name:
        folder = Path(name)
        copy_model(storage, folder_of_model(result, moment), folder, PARENT_FILES)
        data = data or training_data_of(result, folder)
        model = model_in(folder, result, data)
    return LoadedModel(result, moment, model.copy(device), data)


def training_data_of(result: TrialResult, folder: Path) -> TrainingData:
    """Return the training data of a finished trial, with the tokenizer in a folder of its model.

    Raises ValueError if the population cannot be loaded again, or is not the one that the model was trained on.
    """
    try:
        populations = populations_of(result.spec)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the population that the model was trained on cannot be loaded: {error}; restore it at the path in its spec"
        ) from error
    if tuple(profiles.facts for profiles in populations) != result.populations:
        commit = result.provenance.git_commit
        raise ValueError(
            f"the spec of the model gives another population than it was trained on; use raycap at {commit}"
        )
    return TrainingData.of(result.spec, populations, load_tokenizer(folder))


def model_in(folder: Path, result: TrialResult, data: TrainingData) -> LanguageModel:
    """Return the model of a finished trial in a local folder. Raises ValueError if it does not fit the trial's spec."""
    assert isinstance(result.spec.model, ResolvedModel)
    return architectures.load_model(result.spec.model, folder, min_vocab_size=data.vocab_size)
