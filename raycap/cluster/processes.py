"""Supervision of the processes of a local Ray instance: detection of dead processes, and killing of stopped ones."""

import time
from contextlib import suppress

import psutil

ESSENTIAL = ("gcs_server", "raylet")
"""Names of the processes without which Ray does not work. The raylet ends when one of its agents does."""
STOPPED_TIMEOUT_S = 30.0
"""Time after which a stopped process (SIGSTOP) is killed. Ray then starts another one."""
SCAN_INTERVAL_S = 5.0


class RayDiedError(Exception):
    """Raised after an essential process of a local Ray instance has died."""


class LocalProcesses:
    """Monitors the descendants of this process. Create it after Ray has started."""

    def __init__(self) -> None:
        self._essential = {child: name for child in psutil.Process().children() if (name := _name(child)) in ESSENTIAL}
        self._stopped_since: dict[psutil.Process, float] = {}
        self._scanned_at = time.monotonic()

    def check(self) -> None:
        """Kill processes that have been stopped for `STOPPED_TIMEOUT_S`.

        Raises:
            RayDiedError: An essential process has died.
        """
        for process, name in self._essential.items():
            if _status(process) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                raise RayDiedError(f"a process of Ray, {name}, has died")
        now = time.monotonic()
        if now - self._scanned_at < SCAN_INTERVAL_S:
            return
        self._scanned_at = now
        stopped = [child for child in _children() if _status(child) == psutil.STATUS_STOPPED]
        self._stopped_since = {child: self._stopped_since.get(child, now) for child in stopped}
        for child, since in self._stopped_since.items():
            if now - since >= STOPPED_TIMEOUT_S:
                with suppress(psutil.Error):
                    child.kill()


def kill_children() -> None:
    """Kill all descendants of this process at once."""
    for child in _children():
        with suppress(psutil.Error):
            child.kill()


def _children() -> list[psutil.Process]:
    return list(psutil.Process().children(recursive=True))


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _status(process: psutil.Process) -> str:
    """Return the status of a process; `STATUS_DEAD` if it has ended."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)
    except psutil.Error:
        return ""
