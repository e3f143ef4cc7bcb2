"""One sweep runs once at a time, and a lock outlives nobody."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pyarrow import fs

from raycap.storage import Storage
from raycap.storage.lock import STALE_SECONDS, Holder, LockedError, holder_of, lock_path, locked, refuse_others

HOLD = """
import sys, time
from raycap.storage.lock import locked
from raycap.storage import Storage
with locked(Storage.at(sys.argv[1]), "grid"):
    print("held", flush=True)
    time.sleep(60)
"""


class ObjectStore(Storage):
    """The same folder as if it were an object store: without the operating system's locks."""

    @property
    def is_local(self) -> bool:
        return False


def local(folder: Path) -> Storage:
    return Storage.at(str(folder))


def object_store(folder: Path) -> ObjectStore:
    return ObjectStore(fs.LocalFileSystem(), str(folder))


@pytest.fixture
def other(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_told_who_holds_the_lock(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    storage = local(tmp_path)
    told = f"being run already: process {other.pid} of .* on {platform.node()}, since 20.*UTC"
    with pytest.raises(LockedError, match=told), locked(storage, "grid"):
        pass
    assert holder_of(storage, "grid").pid == other.pid
    with locked(storage, "another"):  # locks are of sweeps, not of storages
        pass


@pytest.mark.parametrize("store", [local, object_store])
def test_the_lock_of_a_dead_process_is_taken_over(
    tmp_path: Path, other: "subprocess.Popen[str]", store: Callable[[Path], Storage]
) -> None:
    storage = store(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / lock_path("grid")).read_text())["pid"] == other.pid
    with locked(storage, "grid"):
        assert holder_of(storage, "grid").pid == os.getpid()
    assert holder_of(storage, "grid") is None


def test_trials_that_another_sweep_trains_now_are_not_trained_twice(
    tmp_path: Path, other: "subprocess.Popen[str]"
) -> None:
    """Trials belong to no sweep: two sweeps in one storage may share some."""
    storage = local(tmp_path)
    (tmp_path / "grid" / "sweep.json").write_text(json.dumps({"trials": [{"trial_id": "a"}, {"trial_id": "b"}]}))
    with pytest.raises(LockedError, match=f"1 of these trials belong to sweep grid too.*process {other.pid} of"):
        refuse_others("mine", {"b", "c"}, storage)
    refuse_others("mine", {"c"}, storage)
    refuse_others("grid", {"a", "b"}, storage)  # one's own
    other.kill()
    other.wait()
    refuse_others("mine", {"b", "c"}, storage)


def write_holder(folder: Path, **changes: object) -> None:
    path = folder / lock_path("grid")
    path.parent.mkdir(exist_ok=True)
    about = asdict(Holder.myself()) | {"host": "elsewhere", "user": "ada", "pid": 1, "token": "t"}
    path.write_text(json.dumps(about | changes))


@pytest.mark.parametrize("store", [local, object_store])
def test_other_machines_count_as_alive_while_they_give_signs_of_life(
    tmp_path: Path, store: Callable[[Path], Storage]
) -> None:
    write_holder(tmp_path)
    with pytest.raises(LockedError, match="process 1 of ada on elsewhere"), locked(store(tmp_path), "grid"):
        pass
    write_holder(tmp_path, alive_at=time.time() - 2 * STALE_SECONDS)
    with locked(store(tmp_path), "grid"):
        assert holder_of(store(tmp_path), "grid").host == platform.node()


@pytest.mark.parametrize(
    ("of_myself", "is_dead"),
    [
        ({}, False),
        ({"alive_at": 0.0}, False),  # it stood still, but lives
        ({"alive_at": 0.0, "born": 1.0}, True),  # its number has come again
        ({"born": 1.0}, False),  # the clock has jumped
        ({"machine": "before it was started again"}, False),  # or another of the same name
        ({"machine": "before it was started again", "alive_at": 0.0}, True),
    ],
)
def test_a_number_that_comes_again_is_another_process(of_myself: dict[str, object], is_dead: bool) -> None:
    assert replace(Holder.myself(), **of_myself).is_dead == is_dead


@pytest.mark.parametrize("garbage", ["", "{", '{"pid": 3}', "[]"])
def test_a_damaged_lock_holds_nobody_up(tmp_path: Path, garbage: str) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / lock_path("grid")).write_text(garbage)
    with locked(local(tmp_path), "grid"):
        pass


def test_of_two_that_write_at_once_the_last_has_it(tmp_path: Path) -> None:
    """Where nothing locks: whoever finds another's name after a moment has lost."""
    told: list[str] = []
    begun = threading.Barrier(2)

    def try_it() -> None:
        begun.wait()
        try:
            with locked(object_store(tmp_path), "grid"):
                told.append("had it")
                time.sleep(2)
        except LockedError:
            told.append("had it not")

    threads = [threading.Thread(target=try_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) in (["had it", "had it not"], ["had it not", "had it not"])


def test_a_holder_says_who_it_is() -> None:
    assert str(os.getpid()) in str(Holder.myself())
