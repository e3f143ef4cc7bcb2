"""Folder of one sweep: the names and paths of its files, and reading and writing of its records."""

import os
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pydantic import ValidationError

from raycap.results import CostRecord, Record, RunRecord, SweepRecord, describe_invalid
from raycap.spec.locations import is_uri, local_path
from raycap.storage.files import Storage, split_folder

RecordT = TypeVar("RecordT", bound=Record)


class NotASweepError(FileNotFoundError):
    """A folder lacks files of a sweep that has run; the message has the folder and the files."""


class InvalidRecordError(ValueError):
    """A record is damaged, or of another version of raycap; the message has the file, the field and what to do."""


@dataclass(frozen=True)
class SweepFolder:
    """Folder of a sweep in a storage. Its files are referred to by the names below."""

    storage: Storage
    name: str
    """Name of the sweep and of its folder."""

    SWEEP: ClassVar[str] = "sweep.json"
    """Spec, question and planned trials, a `SweepRecord`."""
    RUN: ClassVar[str] = "run.json"
    """Outcome of the last run that trained something, a `RunRecord`."""
    COST: ClassVar[str] = "cost.json"
    """Cost of all runs, a `CostRecord`; exists only if the sweep has prices of machines."""
    EARLIER: ClassVar[str] = "earlier.json"
    """Trials of earlier runs that the last one did not plan, an `EarlierTrials` record."""
    SUMMARY: ClassVar[str] = "summary.json"
    """Results of the analysis as plain numbers."""
    REPORT: ClassVar[str] = "report.html"
    """Results of the analysis as one self-contained page."""
    INTERACTIVE: ClassVar[str] = "interactive.html"
    """Results as one self-contained page whose axes and colours readers choose."""
    LOCK: ClassVar[str] = "lock"
    """Folder of the claims of processes that run the sweep (claims.py)."""
    PROGRESS: ClassVar[str] = "progress.json"
    """Progress of running trials (progress.py)."""
    OUTBOX: ClassVar[str] = "outbox.json"
    """Operations that MLflow has yet to receive (raycap/tracking/outbox.py)."""

    @classmethod
    def at(cls, location: str) -> "SweepFolder":
        """Return the sweep folder at a path or URI, which need not exist. Raises ValueError for unknown schemes."""
        parent, name = split_folder(location)
        return cls(Storage.at(parent), name)

    @property
    def location(self) -> str:
        """Absolute path or URI of the folder, which commands accept."""
        return self.storage.location(self.name)

    def path(self, file: str) -> str:
        """Return the path of a file relative to the storage."""
        return f"{self.name}/{file}"

    def exists(self, file: str) -> bool:
        """Return whether a file exists."""
        return self.storage.exists(self.path(file))

    def read(self, file: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""
        return self.storage.read(self.path(file))

    def write(self, file: str, content: str | bytes) -> None:
        """Write a file atomically. Raises OSError with its path."""
        self.storage.write(self.path(file), content)

    def require(self, *files: str) -> None:
        """Raise NotASweepError if one of the files does not exist."""
        if missing := [file for file in files if not self.exists(file)]:
            raise NotASweepError(
                f"{self.location}: not the folder of a sweep that has run (it lacks {' and '.join(missing)})"
            )

    def read_sweep(self) -> SweepRecord:
        """Return the record of the sweep. Raises NotASweepError or InvalidRecordError."""
        record = self._read_record(self.SWEEP, SweepRecord)
        directory = record.working_directory
        if self.storage.is_local and not os.path.isabs(directory):
            directory = os.path.realpath(os.path.join(self.storage.root, directory))
        return record.model_copy(update={"working_directory": directory})

    def write_sweep(self, record: SweepRecord) -> None:
        """Write the record of the sweep. Raises OSError.

        If the spec's storage is a relative path, the working directory is stored as a path from the storage, so that both
        may be moved together. This is not possible if a symbolic link leads to the storage.
        """
        directory, root = record.working_directory or os.getcwd(), self.storage.root
        is_relative = local_path(record.spec.storage) is not None and not os.path.isabs(record.spec.storage)
        if self.storage.is_local and is_relative and not is_uri(record.spec.storage) and os.path.realpath(root) == root:
            directory = os.path.relpath(directory, root)
        stored = record.model_copy(update={"working_directory": directory})
        self.write(self.SWEEP, stored.model_dump_json(indent=1))

    def read_run(self) -> RunRecord:
        """Return the record of the last run that trained something. Raises NotASweepError or InvalidRecordError."""
        return self._read_record(self.RUN, RunRecord)

    def read_cost(self) -> CostRecord | None:
        """Return the cost of all runs, or None if it was not recorded. Raises InvalidRecordError."""
        return self._read_record(self.COST, CostRecord) if self.exists(self.COST) else None

    def _read_record(self, file: str, model: type[RecordT]) -> RecordT:
        self.require(file)
        try:
            return model.model_validate_json(self.read(file))
        except ValidationError as error:
            raise InvalidRecordError(
                f"{self.storage.location(self.path(file))}: {describe_invalid(error)}; run the sweep's spec once more to "
                "write the file again"
            ) from None
