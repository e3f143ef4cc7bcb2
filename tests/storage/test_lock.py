"""Tests of the sweep lock: one process at a time, and locks of dead processes are free."""

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
from raycap.storage.lock import STALE_SECONDS, Holder, LockedError, holder_of, locked, refuse_others

HOLD = """
import sys, time
from raycap.storage.lock import locked
from raycap.storage import Storage
with locked(Storage.at(sys.argv[1]), "grid"):
    print("held", flush=True)
    time.sleep(60)
"""


class ObjectStore(Storage):
    """A local folder that is treated as an object store, without locks of the operating system."""

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


def test_a_second_run_is_refused_with_the_holder_of_the_lock(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    storage = local(tmp_path)
    holder = f"process {other.pid} of .* on {platform.node()}, since 20.*UTC"
    with pytest.raises(LockedError, match=holder), locked(storage, "grid"):
        pass
    assert holder_of(storage, "grid").pid == other.pid
    with locked(storage, "another"):  # a lock covers one sweep, not the whole storage
        pass


@pytest.mark.parametrize("store", [local, object_store])
def test_the_lock_of_a_dead_process_is_free(
    tmp_path: Path, other: "subprocess.Popen[str]", store: Callable[[Path], Storage]
) -> None:
    storage = store(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "grid/lock.json").read_text())["pid"] == other.pid
    with locked(storage, "grid"):
        assert holder_of(storage, "grid").pid == os.getpid()
    assert holder_of(storage, "grid") is None


def test_trials_of_another_running_sweep_are_refused(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    """Trials are stored by id, so two sweeps in one storage may share some."""
    storage = local(tmp_path)
    (tmp_path / "grid" / "sweep.json").write_text(json.dumps({"trials": [{"trial_id": "a"}, {"trial_id": "b"}]}))
    with pytest.raises(LockedError, match=f"1 of these trials .* sweep grid.*process {other.pid} of"):
        refuse_others("second", {"b", "c"}, storage)
    refuse_others("second", {"c"}, storage)
    refuse_others("grid", {"a", "b"}, storage)  # the sweep that holds the lock itself
    other.kill()
    other.wait()
    refuse_others("second", {"b", "c"}, storage)


def write_holder(folder: Path, **changes: object) -> None:
    path = folder / "grid/lock.json"
    path.parent.mkdir(exist_ok=True)
    fields = asdict(Holder.myself()) | {"host": "elsewhere", "user": "ada", "pid": 1, "token": "t"}
    path.write_text(json.dumps(fields | changes))


@pytest.mark.parametrize("store", [local, object_store])
def test_holders_on_other_machines_are_alive_until_their_heartbeat_is_stale(
    tmp_path: Path, store: Callable[[Path], Storage]
) -> None:
    write_holder(tmp_path)
    with pytest.raises(LockedError, match="process 1 of ada on elsewhere"), locked(store(tmp_path), "grid"):
        pass
    write_holder(tmp_path, alive_at=time.time() - 2 * STALE_SECONDS)
    with locked(store(tmp_path), "grid"):
        assert holder_of(store(tmp_path), "grid").host == platform.node()


@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({}, False),
        ({"alive_at": 0.0}, False),  # the process was suspended, but exists
        ({"alive_at": 0.0, "born": 1.0}, True),  # the PID was reused
        ({"born": 1.0}, False),  # the clock was set
        ({"machine": "before a reboot"}, False),  # or another host of the same name
        ({"machine": "before a reboot", "alive_at": 0.0}, True),
    ],
)
def test_a_reused_pid_is_another_process(changes: dict[str, object], is_dead: bool) -> None:
    assert replace(Holder.myself(), **changes).is_dead == is_dead


@pytest.mark.parametrize("garbage", ["", "{", '{"pid": 3}', "[]"])
def test_a_damaged_lock_file_counts_as_free(tmp_path: Path, garbage: str) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/lock.json").write_text(garbage)
    with locked(local(tmp_path), "grid"):
        pass


def test_at_most_one_of_two_simultaneous_writers_gets_the_lock(tmp_path: Path) -> None:
    """Without system locks, a writer that reads back another token gives up."""
    outcomes: list[str] = []
    holders: list[int] = []
    barrier = threading.Barrier(2)

    def acquire() -> None:
        barrier.wait()
        try:
            with locked(object_store(tmp_path), "grid"):
                holders.append(threading.get_ident())
                outcomes.append("acquired" if len(holders) == 1 else "acquired twice")
                time.sleep(2)
                holders.pop()
        except LockedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=acquire) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Both are "acquired" if one thread starts only after the other has released the lock, as on a busy machine.
    assert len(outcomes) == 2
    assert set(outcomes) <= {"acquired", "refused"}


def test_a_holder_is_printed_with_its_pid() -> None:
    assert str(os.getpid()) in str(Holder.myself())
