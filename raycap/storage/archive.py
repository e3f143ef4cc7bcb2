"""Archives of sweeps: the records of a sweep and the results of its trials in one compressed file, without the models."""

import io
import lzma
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

from raycap.results import SweepRecord
from raycap.spec import SweepSpec
from raycap.storage.files import RESULT_FILE, TRIALS_FOLDER, result_path
from raycap.storage.sweep_folder import SweepFolder

ENDING = ".tar.xz"
MAX_UNPACKED_BYTES = 2**31
MEMBER = re.compile(
    rf"(?P<sweep>[^/]+)/({SweepFolder.SWEEP}|{SweepFolder.RUN})|{TRIALS_FOLDER}/[0-9a-f]+/{RESULT_FILE}".replace(
        ".json", r"\.json"
    )
)
"""Paths of the files of an archive."""


class ArchiveError(ValueError):
    """A file is no archive of a sweep; the message has the reason."""


def pack(folder: SweepFolder, trial_ids: Iterable[str]) -> bytes:
    """Return the archive of a sweep with the results of the given finished trials. Equal results give equal bytes.

    The locations of this machine (storage, MLflow, working directory) are not part of it.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:

        def add(path: str, content: bytes) -> None:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add(folder.path(SweepFolder.SWEEP), _without_locations(folder.read_sweep()).model_dump_json(indent=1).encode())
        add(folder.path(SweepFolder.RUN), folder.read(SweepFolder.RUN))
        for path in map(result_path, sorted(trial_ids)):
            add(path, folder.storage.read(path))
    return stream.getvalue()


def _without_locations(record: SweepRecord) -> SweepRecord:
    tracking = record.spec.tracking.model_copy(update={"uri": None})
    spec = record.spec.model_copy(update={"storage": SweepSpec.model_fields["storage"].default, "tracking": tracking})
    return record.model_copy(update={"spec": spec, "working_directory": ""})


def unpack(file: Path, root: Path) -> str:
    """Write the files of an archive into a folder, which then is a storage; returns the name of the sweep.

    Raises:
        ArchiveError: The file is damaged, or contains anything but the records of one sweep and results of trials.
        OSError: The file cannot be read, or a file cannot be written.
    """
    names: set[str] = set()
    try:
        with tarfile.open(file, mode="r:xz") as archive:
            num_bytes = 0
            for member in archive:
                match = MEMBER.fullmatch(member.name)
                num_bytes += member.size
                if not match or not member.isreg() or num_bytes > MAX_UNPACKED_BYTES:
                    raise ArchiveError(f"contains {member.name!r}, which is no record of a sweep or a result")
                if match["sweep"] is not None:
                    names.add(match["sweep"])
                archive.extract(member, root, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ArchiveError(f"cannot be unpacked: {error}") from None
    if len(names) != 1:
        raise ArchiveError(f"must contain the records of one sweep, got those of {len(names)}")
    return names.pop()
