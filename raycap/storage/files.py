"""Atomic writes to a folder or an object store, and the paths of a trial's files.

storage/trials/<trial_id>/result.json    exists if and only if the trial is finished; with a checksum (checksum.py)
storage/trials/<trial_id>/failure.json   cause of failure, if the last run of the trial failed
storage/trials/<trial_id>/model/         trained model and tokenizer
storage/trials/<trial_id>/models/<step>/ models of earlier steps, see execution.keep_models (kept_models.py)
storage/trials/<trial_id>/inspections/   results of analyses of the stored models (inspections.py)
storage/trials/<trial_id>/checkpoint-*   the last two checkpoints; deleted when all trials of its stack have finished
storage/trials/<trial_id>/stack.json     trial ids of the stack in which the trial trains; deleted with the checkpoints
storage/trials/stable/<key>-<index>/     states of stacks that longer trials continue (learner/longer.py)
storage/trials/<trial_id>/result.json.damaged    result whose checksum did not match; kept, but never read
storage/<sweep>/                         plan, records and report of a sweep (sweep_folder.py)
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from raycap.spec.locations import local_path
from raycap.spec.uris import NO_CREDENTIALS, has_password, join_uri, split_uri, without_password
from raycap.storage.retries import COMMAND_RETRIES, RetryLimit, with_retries

TRIALS_FOLDER = "trials"
CHECKPOINT_PREFIX = "checkpoint-"
RESULT_FILE, FAILURE_FILE, STACK_FILE = "result.json", "failure.json", "stack.json"
COPY_BYTES = 2**22
"""Bytes of a file that are copied at once."""
UNFINISHED = ".tmp"
"""Suffix of files that are being written. A killed process leaves such a file behind; all readers ignore it."""


class DamagedError(ValueError):
    """The checksum of a file does not match its content."""


@dataclass(frozen=True)
class Storage:
    """A root folder, local or in an object store (s3://, gs://). Paths are relative to it, with forward slashes."""

    filesystem: fs.FileSystem
    root: str
    """Path of the root in the file system."""
    uri: str = ""
    """URI of the root, with its query; empty for a local folder."""
    retry_limit: RetryLimit = COMMAND_RETRIES
    """How long operations that fail are retried."""
    guard: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called before every change. It raises LeaseLostError if this process may no longer write (lock.py)."""

    @classmethod
    def at(cls, location: str, retry_limit: RetryLimit = COMMAND_RETRIES) -> "Storage":
        """Return the storage at a folder (relative to the working directory) or URI.

        Raises ValueError for unknown schemes, malformed paths and URIs with a password, OSError if the region of a bucket
        cannot be found out.
        """
        if has_password(location):
            raise ValueError(f"storage {without_password(location)!r} {NO_CREDENTIALS}")
        path = local_path(location)
        if path is not None:
            return cls(fs.LocalFileSystem(), path, retry_limit=retry_limit)
        try:
            filesystem, root = with_retries(lambda: fs.FileSystem.from_uri(location), retry_limit)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"storage {location!r} is neither a folder nor a known URI: {error}") from error
        return cls(filesystem, root, "" if isinstance(filesystem, fs.LocalFileSystem) else location, retry_limit)

    @property
    def is_local(self) -> bool:
        """Whether the root is in a file system of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, relative: str) -> str:
        """Return the absolute path in the file system."""
        return f"{self.root}/{relative}" if relative else self.root

    def location(self, relative: str = "") -> str:
        """Return the absolute path or the whole URI, as commands accept it and messages show it."""
        return self.path(relative) if self.is_local else join_uri(self.uri, relative)

    def exists(self, relative: str) -> bool:
        """Return whether a file or folder exists at this path."""
        return bool(self._info(relative).type != fs.FileType.NotFound)

    def modified_ns(self, relative: str) -> int | None:
        """Return the time of the last change of a file in ns since the epoch; None if it does not exist."""
        time_ns: int | None = self._info(relative).mtime_ns
        return time_ns

    def folders(self, relative: str) -> dict[str, list[str]]:
        """Return the names of the entries of each sub-folder of `relative`, by the name of the sub-folder.

        Unfinished files are omitted. Returns an empty dict if `relative` does not exist.
        """
        names: dict[str, list[str]] = {}
        for info in self._entries(relative):
            if info.type == fs.FileType.Directory:
                inside = self._entries(f"{relative}/{info.base_name}" if relative else info.base_name)
                names[info.base_name] = [e.base_name for e in inside if not e.base_name.endswith(UNFINISHED)]
        return names

    def names(self, relative: str) -> list[str]:
        """Return the names of the files and folders directly inside a folder; empty if it does not exist."""
        return [entry.base_name for entry in self._entries(relative)]

    def read(self, relative: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""

        def read() -> bytes:
            try:
                with self.filesystem.open_input_stream(self.path(relative)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                self._raise_without_bucket()
                raise

        return with_retries(read, self.retry_limit)

    def read_text(self, relative: str) -> str:
        """Return the content of a UTF-8 file. Raises FileNotFoundError."""
        return self.read(relative).decode("utf-8")

    def write(self, relative: str, content: str | bytes) -> None:
        """Write a file atomically: a reader, or a run after a crash, sees the old content or the new, never a part.

        Raises OSError with the path of the file if it cannot be written; a partially written file is deleted.
        """
        self._write(relative, content.encode("utf-8") if isinstance(content, str) else content)

    def write_folder(self, relative: str, local_folder: Path) -> None:
        """Copy every file directly inside a local folder into a folder of the storage, each atomically."""
        for file in sorted(local_folder.iterdir()):
            self._write(f"{relative}/{file.name}", file)

    def _write(self, relative: str, content: bytes | Path) -> None:
        """Write bytes, or the content of a local file, in blocks."""
        write = _write_local if self.is_local else self._write_object

        def attempt() -> None:
            self.guard()
            with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as source:
                write(self.path(relative), source)

        with_retries(attempt, self.retry_limit)

    def delete(self, relative: str) -> None:
        """Delete a file if it exists."""

        def delete() -> None:
            self.guard()
            with suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(relative))

        with_retries(delete, self.retry_limit)

    def set_aside(self, relative: str) -> None:
        """Rename a damaged file, if it exists, to an unused name such as `<name>.damaged`."""
        if not self.exists(relative):
            return
        aside = f"{relative}.damaged"
        while self.exists(aside):
            aside += ".damaged"

        def move() -> None:
            self.guard()
            with suppress(FileNotFoundError):  # another worker has renamed it already
                self.filesystem.move(self.path(relative), self.path(aside))

        with_retries(move, self.retry_limit)

    def _info(self, relative: str) -> fs.FileInfo:
        def info() -> fs.FileInfo:
            found = self.filesystem.get_file_info(self.path(relative))
            if found.type == fs.FileType.NotFound:
                self._raise_without_bucket()
            return found

        return with_retries(info, self.retry_limit)

    def _entries(self, relative: str) -> list[fs.FileInfo]:
        def entries() -> list[fs.FileInfo]:
            selector = fs.FileSelector(self.path(relative), allow_not_found=True, recursive=False)
            found = list(self.filesystem.get_file_info(selector))
            if not found:
                self._raise_without_bucket()
            return found

        return with_retries(entries, self.retry_limit)

    def _raise_without_bucket(self) -> None:
        """Raise OSError if the bucket of an object store does not exist, in which everything seems to be missing."""
        bucket = "" if self.is_local else self.root.partition("/")[0]
        if bucket and self.filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            raise OSError(f"bucket {bucket} does not exist")

    def _write_object(self, target: str, source: BinaryIO) -> None:
        # Object stores need no folders, and an object appears only when its upload is complete.
        with self.filesystem.open_output_stream(target) as stream:
            shutil.copyfileobj(source, stream, COPY_BYTES)


def _write_local(target: str, source: BinaryIO) -> None:
    # Write a temporary file in the same folder and rename it: rename is atomic within one file system. The PID in its name
    # keeps concurrent writers of one target apart.
    unfinished = Path(f"{target}.{os.getpid()}{UNFINISHED}")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
            file.flush()
            # Without fsync, a power failure after the rename could leave an empty file under the final name.
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error
    finally:
        with suppress(OSError):  # after a successful rename it no longer exists
            unfinished.unlink()
    _sync_folder(unfinished.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def split_folder(folder: str) -> tuple[str, str]:
    """Split the path or URI of a folder into its parent and its name. Local paths are made absolute first.

    A symbolic link to a folder that has its trials beside it stands for that folder. The query of a URI, such as
    `?region=...`, belongs to the parent.
    """
    path = local_path(folder)
    if path is None:
        return split_uri(folder)
    target = os.path.realpath(path)
    if os.path.islink(path) and os.path.isdir(os.path.join(os.path.dirname(target), TRIALS_FOLDER)):
        path = target
    return os.path.split(path)


def trial_folder(trial_id: str) -> str:
    """Return the folder of a trial, relative to the storage."""
    return f"{TRIALS_FOLDER}/{trial_id}"


def result_path(trial_id: str) -> str:
    """Return the path of a trial's result; the file exists if and only if the trial is finished."""
    return f"{trial_folder(trial_id)}/{RESULT_FILE}"


def model_folder(trial_id: str) -> str:
    """Return the folder of a trial's trained model and tokenizer."""
    return f"{trial_folder(trial_id)}/model"


def kept_models_folder(trial_id: str) -> str:
    """Return the folder of a trial's models of earlier steps."""
    return f"{trial_folder(trial_id)}/models"


def inspections_folder(trial_id: str) -> str:
    """Return the folder with the results of analyses of a trial's stored models."""
    return f"{trial_folder(trial_id)}/inspections"


def failure_path(trial_id: str) -> str:
    """Return the path of the file with the cause of failure of a trial's last run."""
    return f"{trial_folder(trial_id)}/{FAILURE_FILE}"


def record_stack(storage: Storage, trial_ids: Sequence[str]) -> None:
    """Record with each trial of a stack that these trials train together; one that trains alone needs no record."""
    for trial_id in trial_ids:
        path = f"{trial_folder(trial_id)}/{STACK_FILE}"
        if len(trial_ids) > 1 or storage.exists(path):
            storage.write(path, json.dumps(list(trial_ids)))


def read_stack(storage: Storage, trial_id: str) -> tuple[str, ...]:
    """Return the ids of the trials with which a trial trained last; empty if the record is missing or damaged."""
    try:
        ids = json.loads(storage.read(f"{trial_folder(trial_id)}/{STACK_FILE}"))
    except (FileNotFoundError, ValueError):
        return ()
    return tuple(ids) if isinstance(ids, list) and trial_id in ids and all(isinstance(i, str) for i in ids) else ()


def checkpoint_path(trial_id: str, step: int) -> str:
    """Return the path of a trial's checkpoint after a step."""
    return f"{trial_folder(trial_id)}/{CHECKPOINT_PREFIX}{step:012d}.pt"


def checkpoint_steps(names: list[str]) -> list[int]:
    """Return the steps of the checkpoints among the file names of a trial's folder, in ascending order."""
    return sorted(
        int(name.removeprefix(CHECKPOINT_PREFIX).removesuffix(".pt"))
        for name in names
        if name.startswith(CHECKPOINT_PREFIX) and name.endswith(".pt")
    )


def forget_checkpoints(storage: Storage, trial_id: str, *, keep: int = 0) -> None:
    """Delete the checkpoints of a trial except the last `keep`, including damaged and unfinished ones.

    The record of its stack is deleted with the last of them.
    """
    names = storage.names(trial_folder(trial_id))
    steps = checkpoint_steps(names)
    kept = {checkpoint_path(trial_id, step) for step in steps[len(steps) - keep :]}
    for name in names:
        path = f"{trial_folder(trial_id)}/{name}"
        if (name.startswith(CHECKPOINT_PREFIX) and path not in kept) or (name == STACK_FILE and not keep):
            storage.delete(path)
