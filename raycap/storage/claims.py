"""Claims to a sweep: the files in its `lock` folder, and how a waiting process decides whether their writers are alive.

Every process that requests the lock of a sweep writes a file of its own, `<generation>-<token>.json`, and then lists the
folder. Of two processes at least one sees the file of the other, however slow the storage is. No conditional write is
needed, so this works on every file system and object store. The holder of the lock changes its file every BEAT_SECONDS.

Clocks of different machines are never compared. A process that finds a claim watches it: the writer of a claim that changes
is alive, and the writer of a claim that does not change for STALE_SECONDS is considered dead. If the writer is a process of
the same machine, the process table is used instead, without watching.
"""

import getpass
import os
import platform
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import psutil
from pydantic import ValidationError

from raycap.results import Record
from raycap.storage.files import Storage
from raycap.storage.sweep_folder import SweepFolder

BEAT_SECONDS = 15.0
"""Interval at which the holder changes its claim."""
STALE_SECONDS = 120.0
"""Time without a change after which the writer of a watched claim is considered dead: eight intervals."""
POLL_SECONDS = 1.0
"""Interval at which a claim is watched."""

_NAME = re.compile(r"(\d{1,18})-[0-9a-f]{32}\.json")


class Holder(Record):
    """Writer of a claim. Times are seconds since the epoch by the clock of the writer. They are only displayed."""

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
    beats: int = 0
    """Number of heartbeats."""

    @classmethod
    def of_this_process(cls) -> "Holder":
        """Return a holder that describes this process, from now."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container may run under a user id without a name
            user = str(os.getuid())
        now, pid = time.time(), os.getpid()
        return cls(
            host=platform.node(),
            machine=_machine(),
            user=user,
            pid=pid,
            born=_process_start_time(pid),
            since=now,
            alive_at=now,
        )

    @classmethod
    def read(cls, content: bytes) -> "Holder | None":
        """Parse the content of a claim; None if it is not valid."""
        try:
            holder = cls.model_validate_json(content)
            str(holder)  # a time outside the range of dates is not valid either
        except (ValidationError, ValueError, OverflowError, OSError):
            return None
        return holder

    def beat(self) -> "Holder":
        """Return the holder after one more heartbeat."""
        return self.model_copy(update={"alive_at": time.time(), "beats": self.beats + 1})

    @property
    def is_alive(self) -> bool | None:
        """Whether the process exists; None if that cannot be determined on this machine."""
        if (self.host, self.machine) != (platform.node(), _machine()):
            return None
        if not psutil.pid_exists(self.pid):
            return False
        # PIDs are reused. The creation time is computed from the clock and moves when the clock is set, so another
        # creation time proves nothing.
        return True if _process_start_time(self.pid) == self.born else None

    def __str__(self) -> str:
        since, beat = (_format_time(at) for at in (self.since, self.alive_at))
        return f"process {self.pid} of {self.user} on {self.host}, since {since}, last heartbeat {beat} by its clock"


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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


def lock_path(sweep_name: str, claim: str = "") -> str:
    """Return the path of a sweep's folder of claims, or of one claim, relative to the storage."""
    return f"{sweep_name}/{SweepFolder.LOCK}" + (f"/{claim}" if claim else "")


def new_claim(existing: Mapping[str, object]) -> str:
    """Return a name for a claim whose generation is above all existing ones."""
    return f"{max(map(generation, existing), default=0) + 1:06d}-{uuid.uuid4().hex}.json"


def generation(claim: str) -> int:
    """Return the generation of a claim: of two claims, the one with the higher generation was made later."""
    match = _NAME.fullmatch(claim)
    return int(match[1]) if match else 0


def claim_names(storage: Storage, sweep_name: str) -> set[str]:
    """Return the names of the claims to a sweep. Raises OSError if the storage does not answer."""
    return {name for name in storage.names(lock_path(sweep_name)) if _NAME.fullmatch(name)}


def read_claims(storage: Storage, sweep_name: str) -> dict[str, bytes]:
    """Return the contents of the claims to a sweep by name. Raises OSError if the storage does not answer."""
    claims = {}
    for name in claim_names(storage, sweep_name):
        with suppress(FileNotFoundError):  # deleted after it was listed
            claims[name] = storage.read(lock_path(sweep_name, name))
    return claims


class Liveness(Enum):
    """Whether the writer of a claim is alive."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """To be decided by watching."""


class Watch:
    """Decides which writers of claims are alive, from the changes of the claims between calls of `observe`."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._silent_s: dict[str, float] = {}
        self._observed_at = time.monotonic()

    def observe(self, claims: Mapping[str, bytes]) -> dict[str, Liveness]:
        """Return a verdict on each of the claims, whose contents were just read."""
        now = time.monotonic()
        # Count at most two intervals between two observations. While this process was paused or the storage did not
        # answer, the writer of a claim may have been alive but unable to change it.
        passed_s, self._observed_at = min(now - self._observed_at, 2 * POLL_SECONDS), now
        verdicts = {}
        for name, content in claims.items():
            before = self._contents.setdefault(name, content)
            self._silent_s[name] = self._silent_s.get(name, 0.0) + passed_s if before == content else 0.0
            self._contents[name] = content
            holder = Holder.read(content)
            alive = holder.is_alive if holder else None
            if alive is None and before != content:
                alive = True
            # Writers replace their claims atomically, so a claim that still cannot be parsed after POLL_SECONDS is damaged.
            elif alive is None and self._silent_s[name] >= (STALE_SECONDS if holder else POLL_SECONDS):
                alive = False
            verdicts[name] = {True: Liveness.ALIVE, False: Liveness.DEAD, None: Liveness.UNKNOWN}[alive]
        return verdicts


def holder_of(storage: Storage, sweep_name: str) -> Holder | None:
    """Return the holder of a sweep's lock according to its claims; None if the lock is free or the holder is dead.

    The claims are read once, so a holder on another machine may be dead: to find that out, they would have to be watched.
    """
    try:
        claims = read_claims(storage, sweep_name)
    except OSError:
        return None
    verdicts = Watch().observe(claims)
    living = [name for name, verdict in verdicts.items() if verdict is not Liveness.DEAD]
    return Holder.read(claims[max(living, key=generation)]) if living else None
