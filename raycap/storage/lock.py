"""Lock in a sweep's folder, so that only one process runs the sweep at a time.

In a local folder, the lock is an `flock` on `lock.json`, which the operating system releases when the process dies for
any reason. Object stores have no locks, and network file systems may not pass them on to other machines. The holder
therefore also writes its identity and a heartbeat to the file every BEAT_SECONDS; a lock whose last heartbeat is older
than STALE_SECONDS may be acquired by another process.
"""

import errno
import fcntl
import getpass
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from raycap.storage.files import TRIALS_FOLDER, Storage
from raycap.storage.sweep_folder import SweepFolder

BEAT_SECONDS = 30.0
"""Interval of the heartbeat."""
STALE_SECONDS = 300.0
"""Age of the last heartbeat from which a holder counts as dead: ten intervals, so that short outages are tolerated."""
SETTLE_SECONDS = 4.0
"""Time between writing a lock in an object store and reading it back. A write that takes longer than half of it aborts."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Error numbers of file systems that do not support locks."""


class LockedError(Exception):
    """Another process holds the lock; the message has its PID, user, host and start time."""


@dataclass(frozen=True)
class Holder:
    """Holder of a lock, as stored in the file. Times are seconds since the epoch, by the holder's clock."""

    host: str
    machine: str
    """Boot and PID namespace of the process: a PID is unique only within these."""
    user: str
    pid: int
    born: float
    """Creation time of the process."""
    since: float
    """Time at which the lock was acquired."""
    alive_at: float
    """Time of the last heartbeat."""
    token: str
    """Random id of this acquisition."""

    @classmethod
    def myself(cls) -> "Holder":
        """Return a holder that describes this process, acquired now."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container may run under a user id without a name
            user = str(os.getuid())
        now, pid = time.time(), os.getpid()
        return cls(platform.node(), _machine(), user, pid, _process_start_time(pid), now, now, uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """Parse the content of a lock file; None if it is empty or not valid."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether the process no longer exists or, on another machine, its last heartbeat is stale."""
        # abs(): the heartbeat of a host whose clock is far ahead must become stale, too.
        is_silent = abs(time.time() - self.alive_at) > STALE_SECONDS
        if (self.host, self.machine) != (platform.node(), _machine()):
            return is_silent
        # On this machine the process table is reliable. PIDs are reused, so an existing PID must also have the creation
        # time that the holder noted. That time is computed from the clock and moves when the clock is set; it is compared
        # only if the heartbeat is stale, so that a running holder never counts as dead.
        return not psutil.pid_exists(self.pid) or (is_silent and _process_start_time(self.pid) != self.born)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


def _machine() -> str:
    """Return an identifier of this boot of the host and, in containers, of the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # other systems than Linux
        return f"{uuid.getnode():x}"


def _process_start_time(pid: int) -> float:
    """Return the creation time of a process; 0 if it does not exist."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def holder_of(storage: Storage, sweep_name: str) -> Holder | None:
    """Return the holder of a sweep's lock; None if the lock is free or its holder counts as dead."""
    with suppress(OSError):
        holder = Holder.read(SweepFolder(storage, sweep_name).read(SweepFolder.LOCK).decode())
        return None if holder is None or holder.is_dead else holder
    return None


def refuse_others(sweep_name: str, trial_ids: set[str], storage: Storage) -> None:
    """Raise LockedError if another running sweep in this storage has one of these trials.

    Trials are stored by id, across sweeps: two runs would train the same trial into the same folder.
    """
    for name in storage.names(""):
        if name in (sweep_name, TRIALS_FOLDER) or (holder := holder_of(storage, name)) is None:
            continue
        try:
            record = json.loads(SweepFolder(storage, name).read(SweepFolder.SWEEP))
            other_ids = {str(trial["trial_id"]) for trial in record["trials"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or not a sweep's folder
            continue
        if shared := len(other_ids & trial_ids):
            raise LockedError(f"{shared} of these trials also belong to sweep {name}, which is running: {holder}")


@contextmanager
def locked(storage: Storage, sweep_name: str) -> Iterator[None]:
    """Hold a sweep's lock. Raises LockedError if another process holds it, OSError if the storage cannot be written."""
    path = SweepFolder(storage, sweep_name).path(SweepFolder.LOCK)
    with _system_lock(storage, path) as has_system_lock:
        began = time.monotonic()
        previous = holder_of(storage, sweep_name)
        # This process has the flock, so a holder that was written on this host has died. A holder on another host may be
        # alive: locks of a shared folder do not always reach other hosts.
        if previous is not None and not (has_system_lock and previous.host == platform.node()):
            raise LockedError(f"sweep {sweep_name} is already running: {previous}")
        me = Holder.myself()
        write = _overwrite if storage.is_local else Storage.write
        write(storage, path, json.dumps(asdict(me)))
        if not has_system_lock:
            # Without a system lock, two processes can both find the lock free and both write it; the last write wins.
            # Each therefore reads the file back after SETTLE_SECONDS and proceeds only if it has its own token. Others
            # that also found the lock free have written it by then, because their writes take at most half of that time.
            # A slower write could replace a lock that is already confirmed, so a process with a slow write gives up.
            if (took := time.monotonic() - began) > SETTLE_SECONDS / 2:
                write(storage, path, "")
                raise LockedError(f"writing the lock took {took:.1f} s, too long to exclude another run; start again")
            time.sleep(SETTLE_SECONDS)
            now = holder_of(storage, sweep_name)
            if now is None:
                raise LockedError(f"the lock of sweep {sweep_name} could not be read back; start again")
            if now.token != me.token:
                raise LockedError(f"sweep {sweep_name} is already running: {now}")
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with suppress(OSError):  # a short outage of the storage must not end the run
                    write(storage, path, json.dumps(asdict(replace(me, alive_at=time.time()))))

        thread = threading.Thread(target=beat, name="raycap-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                write(storage, path, "")


@contextmanager
def _system_lock(storage: Storage, path: str) -> Iterator[bool]:
    """Hold an exclusive flock on a file. Yields whether it was acquired: False if the storage does not support locks."""
    if not storage.is_local:
        yield False
        return
    file = Path(storage.path(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = Holder.read(file.read_text())
            raise LockedError(f"this sweep is already running: {holder or 'by a process that is starting'}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            yield False
            return
        yield True


def _overwrite(storage: Storage, path: str, text: str) -> None:
    """Write a file in place. An atomic write would replace the file, and the flock belongs to the replaced one."""
    with open(storage.path(path), "r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()
