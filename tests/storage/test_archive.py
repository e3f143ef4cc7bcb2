"""Tests of archives: their contents come back unchanged, and files that are no archives are refused."""

import io
import tarfile
from pathlib import Path

import pytest

from raycap.storage import Storage, result_path
from raycap.storage.archive import ArchiveError, pack, unpack
from raycap.storage.sweep_folder import SweepFolder
from tests.support.planted import RUN, sweep


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The folder of a sweep whose first trial has finished."""
    record = sweep([12, 14])
    opened = SweepFolder(Storage.at(str(tmp_path / "runs")), "planted")
    opened.write_sweep(record.model_copy(update={"working_directory": str(tmp_path)}))
    opened.write(SweepFolder.RUN, RUN.model_dump_json())
    opened.storage.write(result_path(record.trials[0].trial_id), b"a result")
    return opened


def test_an_archive_has_the_records_and_results_without_locations_of_the_machine(
    folder: SweepFolder, tmp_path: Path
) -> None:
    record = folder.read_sweep()
    trial_id = record.trials[0].trial_id
    content = pack(folder, [trial_id])
    assert content == pack(folder, [trial_id])
    (tmp_path / "a.tar.xz").write_bytes(content)
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "unpacked") == "planted"
    opened = SweepFolder(Storage.at(str(tmp_path / "unpacked")), "planted")
    assert opened.read_sweep().trials == record.trials
    assert opened.read_sweep().spec.tracking.uri is None
    assert opened.read_run() == RUN
    assert opened.storage.read(result_path(trial_id)) == b"a result"
    assert str(tmp_path).encode() not in opened.read(SweepFolder.SWEEP)


def test_a_file_with_anything_else_is_refused_and_writes_nothing_outside(folder: SweepFolder, tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar.xz"
    for name in ("../outside", "/outside", "planted/../../outside", "planted/other.json", "trials/xyz/result.json"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:xz") as file:
            file.addfile(tarfile.TarInfo(name))
        archive.write_bytes(stream.getvalue())
        with pytest.raises(ArchiveError, match=r"outside|other|xyz"):
            unpack(archive, tmp_path / "unpacked")
    whole = pack(folder, [folder.read_sweep().trials[0].trial_id])
    damaged = whole[:200] + b"\0" * 20 + whole[220:]
    for content in (b"", b"no archive", whole[: len(whole) // 2], damaged):
        archive.write_bytes(content)
        with pytest.raises(ArchiveError):
            unpack(archive, tmp_path / "unpacked")
    assert not list(tmp_path.rglob("outside"))
