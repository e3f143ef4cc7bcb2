"""Loading of the trained model that a fill trial starts from: existence, digest, and a local copy. Imports no torch."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from raycap.results import TrialResult
from raycap.spec import Fill, ParentModel, ParentTrial, TrialSpec
from raycap.storage.checksum import verify_checksum
from raycap.storage.files import DamagedError, Storage, model_folder, result_path

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
DIGEST_FILE = "sha256"
"""File with the digest of a saved model. It is written last, so a model folder that has it is complete."""


@contextmanager
def parent_model(fill: Fill, storage: Storage) -> Iterator[Path]:
    """Yield a temporary local folder with the parent's model and tokenizer.

    Raises ValueError if the model does not exist, is damaged, or has another digest than `parent.sha256`.
    """
    parent = fill.parent
    if isinstance(parent, ParentTrial):
        source, folder, needed = storage, model_folder(parent.trial_id), {*MODEL_FILES, DIGEST_FILE}
    else:
        source, folder, needed = Storage.at(parent.path), "", set(MODEL_FILES)
    if not needed <= set(source.names(folder)):
        raise ValueError(f"fill.parent: there is no trained model at {source.path(folder)}; train it first")
    with TemporaryDirectory(prefix="raycap-") as local:
        source.read_folder(folder, Path(local))
        digest, digest_file = sha256_of(Path(local)), Path(local) / DIGEST_FILE
        if digest_file.exists() and digest_file.read_bytes() != digest.encode():
            raise ValueError(
                f"fill.parent: the model at {source.path(folder)} is damaged: its digest does not match the stored one; "
                "delete the result.json of its trial and run its sweep again"
            )
        if isinstance(parent, ParentModel) and parent.sha256 not in (None, digest):
            raise ValueError(f"fill.parent.sha256: the model at {parent.path} has another digest, {digest}")
        yield Path(local)


def sha256_of(folder: Path) -> str:
    """Return the SHA-256 of a saved model: its config, weights and tokenizer, in this order."""
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def resolve_parent(trial: TrialSpec, storage: Storage) -> TrialSpec:
    """Return a trial with the fields that its parent determines; unchanged without `fill`.

    A parent trial determines profiles, tokenizer and model; of a saved model, the digest is filled in. Raises ValueError
    if the parent is missing or the spec contradicts it.
    """
    if trial.fill is None:
        return trial
    parent = trial.fill.parent
    with parent_model(trial.fill, storage) as folder:
        if isinstance(parent, ParentModel):
            known = parent.model_copy(update={"sha256": sha256_of(folder)})
            return trial.model_copy(update={"fill": trial.fill.model_copy(update={"parent": known})})
    try:
        parent_spec = TrialResult.model_validate_json(verify_checksum(storage.read(result_path(parent.trial_id)))).spec
    except DamagedError as error:
        path = storage.path(result_path(parent.trial_id))
        raise ValueError(f"fill.parent: {path}: {error}; run the sweep of that trial again") from error
    if parent_spec.fill is not None:
        raise ValueError(
            f"fill.parent: trial {parent.trial_id} has a parent itself; fill supports two populations, not three"
        )
    inherited = {}
    for name in ("profiles", "tokenizer", "model"):
        value = getattr(parent_spec, name)
        if name in trial.model_fields_set and getattr(trial, name) != value:
            raise ValueError(
                f"fill.parent: trial {parent.trial_id} has another {name}; remove trial.{name}, it is inherited"
            )
        inherited[name] = value
    return trial.model_copy(update=inherited)
