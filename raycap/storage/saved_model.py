"""The trained model that a fill trial starts from: found, checked, and brought to a local folder. No torch here."""

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
"""Holds the digest of a saved model; trials write it last."""


@contextmanager
def parent_model(fill: Fill, storage: Storage) -> Iterator[Path]:
    """A local folder with the parent's model and tokenizer, for as long as the context lasts.

    Raises ValueError if it is not there, damaged, or not the one that was meant.
    """
    parent = fill.parent
    if isinstance(parent, ParentTrial):
        where, folder, needed = storage, model_folder(parent.trial_id), {*MODEL_FILES, DIGEST_FILE}
    else:
        where, folder, needed = Storage.at(parent.path), "", set(MODEL_FILES)
    if not needed <= set(where.names(folder)):
        raise ValueError(f"fill.parent: there is no trained model at {where.path(folder)}; train it first")
    with TemporaryDirectory(prefix="raycap-") as local:
        where.read_folder(folder, Path(local))
        digest, noted = sha256_of(Path(local)), Path(local) / DIGEST_FILE
        if noted.exists() and noted.read_bytes() != digest.encode():
            raise ValueError(
                f"fill.parent: the model at {where.path(folder)} is damaged: it is not as it was saved; delete the "
                "result.json of the trial that it is of, and its sweep trains it again"
            )
        if isinstance(parent, ParentModel) and parent.sha256 not in (None, digest):
            raise ValueError(f"fill.parent.sha256: the model at {parent.path} is another; its digest is {digest}")
        yield Path(local)


def sha256_of(folder: Path) -> str:
    """Digest of a saved model: its shape, weights and tokenizer."""
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def resolve_parent(trial: TrialSpec, storage: Storage) -> TrialSpec:
    """The same trial with everything that follows from its parent filled in; unchanged without fill.

    A parent trial gives profiles, tokenizer and model; a saved model gives its digest. Raises ValueError where the
    parent is missing, or the spec contradicts it.
    """
    if trial.fill is None:
        return trial
    parent = trial.fill.parent
    with parent_model(trial.fill, storage) as folder:
        if isinstance(parent, ParentModel):
            known = parent.model_copy(update={"sha256": sha256_of(folder)})
            return trial.model_copy(update={"fill": trial.fill.model_copy(update={"parent": known})})
    try:
        theirs = TrialResult.model_validate_json(verify_checksum(storage.read(result_path(parent.trial_id)))).spec
    except DamagedError as error:
        where = storage.path(result_path(parent.trial_id))
        raise ValueError(f"fill.parent: {where}: {error}; run the sweep of that trial again") from error
    if theirs.fill is not None:
        raise ValueError(
            f"fill.parent: trial {parent.trial_id} was filled itself; a third population is not provided for"
        )
    taken = {}
    for name in ("profiles", "tokenizer", "model"):
        value = getattr(theirs, name)
        if name in trial.model_fields_set and getattr(trial, name) != value:
            raise ValueError(
                f"fill.parent: trial {parent.trial_id} has another {name}; remove it here, it is taken from there"
            )
        taken[name] = value
    return trial.model_copy(update=taken)
