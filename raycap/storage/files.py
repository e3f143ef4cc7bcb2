"""Files of a sweep in a folder or object store: atomic writes, and where everything lies.

storage/trials/<trial_id>/result.json    a trial is finished if and only if this file is there, sealed (checksum.py)
storage/trials/<trial_id>/failure.json   the cause, if its last run failed
storage/trials/<trial_id>/model/         the trained model and tokenizer
storage/trials/<trial_id>/checkpoint-*   how far it has come, until it is finished; the last two
storage/trials/<trial_id>/result.json.damaged    one that was not as it was written: kept, never read
storage/<sweep>/                         the list of trials, and what the analysis made of them
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

TRIALS_FOLDER = "trials"
CHECKPOINT_PREFIX = "checkpoint-"
UNFINISHED = ".tmp"
"""What the names of files end in while they are written; those of processes that were killed stay, and do no harm."""


class DamagedError(ValueError):
    """A file is not as it was written."""


@dataclass(frozen=True)
class Storage:
    """A root folder, local or by URI (s3://, gs://); paths are relative to it, with forward slashes."""

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def at(cls, location: str) -> "Storage":
        """The storage at a folder (relative to the working directory) or URI. Raises ValueError for unknown schemes."""
        if "://" not in location:
            return cls(fs.LocalFileSystem(), Path(location).absolute().as_posix())
        try:
            filesystem, root = fs.FileSystem.from_uri(location)
        except Exception as error:
            raise ValueError(f"storage {location!r} is neither a folder nor a known URI: {error}") from error
        return cls(filesystem, root)

    @property
    def is_local(self) -> bool:
        """Whether the files lie in this machine's file system."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, relative: str) -> str:
        """Absolute path inside the file system."""
        return f"{self.root}/{relative}" if relative else self.root

    def exists(self, relative: str) -> bool:
        """Whether there is a file or folder."""
        return self.filesystem.get_file_info(self.path(relative)).type != fs.FileType.NotFound

    def folders(self, relative: str) -> dict[str, list[str]]:
        """Names of the files and folders in each sub-folder of `relative`, but for unfinished ones; empty where that is
        missing.
        """
        found = self.filesystem.get_file_info(
            fs.FileSelector(self.path(relative), allow_not_found=True, recursive=False)
        )
        names: dict[str, list[str]] = {}
        for info in found:
            if info.type == fs.FileType.Directory:
                inside = self.filesystem.get_file_info(fs.FileSelector(info.path, recursive=False))
                names[info.base_name] = [e.base_name for e in inside if not e.base_name.endswith(UNFINISHED)]
        return names

    def names(self, relative: str) -> list[str]:
        """Names of the files and folders directly inside a folder; empty where it is missing."""
        selector = fs.FileSelector(self.path(relative), allow_not_found=True, recursive=False)
        return [entry.base_name for entry in self.filesystem.get_file_info(selector)]

    def read(self, relative: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self.filesystem.open_input_stream(self.path(relative)) as stream:
            return stream.read()

    def read_text(self, relative: str) -> str:
        """A file's text. Raises FileNotFoundError."""
        return self.read(relative).decode("utf-8")

    def write(self, relative: str, content: str | bytes) -> None:
        """Write a file whole or not at all: what was there before stays until the new content is safely on the disk.

        Raises OSError, which names the file, where it cannot be written; nothing half-written is left to fill the disk.
        """
        data = content.encode("utf-8") if isinstance(content, str) else content
        target = self.path(relative)
        self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        if not self.is_local:  # object stores put a file whole or not at all
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        unfinished = Path(f"{target}.{os.getpid()}{UNFINISHED}")
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from error
        finally:
            with suppress(OSError):  # it is gone already where all went well
                unfinished.unlink()
        _sync_folder(unfinished.parent)

    def write_folder(self, relative: str, local_folder: Path) -> None:
        """Copy every file directly inside a local folder."""
        for file in sorted(local_folder.iterdir()):
            self.write(f"{relative}/{file.name}", file.read_bytes())

    def read_folder(self, relative: str, local_folder: Path) -> None:
        """Copy every file directly inside a folder to a local one. Raises FileNotFoundError."""
        for entry in self.filesystem.get_file_info(fs.FileSelector(self.path(relative), recursive=False)):
            if entry.is_file and not entry.base_name.endswith(UNFINISHED):
                with self.filesystem.open_input_stream(entry.path) as stream:
                    (local_folder / entry.base_name).write_bytes(stream.read())

    def delete(self, relative: str) -> None:
        """Delete a file if it is there."""
        if self.exists(relative):
            self.filesystem.delete_file(self.path(relative))

    def set_aside(self, relative: str) -> None:
        """Keep a damaged file under another name that is free, such as `<name>.damaged`, if it is there."""
        if self.exists(relative):
            aside = f"{relative}.damaged"
            while self.exists(aside):
                aside += ".damaged"
            with suppress(FileNotFoundError):  # another worker was quicker
                self.filesystem.move(self.path(relative), self.path(aside))


def _sync_folder(folder: Path) -> None:
    """Have a renamed file survive a power cut under its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def absolute_uri(uri: str) -> str:
    """The same database URI with a relative sqlite path made absolute from the working directory."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + Path(uri.removeprefix(prefix)).absolute().as_posix()
    return uri


def parted(folder: str) -> tuple[str, str]:
    """A folder as where it is and its name; of a local one both as they are, however it was written."""
    place, _, name = (folder.rstrip("/") if "://" in folder else os.path.abspath(folder)).rpartition("/")
    return place or "/", name


def trial_folder(trial_id: str) -> str:
    """Folder of a trial, relative to the storage."""
    return f"{TRIALS_FOLDER}/{trial_id}"


def result_path(trial_id: str) -> str:
    """The file that makes a trial finished."""
    return f"{trial_folder(trial_id)}/result.json"


def model_folder(trial_id: str) -> str:
    """Where a trial leaves its model and tokenizer."""
    return f"{trial_folder(trial_id)}/model"


def failure_path(trial_id: str) -> str:
    """The file that says why a trial's last run failed."""
    return f"{trial_folder(trial_id)}/failure.json"


def checkpoint_path(trial_id: str, step: int) -> str:
    """Where a trial's state after a step is kept."""
    return f"{trial_folder(trial_id)}/{CHECKPOINT_PREFIX}{step:012d}.pt"


def checkpoint_steps(names: list[str]) -> list[int]:
    """The steps of the checkpoints among the files of a trial's folder, ascending."""
    return sorted(
        int(name.removeprefix(CHECKPOINT_PREFIX).removesuffix(".pt"))
        for name in names
        if name.startswith(CHECKPOINT_PREFIX) and name.endswith(".pt")
    )


def forget_checkpoints(storage: Storage, trial_id: str, *, keep: int = 0) -> None:
    """Delete the checkpoints of a trial, all or all but the last few, and what is left of damaged or unfinished ones."""
    names = storage.names(trial_folder(trial_id))
    steps = checkpoint_steps(names)
    kept = {checkpoint_path(trial_id, step) for step in steps[len(steps) - keep :]}
    for name in names:
        path = f"{trial_folder(trial_id)}/{name}"
        if name.startswith(CHECKPOINT_PREFIX) and path not in kept:
            storage.delete(path)
