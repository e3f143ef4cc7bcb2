"""Reading of trained models: copies of their files with verified digests, and the parents of fill trials. No torch.

A saved model is a folder of the files in MODEL_FILES and a file `sha256` with their digests. It may have been made by
someone else, so nothing in it is trusted: only these files are read, no symbolic link is followed, and settings that name
code are refused.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pyarrow import fs
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from raycap.results import TrialResult, describe_invalid
from raycap.spec import Fill, ParentModel, ParentTrial, PretrainedModel, TrialSpec
from raycap.storage.checksum import verify_checksum
from raycap.storage.files import DamagedError, Storage, model_folder, result_path
from raycap.storage.retries import with_retries

CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
MODEL_FILES = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)
PARENT_FILES = (CONFIG, WEIGHTS, TOKENIZER)
"""Files that the training of a fill trial reads."""
DIGEST_FILE = "sha256"
"""File with the digests of a saved model. It is written last, so a model folder that has it is complete."""
MAX_BYTES = {CONFIG: 2**20, TOKENIZER_CONFIG: 2**20, DIGEST_FILE: 2**16, TOKENIZER: 2**28}
"""Largest accepted sizes. Weights are limited by the free space of the folder that they are copied to."""
CODE_SETTINGS = frozenset({"auto_map", "custom_pipelines", "custom_generate"})
"""Settings in which transformers looks for Python code to run."""
BLOCK_BYTES = 2**22
RETRAIN = "delete the result.json of its trial and run its sweep again to retrain it"


def digests(folder: Path) -> str:
    """Return the content of the digest file of a saved model: one line per file, as `sha256sum -c` reads it."""
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in MODEL_FILES)


def copy_model(
    storage: Storage, folder: str, target: Path, names: Sequence[str] = MODEL_FILES, *, needs_digest: bool = True
) -> None:
    """Copy the named files of a saved model to a local folder and verify their digests; nothing else is read.

    Args:
        storage: The storage of the model.
        folder: Folder of the model, relative to the root of the storage.
        target: An existing local folder.
        names: The files to copy.
        needs_digest: Whether a model without a digest file is refused.

    Raises:
        ValueError: A file is missing, damaged, too large, a symbolic link or no regular file, the weights are not in the
            format of safetensors, or a setting names code.
    """
    location = storage.location(folder)
    has_digest = needs_digest or storage.exists(_below(folder, DIGEST_FILE))
    for name in [*names, *([DIGEST_FILE] if has_digest else [])]:
        try:
            _copy_file(storage, _below(folder, name), target / name)
        except FileNotFoundError:
            raise ValueError(f"there is no complete model at {location}: {name} is missing; train it first") from None
    if has_digest:
        stored = _stored_digests(target / DIGEST_FILE, location)
        (target / DIGEST_FILE).unlink()
        if damaged := [name for name in names if stored.get(name) != _sha256(target / name)]:
            raise ValueError(
                f"the model at {location} is damaged: the SHA-256 digest of {', '.join(damaged)} does not match the one in "
                f"{location}/{DIGEST_FILE}; {RETRAIN}"
            )
    for name in {CONFIG, TOKENIZER_CONFIG} & set(names):
        read_settings(target / name)
    if WEIGHTS in names:
        try:
            safe_open(target / WEIGHTS, "numpy")  # reads and checks the header only
        except SafetensorError as error:
            raise ValueError(
                f"{WEIGHTS} of the model at {location} is not in the format of safetensors: {error}; {RETRAIN}"
            ) from error


def read_settings(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file of settings.

    Raises ValueError if it is not a JSON object, or if a setting at any depth names code that transformers would run.
    """

    def refuse_code(settings: dict[str, Any]) -> dict[str, Any]:
        if found := sorted(CODE_SETTINGS & settings.keys()):
            raise ValueError(f"has the setting {found[0]}, which names code to run; raycap runs none: remove it")
        return settings

    try:
        settings = json.loads(file.read_bytes(), object_hook=refuse_code)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} of the model cannot be used: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file.name} of the model must be a JSON object, got {str(settings)[:40]}")
    return settings


def differing_settings(stored: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that only one of two files has, or that have other values there."""
    missing = object()
    return [name for name in {**written, **stored} if stored.get(name, missing) != written.get(name, missing)]


@contextmanager
def open_regular(storage: Storage, relative: str, max_bytes: int) -> Iterator[BinaryIO]:
    """Open a file for reading. No symbolic link below the root of the storage is followed.

    Raises ValueError if the path or a folder on it is a symbolic link, if it is not a regular file, such as a folder, a
    pipe or a device, or if it is larger than `max_bytes`. Raises FileNotFoundError.
    """
    if not storage.is_local:
        info = storage.filesystem.get_file_info(storage.path(relative))
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(info.path)
        if not info.is_file:
            raise ValueError(f"{info.path} must be a file; restore the file")
        _check_size(info.path, info.size, max_bytes)
        with storage.filesystem.open_input_stream(info.path) as stream:
            yield stream
        return
    path = Path(storage.root)
    for part in Path(relative).parts:
        path /= part
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link, which raycap does not follow; replace it by a copy of its target"
            )
    # O_NOFOLLOW and fstat hold even if the file is exchanged after the check; O_NONBLOCK, so that a pipe does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} must be a regular file; remove what is there and restore the file")
        _check_size(str(path), status.st_size, max_bytes)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _check_size(path: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"{path} must have at most {max_bytes:,} bytes, got {size:,}; restore the file")


def _copy_file(storage: Storage, relative: str, target: Path) -> None:
    def copy() -> None:
        max_bytes = min(MAX_BYTES.get(target.name, sys.maxsize), shutil.disk_usage(target.parent).free)
        with open_regular(storage, relative, max_bytes) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)

    with_retries(copy, storage.retry_limit)


def _stored_digests(file: Path, location: str) -> dict[str, str]:
    """Return the digests by the names of the files."""
    lines = file.read_text("ascii", errors="replace").splitlines()
    stored = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if stored.keys() != set(MODEL_FILES) or not all(re.fullmatch("[0-9a-f]{64}", one) for one in stored.values()):
        raise ValueError(
            f"{location}/{DIGEST_FILE} must list the SHA-256 digests of {', '.join(MODEL_FILES)}: "
            f"the model is damaged or of an earlier version of raycap; {RETRAIN}"
        )
    return stored


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


# --- parents of fill trials -------------------------------------------------------------------------------------------


@contextmanager
def parent_model(fill: Fill, storage: Storage) -> Iterator[Path]:
    """Yield a temporary local folder with the parent's model and tokenizer.

    Raises ValueError if the model does not exist, is damaged or cannot be trusted, or has another digest than
    `parent.sha256`.
    """
    parent = fill.parent
    with TemporaryDirectory(prefix="raycap-") as local:
        folder = Path(local)
        try:
            if isinstance(parent, ParentTrial):
                copy_model(storage, model_folder(parent.trial_id), folder, PARENT_FILES)
            else:
                copy_identified(parent.path, parent.sha256, folder)
        except (ValueError, OSError) as error:
            raise ValueError(f"fill.parent: {error}") from error
        yield folder


def copy_identified(path: str, sha256: str | None, folder: Path) -> None:
    """Copy the config, weights and tokenizer of a model at a path to an existing local folder.

    Raises ValueError if a file is missing or cannot be trusted, or if the digest of the model is another one than `sha256`.
    """
    copy_model(Storage.at(path), "", folder, PARENT_FILES, needs_digest=False)  # other programs write no digest file
    if sha256 not in (None, digest := identity(folder)):
        raise ValueError(f"the model at {path} has another sha256, {digest}; correct sha256 or path")


def identity(folder: Path) -> str:
    """Return the digest that identifies a parent model: the SHA-256 of its config, weights and tokenizer, in this order."""
    digest = hashlib.sha256()
    for name in PARENT_FILES:
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
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
            known = parent.model_copy(update={"sha256": identity(folder)})
            return trial.model_copy(update={"fill": trial.fill.model_copy(update={"parent": known})})
    try:
        found = TrialResult.model_validate_json(verify_checksum(storage.read(result_path(parent.trial_id))))
        if found.trial_id != parent.trial_id:
            raise DamagedError(f"trial_id: expected {parent.trial_id}, got {found.trial_id}")
        parent_spec = found.spec
    except DamagedError as error:
        path = storage.location(result_path(parent.trial_id))
        raise ValueError(f"fill.parent: {path}: {error}; run the sweep of that trial again") from error
    except ValidationError as error:
        path = storage.location(result_path(parent.trial_id))
        reason = describe_invalid(error)
        raise ValueError(f"fill.parent: {path}: {reason}; delete it and run the sweep of that trial again") from error
    if parent_spec.fill is not None:
        raise ValueError(
            f"fill.parent: trial {parent.trial_id} has a parent itself, and fill supports only two populations; give a "
            "trial without fill"
        )
    inherited = {}
    for name in ("profiles", "tokenizer", "model"):
        value = getattr(parent_spec, name)
        if name in trial.model_fields_set and getattr(trial, name) != value:
            raise ValueError(
                f"fill.parent: trial {parent.trial_id} has another {name}; remove trial.{name}, which is inherited"
            )
        inherited[name] = value
    if isinstance(parent_spec.model, PretrainedModel):
        raise ValueError(
            f"fill.parent: trial {parent.trial_id} started from a saved model itself; give the path of its model as "
            "model.path instead of fill, or another trial"
        )
    return trial.model_copy(update=inherited)
