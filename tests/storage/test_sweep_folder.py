"""Tests of the folder of a sweep: its location, and records that are missing or invalid."""

import os
from pathlib import Path

import pytest

from raycap.storage.sweep_folder import InvalidRecordError, NotASweepError, SweepFolder
from tests.support.planted import RUN, sweep

RECORD = sweep([12, 14])


def test_records_are_read_from_the_folder_at_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder.at(f"{tmp_path}/runs/grid/")
    folder.write_sweep(RECORD)
    folder.write(SweepFolder.RUN, RUN.model_dump_json())
    assert folder.location == f"{tmp_path}/runs/grid"
    assert (tmp_path / "runs/grid/sweep.json").exists()
    written_in = os.getcwd()
    monkeypatch.chdir(tmp_path / "runs/grid")
    same = SweepFolder.at(".")
    record = RECORD.model_copy(update={"working_directory": written_in})
    assert (same.name, same.read_sweep(), same.read_run()) == ("grid", record, RUN)


def test_a_folder_without_records_is_not_a_sweep(tmp_path: Path) -> None:
    folder = SweepFolder.at(str(tmp_path / "grid"))
    with pytest.raises(NotASweepError, match=r"grid: .*sweep\.json and run\.json"):
        folder.require(SweepFolder.SWEEP, SweepFolder.RUN)
    folder.write(SweepFolder.SWEEP, RECORD.model_dump_json())
    with pytest.raises(NotASweepError, match=r"lacks run\.json"):
        folder.read_run()


@pytest.mark.parametrize(
    ("content", "message"), [('{"slots": 1}', "wall_seconds: "), ("{", r"run\.json: "), (b"\xff\xfe", r"run\.json: ")]
)
def test_an_invalid_record_is_refused_with_file_and_field(content: str | bytes, message: str, tmp_path: Path) -> None:
    folder = SweepFolder.at(str(tmp_path / "grid"))
    folder.write(SweepFolder.RUN, content)
    with pytest.raises(InvalidRecordError, match=message):
        folder.read_run()
