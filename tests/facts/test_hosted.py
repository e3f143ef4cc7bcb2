"""Loading from folders and from the hub: which data are read, and one line of error for data that cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from pydantic import ValidationError

from raycap.facts.hosted import load_profiles
from raycap.spec import ProfilesFromDisk, ProfilesFromHub
from tests.support.loaded import people, write

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
"""Commits of a dataset in the cache of the hub."""
PROGRAM = """
import json, sys
from raycap.facts.hosted import load_profiles
from raycap.spec import ProfilesFromHub
for revision in sys.argv[1:]:
    try:
        profiles = load_profiles(ProfilesFromHub(source="hub", path="alice/people", revision=revision))
        print(json.dumps(sorted({profiles.attribute_value(row, 3) for row in range(40)})))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def parquet(folder: Path, employer: str) -> None:
    folder.mkdir(parents=True)
    write(folder / "train-00000-of-00001.parquet", people(employer=[employer] * 40))


@pytest.mark.slow
def test_the_hub_is_read_by_revision_and_never_from_a_local_folder(tmp_path: Path) -> None:
    """Without network, the cache of the hub has two commits, and the working directory a folder of the same name."""
    home, work = tmp_path / "home", tmp_path / "work"
    cached = home / "hub" / "datasets--alice--people"
    for commit, employer in ((OLD, "Old"), (NEW, "New")):
        parquet(cached / "snapshots" / commit / "data", employer)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(NEW)
    parquet(work / "alice" / "people" / "data", "Local")
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, "main", OLD, NEW, "f" * 40, "v1"]
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=200, check=True)
    main, old, new, *missing = map(json.loads, ended.stdout.splitlines())
    assert (main, old, new) == (["New"], ["Old"], ["New"])
    for revision, error in zip(("f" * 40, "v1"), missing, strict=True):
        assert f"alice/people at revision {revision}" in error
        assert "HF_HUB_OFFLINE" in error
        assert "\n" not in error
    shutil.rmtree(home)
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert ended.stdout.count("alice/people at revision") == 5


@pytest.mark.parametrize(
    "path", ["parquet", "./alice/people", "/alice", "alice/people/data", "hf://alice/people", "", "..", "a/.."]
)
def test_names_that_are_no_names_of_the_hub_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"owner/name.* source: disk"):
        ProfilesFromHub(source="hub", path=path)


def damage(change: Callable[[Any], Any], file: str) -> Callable[[Path], None]:
    """Return a function that changes a JSON file of a dataset folder."""

    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


def without(key: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def text(file: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


TEXT = {"dtype": "string", "_type": "Value"}
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "state without files": damage(without("_data_files"), "state.json"),
    "state without fingerprint": damage(without("_fingerprint"), "state.json"),
    "state is a list": damage(lambda _: [1], "state.json"),
    "state is null": damage(lambda _: None, "state.json"),
    "state is cut": text("state.json", "{"),
    "state is empty": text("state.json", ""),
    "state is binary": text("state.json", b"\xff\xfe\x00"),
    "state has a missing file": damage(lambda c: c | {"_data_files": [{"filename": "gone.arrow"}]}, "state.json"),
    "state has files of another type": damage(lambda c: c | {"_data_files": [3]}, "state.json"),
    "info is cut": text("dataset_info.json", '{"features": {'),
    "info is a number": damage(lambda _: 3, "dataset_info.json"),
    "info has unknown types": damage(lambda c: c | {"features": {"name": {"_type": "Nope"}}}, "dataset_info.json"),
    "info has features of another type": damage(lambda c: c | {"features": 7}, "dataset_info.json"),
    "info lacks a column": damage(lambda c: c | {"features": {"name": TEXT}}, "dataset_info.json"),
    "info is missing": lambda folder: (folder / "dataset_info.json").unlink(),
    "state is missing": lambda folder: (folder / "state.json").unlink(),
    "rows are cut": lambda folder: os.truncate(next(folder.glob("*.arrow")), 700),
    "rows are empty": lambda folder: os.truncate(next(folder.glob("*.arrow")), 0),
    "rows are missing": lambda folder: next(folder.glob("*.arrow")).unlink(),
    "rows are text": lambda folder: next(folder.glob("*.arrow")).write_text("rows"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "people"
    Dataset(people()).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_are_refused_in_one_line(name: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "people"))
    assert load_profiles(ProfilesFromDisk(source="disk", path=str(folder))).num_profiles == 40
    DAMAGES[name](folder)
    with pytest.raises(ValueError, match=f"profiles at {folder}: ") as caught:
        load_profiles(ProfilesFromDisk(source="disk", path=str(folder)))
    assert "\n" not in str(caught.value)


def test_damaged_parquet_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "people.parquet", people()))
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:400], whole[:100] + b"\xff" * 200 + whole[300:], b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"profiles at {path}: "):
            load_profiles(ProfilesFromDisk(source="disk", path=str(path)))


def test_folders_named_like_partitions_add_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "year=2020" / "employer=Acme"
    folder.mkdir(parents=True)
    path = write(folder / "people.parquet", people())
    assert load_profiles(ProfilesFromDisk(source="disk", path=path)).unused_columns == ()


def test_repeated_columns_of_a_file_are_refused(tmp_path: Path) -> None:
    table = people()
    pq.write_table(
        table.append_column(pa.field("employer", pa.string()), table["employer"]), tmp_path / "people.parquet"
    )
    with pytest.raises(ValueError, match="employer"):
        load_profiles(ProfilesFromDisk(source="disk", path=str(tmp_path / "people.parquet")))
