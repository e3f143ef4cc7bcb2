"""Tests of atomic writes and checksums: files have old or new content, and any damage is detected."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycap.storage import DamagedError, Storage, checkpoint_path, checkpoint_steps, trial_folder
from raycap.storage.checksum import verify_checksum, with_checksum

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text().filter(lambda key: key != "sha256"), VALUES, min_size=1, max_size=4)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not name.endswith(".tmp") and len(name.encode()) < 200
)
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


# --- checksums --------------------------------------------------------------------------------------------------------


@given(OBJECTS, st.sampled_from([None, 1, 2]), st.booleans())
def test_json_with_a_checksum_is_still_valid_json(tree: dict, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=ascii_only)
    file = with_checksum(text)
    assert file.startswith('{"sha256": "')
    assert {key: value for key, value in json.loads(file).items() if key != "sha256"} == tree
    assert json.loads(verify_checksum(file.encode())) == tree


@given(OBJECTS, st.data())
def test_any_damage_to_a_file_with_a_checksum_is_detected(tree: dict, data: st.DataObject) -> None:
    file = with_checksum(json.dumps(tree, indent=1)).encode()
    index = data.draw(st.integers(0, len(file) - 1))
    flipped = bytes([file[index] ^ data.draw(st.integers(1, 255))])
    damaged = (
        file[:index] + flipped + file[index + 1 :],
        file[:index],
        file[:index] + file[index + 1 :],
        file[:index] + bytes(len(file) - index),
        file + flipped,
        json.dumps(tree, indent=1).encode(),  # without a checksum
    )
    for content in damaged:
        with pytest.raises(DamagedError):
            verify_checksum(content)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 1 MiB."""
    mount_point = tmp_path / "small disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(full_disk: Path) -> None:
    storage, old = Storage.at(str(full_disk)), os.urandom(300_000)
    storage.write("trials/a/result.json", old)
    for _ in range(2):  # a temporary file left by the first attempt would make the second fail earlier
        with pytest.raises(OSError, match=r"small disk/trials/a/result\.json'$"):
            storage.write("trials/a/result.json", os.urandom(1_500_000))
        assert [path.name for path in (full_disk / "trials" / "a").iterdir()] == ["result.json"]
        assert storage.read("trials/a/result.json") == old
    new = os.urandom(600_000)
    storage.write("trials/a/result.json", new)
    assert storage.read("trials/a/result.json") == new


def test_the_error_for_a_file_that_cannot_be_replaced_has_its_path(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=r"taken'$"):
        storage.write("taken", "something")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@SHARED_FOLDER
@given(folder=NAMES, name=NAMES, content=st.binary(), after=st.binary())
def test_files_with_any_name_and_content_can_be_written(
    tmp_path: Path, folder: str, name: str, content: bytes, after: bytes
) -> None:
    storage = Storage.at(str(tmp_path / "Läufe 1"))
    for data in (content, after):
        storage.write(f"trials/{folder}/{name}", data)
        assert storage.read(f"trials/{folder}/{name}") == data
    assert name in storage.folders("trials")[folder]


def test_a_process_killed_while_writing_leaves_a_valid_file(tmp_path: Path) -> None:
    code = (
        "import sys; from raycap.storage import Storage; from raycap.storage.checksum import with_checksum\n"
        "storage, number = Storage.at(sys.argv[1]), 0\n"
        "while True:\n"
        "    storage.write('trials/a/result.json', with_checksum('{\"x\": \"' + str(number % 10) * 5_000_000 + '\"}'))\n"
        "    number += 1\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not (tmp_path / "trials" / "a" / "result.json").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(json.loads(verify_checksum((tmp_path / "trials" / "a" / "result.json").read_bytes()))["x"]) < set(
            "0123456789"
        )


def test_unfinished_files_are_ignored(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    storage.write(checkpoint_path("a", 40), b"state")
    folder = tmp_path / trial_folder("a")
    (folder / "result.json.123.tmp").write_text("half")
    (folder / "checkpoint-000000000080.pt.123.tmp").write_text("half")
    assert checkpoint_steps(storage.folders("trials")["a"]) == [40]
    assert storage.folders("trials") == {"a": ["checkpoint-000000000040.pt"]}


def test_every_damaged_file_that_is_set_aside_is_kept(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    for content in ("one", "two", "three"):
        storage.write("result.json", content)
        storage.set_aside("result.json")
    storage.set_aside("result.json")  # the file no longer exists
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["one", "three", "two"]
