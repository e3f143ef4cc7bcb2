"""The stored models of a trial: the final one, and those of earlier steps that `execution.keep_models` asks for."""

from pydantic import ValidationError

from raycap.results import Moment, TrialResult, describe_invalid
from raycap.storage.files import DamagedError, Storage, kept_models_folder, model_folder
from raycap.storage.saved_model import DIGEST_FILE

MOMENT_FILE = "moment.json"


def kept_model_folder(trial_id: str, step: int) -> str:
    """Return the folder of the model that a trial had after an earlier step."""
    return f"{kept_models_folder(trial_id)}/{step:012d}"


def final_moment(result: TrialResult) -> Moment:
    """Return the moment of the final model of a trial."""
    return Moment(step=result.num_steps, exposures=result.final.exposures)


def stored_moments(storage: Storage, result: TrialResult) -> tuple[Moment, ...]:
    """Return the moments of all stored models of a finished trial, ascending; the last one is that of the final model.

    Raises DamagedError if the record of a moment is not valid.
    """
    folder = kept_models_folder(result.trial_id)
    moments = []
    for name, files in sorted(storage.folders(folder).items()):
        if DIGEST_FILE not in files:  # the trial was killed while it wrote the model
            continue
        path = f"{folder}/{name}/{MOMENT_FILE}"
        try:
            moments.append(Moment.model_validate_json(storage.read(path)))
        except ValidationError as error:
            raise DamagedError(f"{storage.location(path)}: {describe_invalid(error)}; delete this folder") from None
    # The model of the last evaluation is also the final model.
    return (*(moment for moment in moments if moment.step < result.num_steps), final_moment(result))


def folder_of_model(result: TrialResult, moment: Moment) -> str:
    """Return the folder of the model that a finished trial had at a moment."""
    if moment.step == result.num_steps:
        return model_folder(result.trial_id)
    return kept_model_folder(result.trial_id, moment.step)
