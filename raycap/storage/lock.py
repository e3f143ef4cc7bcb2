"""One sweep runs once at a time: a lock in its folder says who holds it.

On a folder the lock is the operating system's, which lets go of it when its holder dies, however that happens. Object
stores, and folders shared with machines whose locks do not reach this one, have what the holder writes: a sign of life
every BEAT_SECONDS; one without it for STALE_SECONDS is taken over.
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

BEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
SETTLE_SECONDS = 4.0
"""What two writers of an object store are given to notice each other; whoever writes slower than half of that has lost."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class LockedError(Exception):
    """Somebody else is at work; the message says who, where and since when."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. Times are seconds since the epoch, by the holder's clock."""

    host: str
    machine: str
    """What tells processes of one pid apart: the host since it was started, and the container."""
    user: str
    pid: int
    born: float
    """When its process was created."""
    since: float
    alive_at: float
    token: str

    @classmethod
    def myself(cls) -> "Holder":
        """This process, from now on."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container may run under a number that has no name
            user = str(os.getuid())
        now, pid = time.time(), os.getpid()
        return cls(platform.node(), _machine(), user, pid, _process_start_time(pid), now, now, uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """What a holder wrote; None where nothing, or nothing whole, is written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def is_dead(self) -> bool:
        """As far as one can tell from here: its process is gone, or it has given no sign of life for long."""
        is_silent = abs(time.time() - self.alive_at) > STALE_SECONDS
        if (self.host, self.machine) != (platform.node(), _machine()):
            return is_silent
        # Numbers of processes come again. (A clock that jumps moves the hour of birth, but not of one that gives signs.)
        return not psutil.pid_exists(self.pid) or (is_silent and _process_start_time(self.pid) != self.born)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # other systems than Linux
        return f"{uuid.getnode():x}"


def _process_start_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def lock_path(sweep_name: str) -> str:
    """Where the lock of a sweep is."""
    return f"{sweep_name}/lock.json"


def holder_of(storage: Storage, sweep_name: str) -> Holder | None:
    """Who holds a sweep's lock and is alive, as far as one can tell from here."""
    with suppress(OSError):
        holder = Holder.read(storage.read_text(lock_path(sweep_name)))
        return None if holder is None or holder.is_dead else holder
    return None


def refuse_others(sweep_name: str, trial_ids: set[str], storage: Storage) -> None:
    """Raise LockedError if a sweep that is being run in this storage has one of these trials: it would be trained twice."""
    for name in storage.names(""):
        if name in (sweep_name, TRIALS_FOLDER) or (holder := holder_of(storage, name)) is None:
            continue
        try:
            theirs = {trial["trial_id"] for trial in json.loads(storage.read(f"{name}/sweep.json"))["trials"]}
        except (OSError, ValueError, KeyError, TypeError):  # it has only begun, or is none of ours
            continue
        if shared := len(theirs & trial_ids):
            raise LockedError(f"{shared} of these trials belong to sweep {name} too, which is being run: {holder}")


@contextmanager
def locked(storage: Storage, sweep_name: str) -> Iterator[None]:
    """Hold a sweep's lock. Raises LockedError if somebody else does, OSError if the storage cannot be written."""
    path = lock_path(sweep_name)
    with _system_lock(storage, path) as is_ours:
        began = time.monotonic()
        before = holder_of(storage, sweep_name)
        # Having the system's lock, one that was written on this host is of a process that has died.
        if before is not None and not (is_ours and before.host == platform.node()):
            raise LockedError(f"sweep {sweep_name} is being run already: {before}")
        me = Holder.myself()
        write = _overwrite if storage.is_local else Storage.write
        write(storage, path, json.dumps(asdict(me)))
        if not is_ours:
            if (took := time.monotonic() - began) > SETTLE_SECONDS / 2:  # somebody may have had it by then
                write(storage, path, "")
                raise LockedError(f"writing the lock took {took:.1f} s, too long to be sure of it; start once more")
            time.sleep(SETTLE_SECONDS)
            now = holder_of(storage, sweep_name)
            if now is not None and now.token != me.token:
                raise LockedError(f"sweep {sweep_name} is being run already: {now}")
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with suppress(OSError):  # the storage may be away for a while
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
    """The operating system's lock of a file; gives False where there is none to be had."""
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
            raise LockedError(
                f"this sweep is being run already: {holder or 'by somebody who has only begun'}"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            yield False
            return
        yield True


def _overwrite(storage: Storage, path: str, text: str) -> None:
    """Write in place: the system's lock is that of this very file."""
    with open(storage.path(path), "r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()
