"""How much a run of a sweep may spend: so much time, or so many GPU hours."""

import re
from dataclasses import dataclass

UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Budget:
    """A bound for one run. The default has none."""

    seconds: float = float("inf")
    gpu_seconds: float = float("inf")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A time as in 90s, 30m, 2h, 1d, or GPU hours as in 20gpuh. Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d|gpuh)", text)
        amount = float(found[1]) if found else 0.0
        if not found or amount <= 0:
            raise ValueError(f"a budget is a time such as 30m, 2h or 1d, or GPU hours such as 20gpuh; got {text!r}")
        if found[2] == "gpuh":
            return cls(gpu_seconds=3600 * amount)
        return cls(seconds=UNIT_SECONDS[found[2]] * amount)


UNBOUNDED = Budget()


class Spending:
    """What a run has spent of its budget. Times are seconds of a clock that never jumps, as the caller reads it."""

    def __init__(self, budget: Budget, gpus_per_group: float, began: float) -> None:
        self._budget, self._gpus, self._began = budget, gpus_per_group, began
        self._running: dict[str, tuple[float, float]] = {}  # since when, and how much work
        self._waiting: dict[str, float] = {}  # how much work
        self._gpu_seconds = 0.0
        self._work_done, self._seconds_of_work = 0.0, 0.0

    def wait(self, group: str, work: float) -> None:
        """A group of trials waits for room. `work` is what it has to do, in any unit that grows with the time it takes."""
        self._waiting[group] = work

    def start(self, group: str, now: float) -> None:
        """One that waited has room, and takes its GPUs from now on."""
        if group in self._waiting:
            self._running[group] = (now, self._waiting.pop(group))

    def finish(self, group: str, now: float, *, done: bool) -> None:
        """It is over; `done` if it did all its work, so that it tells how long work takes."""
        self._waiting.pop(group, None)
        since, work = self._running.pop(group, (now, 0.0))
        self._gpu_seconds += self._gpus * (now - since)
        if done and now > since:
            self._work_done += work
            self._seconds_of_work += now - since

    def is_spent(self, now: float) -> bool:
        """Whether the bound is reached."""
        return now - self._began >= self._budget.seconds or self._spent_gpu_seconds(now) >= self._budget.gpu_seconds

    def allows(self, work: float, now: float) -> bool:
        """Whether one more group would end within the budget, as far as those that have finished tell."""
        if self.is_spent(now):
            return False
        if not self._work_done:
            return True
        pace = self._seconds_of_work / self._work_done
        still = [max(0.0, since + pace * mine - now) for since, mine in self._running.values()]
        still += [pace * mine for mine in self._waiting.values()]
        gpu_seconds = self._spent_gpu_seconds(now) + self._gpus * (sum(still) + pace * work)
        return now - self._began + pace * work <= self._budget.seconds and gpu_seconds <= self._budget.gpu_seconds

    def _spent_gpu_seconds(self, now: float) -> float:
        return self._gpu_seconds + self._gpus * sum(now - since for since, _ in self._running.values())
