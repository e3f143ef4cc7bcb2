"""Lock of a sweep, so that only one process runs it at a time, and the lease by which its holder notices a loss.

claims.py describes the files of the lock. On one machine, processes also exclude each other through the kernel, which
releases their locks when they die and does not depend on a folder that may be deleted, renamed or replaced.

A lease can be lost: another process takes over the lock of a holder that was paused or cut off from the storage, or the
sweep's folder is deleted or renamed. The holder reads the claims before and after it writes its heartbeat, so it notices the
loss and stops. The other processes of its sweep write through a storage (`guarded`) that raises an error after the loss.
"""

import errno
import hashlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from raycap.errors import LeaseLostError
from raycap.storage import claims
from raycap.storage.claims import (
    Holder,
    Liveness,
    Watch,
    claim_names,
    generation,
    lock_path,
    new_claim,
    read_claims,
)
from raycap.storage.files import TRIALS_FOLDER, UNFINISHED, Storage
from raycap.storage.retries import NO_RETRIES, OUTAGE_LIMIT_S, advice
from raycap.storage.sweep_folder import SweepFolder

MAX_ATTEMPTS = 5
"""Number of attempts if two processes try to acquire a lock at the same moment."""
CONTENTION_SECONDS = 2.0
"""Longest random delay before a further attempt."""


class LockedError(Exception):
    """Another process holds the lock; the message has its PID, user, host and start time."""


@dataclass(frozen=True)
class LeaseId:
    """Identity of a held lock, by which other processes of the sweep find out whether it is still held."""

    sweep_name: str
    claim: str


@dataclass
class Lease:
    """A held lock."""

    id: LeaseId
    reason: str = ""
    """Why the lock was lost, and what to do; empty while it is held."""
    was_taken: bool = False
    """Whether another process has taken over the lock; otherwise the sweep's folder is gone."""
    is_reachable: bool = True
    """Whether the last heartbeat reached the storage."""
    _callbacks: list[Callable[[], None]] = field(default_factory=list)
    _check: Callable[[], None] = lambda: None

    @property
    def is_lost(self) -> bool:
        """Whether the lock is known to be lost."""
        return bool(self.reason)

    def check(self) -> None:
        """Check now whether the lock is still held, without waiting for the next heartbeat."""
        self._check()

    def on_loss(self, callback: Callable[[], None]) -> None:
        """Call a function once the lock is lost, in another thread."""
        self._callbacks.append(callback)
        if self.is_lost:
            callback()

    def lose(self, error: LeaseLostError) -> None:
        """Record that the lock is lost, and call the callbacks."""
        if not self.is_lost:
            self.was_taken, self.reason = error.was_taken, str(error)
            for callback in self._callbacks:
                callback()


class _Guard:
    """Checks before writes whether a lock is still held."""

    def __init__(self, storage: Storage, lease: LeaseId) -> None:
        self._storage, self._lease = storage, lease
        self._checked_at = -float("inf")

    def check(self) -> None:
        """Raise LeaseLostError if the lock is lost. On object stores, checks at most once per heartbeat interval."""
        # A local folder is checked before every write, because a write would create it again if it was deleted.
        if not self._storage.is_local and time.monotonic() < self._checked_at + claims.BEAT_SECONDS:
            return
        with _unless_unreachable():
            raise_if_lost(self._storage, self._lease)
            self._checked_at = time.monotonic()


@contextmanager
def _unless_unreachable() -> Iterator[None]:
    """Suppress errors of the storage, but not LeaseLostError, which is also an OSError."""
    try:
        yield
    except LeaseLostError:
        raise
    except OSError:
        return


def guarded(storage: Storage, lease: LeaseId | None) -> Storage:
    """Return a storage that raises LeaseLostError instead of writing once a lock has been lost.

    Without a lease, as in tests and in commands that write nothing, returns the storage itself.
    """
    return replace(storage, guard=_Guard(replace(storage, retry_limit=NO_RETRIES), lease).check) if lease else storage


def raise_if_lost(storage: Storage, lease: LeaseId) -> None:
    """Raise LeaseLostError if a lock is no longer held, OSError if the storage does not answer."""
    names = claim_names(storage, lease.sweep_name)
    later = [name for name in names if generation(name) > generation(lease.claim)]
    if later:
        with suppress(FileNotFoundError):
            holder = Holder.read(storage.read(lock_path(lease.sweep_name, max(later, key=generation))))
            raise LeaseLostError.taken(
                f"sweep {lease.sweep_name} was taken over by {holder or 'another process'}, because this command was "
                f"paused or cut off from the storage for more than {claims.STALE_SECONDS:.0f} s; it has stopped, and the "
                "other one continues"
            )
    if lease.claim not in names:
        raise _gone(storage, lease.sweep_name)


def _gone(storage: Storage, sweep_name: str) -> LeaseLostError:
    folder = SweepFolder(storage, sweep_name).location
    return LeaseLostError(
        f"the folder {folder} was deleted, renamed or replaced while the sweep was running; nothing more is written to it. "
        "If it was renamed, restore its name and run the same command; if it was deleted, run the same command to start "
        "the sweep again"
    )


def _unreachable(storage: Storage, error: OSError) -> LeaseLostError:
    minutes = f"{OUTAGE_LIMIT_S / 60:.0f} min"
    return LeaseLostError(f"storage {storage.location()} has not answered for {minutes} ({error}); {advice(error)}")


def _ignore(message: str) -> None:
    pass


def refuse_others(
    sweep_name: str, trial_ids: set[str], storage: Storage, announce: Callable[[str], None] = _ignore
) -> None:
    """Raise LockedError if another running sweep in this storage has one of these trials.

    Trials are stored by id, across sweeps: two runs would train the same trial into the same folder.
    """
    for name in storage.names(""):
        if name in (sweep_name, TRIALS_FOLDER) or not claim_names(storage, name):
            continue
        try:
            record = json.loads(SweepFolder(storage, name).read(SweepFolder.SWEEP))
            shared = len({str(trial["trial_id"]) for trial in record["trials"]} & trial_ids)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or not a sweep's folder
            continue
        if shared:
            problem = f"{shared} of these trials also belong to sweep {name}, which is running"
            _watch_until_dead(storage, name, problem, announce)


def _watch_until_dead(
    storage: Storage, sweep_name: str, problem: str, announce: Callable[[str], None]
) -> dict[str, bytes]:
    """Watch the claims to a sweep until the writers of all of them are dead, and return these claims.

    Raises LockedError, with `problem` and a description of the writer, as soon as one of the writers is found alive.
    """
    watch, was_announced, holders = Watch(), False, dict[str, Holder]()
    while True:
        found = read_claims(storage, sweep_name)
        holders |= {name: holder for name, content in found.items() if (holder := Holder.read(content))}
        verdicts = watch.observe(found)
        if living := [name for name, verdict in verdicts.items() if verdict is Liveness.ALIVE]:
            writer = holders.get(max(living, key=generation), "by a process whose claim cannot be read")
            raise LockedError(f"{problem}: {writer}")
        unknown = [name for name, verdict in verdicts.items() if verdict is Liveness.UNKNOWN]
        if not unknown:
            return found
        holder = holders.get(max(unknown, key=generation))
        if holder and not was_announced:
            was_announced = True
            limit = f"{claims.STALE_SECONDS:.0f} s"
            announce(
                f"The lock of sweep {sweep_name} belongs to {holder}. Watching for up to {limit} whether it still runs."
            )
        time.sleep(claims.POLL_SECONDS)


@contextmanager
def locked(storage: Storage, sweep_name: str, announce: Callable[[str], None] = _ignore) -> Iterator[Lease]:
    """Hold a sweep's lock.

    If a process on another machine holds it, watches for at most STALE_SECONDS whether that process is alive; `announce` is
    called with a message before that. Raises LockedError if another process holds the lock, OSError if the storage cannot
    be written.
    """
    with _machine_lock(storage, sweep_name):
        holder, claim = _acquire(storage, sweep_name, announce)
        lease = Lease(LeaseId(sweep_name, claim))
        with _folder_handle(storage, sweep_name) as is_in_place:
            heartbeat = _Heartbeat(replace(storage, retry_limit=NO_RETRIES), lease, holder, is_in_place)
            try:
                yield lease
            finally:
                heartbeat.end()


def _acquire(storage: Storage, sweep_name: str, announce: Callable[[str], None]) -> tuple[Holder, str]:
    """Write a claim that excludes all others; returns this process's description and the name of the claim."""
    for attempt in range(MAX_ATTEMPTS):
        dead = _watch_until_dead(storage, sweep_name, f"sweep {sweep_name} is already running", announce)
        holder, claim = Holder.of_this_process(), new_claim(dead)
        storage.write(lock_path(sweep_name, claim), holder.model_dump_json())
        # Every process writes its claim before it lists the claims. So if another process requests the lock at the same
        # moment, its claim is in this list, or ours is in its list, or both. A process that sees a new claim withdraws
        # its own, so two processes cannot both acquire the lock.
        others = read_claims(storage, sweep_name)
        others.pop(claim, None)
        if others.items() <= dead.items():
            if any(holder and holder.is_alive is None for holder in map(Holder.read, dead.values())):
                # The previous holder died or is paused on another machine. Its workers may still run there, so wait
                # until they have noticed that the lock is lost and no longer write.
                time.sleep(claims.BEAT_SECONDS)
            for name in dead:
                storage.delete(lock_path(sweep_name, name))
            return holder, claim
        storage.delete(lock_path(sweep_name, claim))
        if attempt + 1 < MAX_ATTEMPTS:
            time.sleep(random.uniform(0, CONTENTION_SECONDS))
    raise LockedError(f"other processes try to run sweep {sweep_name} at the same moment; run the command again")


@contextmanager
def _machine_lock(storage: Storage, sweep_name: str) -> Iterator[None]:
    """Exclude other processes of this machine. Raises LockedError.

    The lock is the name of an abstract Unix socket, which no process connects to. The kernel frees the name when the process
    dies. Systems other than Linux have no such names, so there processes exclude each other by their claims alone.
    """
    if sys.platform != "linux":
        yield
        return
    location = os.path.realpath(storage.path(sweep_name)) if storage.is_local else storage.location(sweep_name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        try:
            held.bind("\0raycap-" + hashlib.sha256(location.encode()).hexdigest())
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with suppress(OSError):
                for content in read_claims(storage, sweep_name).values():
                    if holder := Holder.read(content):
                        raise LockedError(f"sweep {sweep_name} is already running: {holder}") from None
            raise LockedError(
                f"sweep {sweep_name} is already running: by a process of this machine that is starting or ending"
            ) from None
        yield


@contextmanager
def _folder_handle(storage: Storage, sweep_name: str) -> Iterator[Callable[[], bool]]:
    """Keep a local sweep folder open. Yields a function that returns whether its path still leads to the same folder.

    An open folder keeps its inode number, so another folder at the same path is recognised as different.
    """
    if not storage.is_local:
        yield lambda: True
        return
    path = storage.path(sweep_name)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def is_in_place() -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    try:
        yield is_in_place
    finally:
        os.close(descriptor)


class _Heartbeat:
    """A thread that changes the claim at regular intervals and checks whether the lock is still held."""

    def __init__(self, storage: Storage, lease: Lease, holder: Holder, is_in_place: Callable[[], bool]) -> None:
        self._storage, self._lease, self._holder, self._is_in_place = storage, lease, holder, is_in_place
        self._over, self._checking = threading.Event(), threading.Lock()
        self._reached_at = time.monotonic()
        lease._check = self._check_now
        self._thread = threading.Thread(target=self._beat_until_over, name="raycap-lock", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and delete the claim."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            self._storage.delete(lock_path(self._lease.id.sweep_name, self._lease.id.claim))

    def _beat_until_over(self) -> None:
        interval_s = 0.0
        while not self._over.wait(interval_s):
            if self._lease.is_lost:
                return
            self._check_now(beat=True)
            # While the storage does not answer, try more often, so that the sweep continues soon after the outage.
            interval_s = claims.BEAT_SECONDS if self._lease.is_reachable else claims.BEAT_SECONDS / 5

    def _check_now(self, *, beat: bool = False) -> None:
        """Check whether the lock is held, and if so change the claim if `beat`."""
        with self._checking:
            try:
                self._raise_if_lost()
                if beat:
                    self._holder = self._holder.beat()
                    self._write(self._holder.model_dump_json())
                    # The lock may have been taken over between the check and the write.
                    self._raise_if_lost()
                self._lease.is_reachable, self._reached_at = True, time.monotonic()
            except LeaseLostError as error:
                self._lease.lose(error)
            except OSError as error:
                self._lease.is_reachable = False
                if time.monotonic() > self._reached_at + OUTAGE_LIMIT_S:
                    self._lease.lose(_unreachable(self._storage, error))

    def _raise_if_lost(self) -> None:
        if not self._is_in_place():
            raise _gone(self._storage, self._lease.id.sweep_name)
        raise_if_lost(self._storage, self._lease.id)

    def _write(self, text: str) -> None:
        path = lock_path(self._lease.id.sweep_name, self._lease.id.claim)
        if not self._storage.is_local:
            self._storage.write(path, text)
            return
        # The file is replaced by a rename, so that no reader sees a part of it. If the folder was deleted, Storage.write
        # would create it again; this raises FileNotFoundError instead.
        target = self._storage.path(path)
        Path(target + UNFINISHED).write_text(text, encoding="utf-8")
        os.replace(target + UNFINISHED, target)
