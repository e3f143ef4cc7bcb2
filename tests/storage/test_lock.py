"""Tests of the sweep lock: one process at a time, also with wrong clocks, pauses, and folders that are deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycap.errors import LeaseLostError
from raycap.storage import Storage, claims
from raycap.storage.claims import Holder, Liveness, Watch, holder_of, read_claims
from raycap.storage.lock import LockedError, guarded, locked, refuse_others
from tests.support.object_store import ObjectStore

HOLD = """
import platform, sys, time
uri, host, skew, beat, stale, work = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
clock = time.time
time.time = lambda: clock() + skew
if host: platform.node = lambda: host
from raycap.storage import Storage, claims
from raycap.storage.lock import LockedError, guarded, locked
claims.BEAT_SECONDS, claims.STALE_SECONDS, claims.POLL_SECONDS = beat, stale, beat / 2
storage = Storage.at(uri)
try:
    with locked(storage, "grid") as lease:
        print("held", flush=True)
        lease.on_loss(lambda: print("lost taken" if lease.was_taken else "lost gone", lease.reason, flush=True))
        end = time.monotonic() + work
        while time.monotonic() < end and not lease.is_lost:
            guarded(storage, lease.id).write("grid/work", host)
            time.sleep(0.05)
except LockedError as error:
    print("refused", error, flush=True)
except OSError as error:
    print("stopped", type(error).__name__, flush=True)
"""
SHIPPED = (claims.BEAT_SECONDS, claims.STALE_SECONDS)


class Other:
    """Another process that tries to hold the lock; with a host, it claims to run there."""

    def __init__(self, uri: str, host: str = "", *, skew: float = 0.0, beats: tuple[float, float] = SHIPPED) -> None:
        arguments = map(str, (uri, host, skew, *beats, 60))
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.pid = self.process.pid

    def line(self) -> str:
        """Return the next line that the process prints."""
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Other]]:
    others: list[Other] = []

    def begin(*arguments: object, **options: object) -> Other:
        others.append(Other(*arguments, **options))
        return others[-1]

    yield begin
    for other in others:
        other.end()


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3").uri(tmp_path.name)


def elsewhere(**changes: object) -> str:
    """Return the claim of a process on another machine."""
    return (
        Holder.of_this_process()
        .model_copy(update={"host": "elsewhere", "user": "ada", "pid": 1} | changes)
        .model_dump_json()
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short times of this process, with the ratios of the shipped ones."""
    for name, value in {"BEAT_SECONDS": 0.25, "STALE_SECONDS": 2.0, "POLL_SECONDS": 0.1}.items():
        monkeypatch.setattr(claims, name, value)


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even shorter times, with the same ratios, for claims that no living process changes."""
    for name, value in {"BEAT_SECONDS": 0.05, "STALE_SECONDS": 0.4, "POLL_SECONDS": 0.02}.items():
        monkeypatch.setattr(claims, name, value)


def test_a_second_run_is_refused_with_the_holder_of_the_lock(uri: str, start: Callable[..., Other]) -> None:
    storage, other = Storage.at(uri), start(uri)
    assert other.line() == "held\n"
    with pytest.raises(LockedError, match=f"process {other.pid} of .* since 20.*UTC"), locked(storage, "grid"):
        pass
    assert holder_of(storage, "grid").pid == other.pid
    with locked(storage, "another"):  # a lock covers one sweep, not the whole storage
        pass


def test_the_lock_of_a_dead_process_is_free(uri: str, start: Callable[..., Other]) -> None:
    storage, other = Storage.at(uri), start(uri)
    assert other.line() == "held\n"
    other.end()
    assert len(read_claims(storage, "grid")) == 1
    assert holder_of(storage, "grid") is None
    with locked(storage, "grid"):
        assert holder_of(storage, "grid").pid == os.getpid()
    assert read_claims(storage, "grid") == {}


@pytest.mark.parametrize("skew", [420.0, *(pytest.param(skew, marks=pytest.mark.slow) for skew in (-420.0, 1e9))])
def test_clocks_of_other_machines_are_not_compared(s3: ObjectStore, start: Callable[..., Other], skew: float) -> None:
    """A URI of another host name stands for another machine: the kernel does not exclude the processes from each other."""
    path = f"skew{skew}"
    first = start(s3.uri(path), "alpha", beats=(0.5, 5))
    assert first.line() == "held\n"
    second = start(s3.uri(path, "localhost"), "beta", skew=skew, beats=(0.5, 5))
    assert second.line().startswith(f"refused sweep grid is already running: process {first.pid} of ")


def test_a_paused_holder_notices_that_the_lock_was_taken(s3: ObjectStore, start: Callable[..., Other]) -> None:
    beats = (0.5, 3.0)
    first = start(s3.uri("paused"), "alpha", beats=beats)
    assert first.line() == "held\n"
    os.kill(first.pid, signal.SIGSTOP)
    second = start(s3.uri("paused", "localhost"), "beta", beats=beats)
    assert second.line() == "held\n"
    os.kill(first.pid, signal.SIGCONT)
    # Either the heartbeat or a write of the sweep notices it first.
    assert first.line().startswith(("lost taken sweep grid was taken over by process", "stopped LeaseLostError"))
    first.process.wait()
    storage = Storage.at(s3.uri("paused"))
    assert storage.read_text("grid/work") == "beta"
    assert [Holder.read(content).pid for content in read_claims(storage, "grid").values()] == [second.pid]
    third = start(s3.uri("paused", "localhost"), "gamma", beats=beats)
    assert third.line().startswith("refused sweep grid is already running: ")


def test_at_most_one_of_several_simultaneous_processes_gets_the_lock(
    s3: ObjectStore, start: Callable[..., Other]
) -> None:
    """Also on a slow storage, whose delay is longer than the interval of the heartbeat."""
    s3.faults.delay_s = 0.1
    hosts = ["127.0.0.1", "localhost", "LOCALHOST"]
    others = [start(s3.uri("race", host), f"host{host}", beats=(0.25, 10)) for host in hosts]
    words = [other.line().split()[0] for other in others]
    assert words.count("held") <= 1
    assert set(words) <= {"held", "refused"}


@pytest.mark.usefixtures("shorter")
def test_the_claim_of_another_machine_is_free_once_it_was_watched_without_a_change(uri: str) -> None:
    storage, messages = Storage.at(uri), list[str]()
    storage.write(f"grid/lock/000007-{'a' * 32}.json", elsewhere(alive_at=time.time() + 1e6))
    with locked(storage, "grid", messages.append) as lease:
        assert lease.id.claim.startswith("000008-")
        assert list(read_claims(storage, "grid")) == [lease.id.claim]
    assert "process 1 of ada on elsewhere" in messages[0]


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}', "[]", "null", "\\xff", "[" * 10_000])
@pytest.mark.usefixtures("short")
def test_a_damaged_claim_does_not_block(tmp_path: Path, content: str) -> None:
    storage = Storage.at(str(tmp_path))
    for sweep in ("grid", "neighbour"):
        storage.write(f"{sweep}/lock/000001-{'a' * 32}.json", content)
        storage.write(f"{sweep}/lock/notes.txt", content)
        storage.write(f"{sweep}/lock.json", content)
    storage.write("neighbour/sweep.json", '{"trials": [{"trial_id": "a"}]}')
    with locked(storage, "grid"):
        refuse_others("grid", {"a"}, storage)
    assert holder_of(storage, "neighbour") is None


@pytest.mark.parametrize("field", ["alive_at", "since", "born", "pid", "host"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e300", "[]", '"x"', "null", "-1"])
@pytest.mark.usefixtures("shorter")
def test_a_claim_with_values_of_wrong_types_or_ranges_does_not_block(tmp_path: Path, field: str, value: str) -> None:
    storage = Storage.at(str(tmp_path))
    fields = json.loads(elsewhere()) | {field: "VALUE"}
    storage.write(f"grid/lock/000001-{'a' * 32}.json", json.dumps(fields).replace('"VALUE"', value))
    with locked(storage, "grid"):
        pass


@pytest.mark.parametrize("record", ["{", "[]", '{"trials": 3}', '{"trials": [3]}', '{"trials": [{"trial_id": []}]}'])
def test_a_neighbour_with_a_damaged_record_does_not_block(tmp_path: Path, record: str) -> None:
    storage = Storage.at(str(tmp_path))
    with locked(storage, "neighbour"):
        storage.write("neighbour/sweep.json", record)
        refuse_others("grid", {"a"}, storage)


def test_trials_of_another_running_sweep_are_refused(tmp_path: Path, start: Callable[..., Other]) -> None:
    """Trials are stored by id, so two sweeps in one storage may share some."""
    storage, other = Storage.at(str(tmp_path)), start(str(tmp_path))
    assert other.line() == "held\n"
    storage.write("grid/sweep.json", json.dumps({"trials": [{"trial_id": "a"}, {"trial_id": "b"}]}))
    with pytest.raises(LockedError, match=f"1 of these trials .* sweep grid.*process {other.pid} of"):
        refuse_others("second", {"b", "c"}, storage)
    refuse_others("second", {"c"}, storage)
    refuse_others("grid", {"a", "b"}, storage)  # the sweep that holds the lock itself
    other.end()
    refuse_others("second", {"b", "c"}, storage)


def test_readers_see_whole_claims_while_the_holder_changes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 1e-4)
    storage = Storage.at(str(tmp_path))
    with locked(storage, "grid"):
        beats = [holder.beats if (holder := holder_of(storage, "grid")) else None for _ in range(300)]
    assert None not in beats
    assert beats[-1] > beats[0]


@pytest.mark.parametrize("vanish", ["sweep deleted", "storage deleted", "storage renamed", "storage replaced"])
@pytest.mark.usefixtures("short")
def test_a_folder_that_vanishes_is_noticed_and_not_created_again(
    tmp_path: Path, start: Callable[..., Other], vanish: str
) -> None:
    root = tmp_path / "runs"
    storage = Storage.at(str(root))
    with locked(storage, "grid") as lease:
        lost = threading.Event()
        lease.on_loss(lost.set)
        worker = guarded(storage, lease.id)
        worker.write("trials/a/result.json", "{}")
        if vanish == "sweep deleted":
            shutil.rmtree(root / "grid")
        elif vanish == "storage deleted":
            shutil.rmtree(root)
        else:
            root.rename(tmp_path / "away")
            if vanish == "storage replaced":
                shutil.copytree(tmp_path / "away", root)
        left = sorted(tmp_path.rglob("*"))
        second = start(str(root))  # while the first holder may not have noticed anything
        assert second.line().startswith("refused sweep grid is already running")
        assert lost.wait(10)
        assert not lease.was_taken
        assert str(root / "grid") in lease.reason
        if vanish != "storage replaced":
            with pytest.raises(LeaseLostError):
                worker.write("trials/a/checkpoint", "x")
            assert sorted(tmp_path.rglob("*")) == left


def test_a_lease_lost_while_the_storage_is_down_is_noticed_afterwards(s3: ObjectStore, short: None) -> None:
    storage = Storage.at(s3.uri("down"))
    with locked(storage, "grid") as lease:
        s3.faults.down = True
        deadline = time.monotonic() + 60
        while lease.is_reachable and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not lease.is_reachable
        assert not lease.is_lost
        s3.faults.down = False
        while not lease.is_reachable and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.is_reachable
        storage.write(f"grid/lock/000009-{'b' * 32}.json", elsewhere())
        lease.check()
        assert lease.was_taken
        assert "process 1 of ada on elsewhere" in lease.reason


@pytest.mark.usefixtures("shorter")
def test_time_in_which_the_claim_was_not_watched_does_not_count() -> None:
    """A process that was paused or could not reach the storage does not know whether the claim changed."""
    claim, watch = {"a": elsewhere().encode()}, Watch()
    assert watch.observe(claim) == {"a": Liveness.UNKNOWN}
    time.sleep(claims.STALE_SECONDS)
    assert watch.observe(claim) == {"a": Liveness.UNKNOWN}
    while watch.observe(claim) == {"a": Liveness.UNKNOWN}:
        time.sleep(claims.POLL_SECONDS)
    assert watch.observe(claim) == {"a": Liveness.DEAD}
    assert watch.observe({"a": elsewhere(beats=1).encode()}) == {"a": Liveness.ALIVE}


@pytest.mark.parametrize(
    ("changes", "is_alive"),
    [
        ({}, True),
        ({"alive_at": 0.0}, True),  # the process was suspended, but exists
        ({"born": 1.0}, None),  # the PID was reused, or the clock was set
        ({"pid": 2**22 + 1}, False),
        ({"machine": "before a reboot"}, None),  # or another host of the same name
    ],
)
def test_only_a_process_of_this_machine_is_looked_up(changes: dict[str, object], is_alive: bool | None) -> None:
    assert Holder.of_this_process().model_copy(update=changes).is_alive == is_alive
