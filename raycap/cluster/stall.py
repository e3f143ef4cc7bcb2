"""Detection of worker processes that hang. They are killed, and Ray starts others, which resume from a checkpoint."""

import os
import signal
import sys
import threading
import time
from typing import Self

from raycap.storage.retries import is_waiting

MIN_IDLE_S = 180.0
"""Shortest time without progress after which a worker counts as hanging."""
STEP_FACTOR = 20.0
"""A worker with slow steps counts as hanging only after this multiple of its longest time between two steps so far."""
BUSY_SHARE = 0.05
"""A process that uses at least this share of a core is at work, such as on an evaluation. Ray's own threads use less."""
CHECK_INTERVAL_S = 5.0


class StallGuard:
    """Kills this process if it completes no step and uses no CPU for too long within the context.

    It has no effect while the process is stopped or code holds the global interpreter lock. These cases are handled by Ray
    Train's health check (see `WORKER_ENVIRONMENT`) and by `LocalProcesses`.
    """

    def __init__(self, min_idle_s: float = MIN_IDLE_S) -> None:
        self._min_idle_s = min_idle_s
        self._stepped_at: float | None = None
        self._active_at = time.monotonic()
        self._longest_step_s = 0.0
        self._over = threading.Event()

    def record_step(self) -> None:
        """Record that training has advanced."""
        now = time.monotonic()
        if self._stepped_at is not None:
            self._longest_step_s = max(self._longest_step_s, now - self._stepped_at)
        self._stepped_at = self._active_at = now

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="raycap-stall", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        interval_s = min(CHECK_INTERVAL_S, self._min_idle_s / 4)
        checked_at, cpu_s = time.monotonic(), time.process_time()
        while not self._over.wait(interval_s):
            now, cpu_now_s = time.monotonic(), time.process_time()
            was_paused = now - checked_at > 4 * interval_s  # this process was stopped, or the machine suspended
            # A worker that waits for the storage is not restarted, because it would lose steps and wait again.
            if was_paused or is_waiting() or cpu_now_s - cpu_s >= BUSY_SHARE * (now - checked_at):
                self._active_at = now
            checked_at, cpu_s = now, cpu_now_s
            idle_s = now - self._active_at
            if idle_s > max(self._min_idle_s, STEP_FACTOR * self._longest_step_s):
                print(
                    f"no step and no computation for {idle_s:.0f} s: this worker is killed and restarted",
                    file=sys.stderr,
                )
                os.kill(os.getpid(), signal.SIGKILL)
