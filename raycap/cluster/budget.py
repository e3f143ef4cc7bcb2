"""Budget of a run, in wall time, GPU hours or money, and the accounting of what the run has spent of it."""

import re
from dataclasses import dataclass

from raycap.cluster.money import Meter
from raycap.spec.document import truncated

MAX_SECONDS = 1e9
"""Largest budget: 30 years of wall time or of one GPU."""
UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


MAX_USD = 1e9


@dataclass(frozen=True)
class Budget:
    """Upper bounds on the wall time and the GPU time of one run, and on the cost of all runs of a sweep.

    By default there are none.
    """

    seconds: float = float("inf")
    gpu_seconds: float = float("inf")
    usd: float = float("inf")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a time, such as 90s, 30m, 2h or 1d, GPU hours, such as 20gpuh, dollars, such as 50usd, or several of
        these with commas between them. Raises ValueError for other texts."""
        bounds: dict[str, float] = {}
        for part in text.split(","):
            match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d|gpuh|usd)", part)
            if not match:
                raise ValueError(
                    "a budget is a time (30m, 2h, 1d), GPU hours (20gpuh), dollars (50usd), or several (2h,50usd); "
                    f"got {truncated(text)!r}"
                )
            unit = match[2]
            name = {"gpuh": "gpu_seconds", "usd": "usd"}.get(unit, "seconds")
            amount = float(match[1]) * (1.0 if unit == "usd" else UNIT_SECONDS["h" if unit == "gpuh" else unit])
            if not 0 < amount <= (MAX_USD if unit == "usd" else MAX_SECONDS):
                limit = f"{MAX_USD:,.0f} dollars" if unit == "usd" else f"{MAX_SECONDS / 3600:,.0f} hours"
                raise ValueError(f"a budget must be positive and at most {limit}, got {truncated(text)!r}")
            if name in bounds:
                raise ValueError(f"a budget has at most one bound of each kind, got {truncated(text)!r}")
            bounds[name] = amount
        return cls(**bounds)


UNBOUNDED = Budget()


class Spending:
    """Accounts for the time that a run has spent of its budget, and predicts whether more work fits.

    The caller supplies all times, in seconds of a monotonic clock. The unit of work is arbitrary, as long as the time that
    a group takes is proportional to its work: the seconds per unit are estimated from the groups that have finished.
    """

    def __init__(self, budget: Budget, gpus_per_group: float, began: float, meter: Meter | None = None) -> None:
        self._budget, self._gpus, self._began = budget, gpus_per_group, began
        self._meter = meter or Meter({}, began)
        self._running: dict[str, tuple[float, float]] = {}  # start time and work, by group
        self._waiting: dict[str, float] = {}  # work, by group
        self._gpu_seconds = 0.0  # of groups that have ended
        self._work_done, self._seconds_of_work = 0.0, 0.0

    def wait(self, group: str, work: float) -> None:
        """Record that a group of trials, with this much work, waits for resources. It takes no GPU time yet."""
        self._waiting[group] = work

    def start(self, group: str, now: float) -> None:
        """Record that a waiting group has its resources. Ignored if it runs already, as after a restart of its workers."""
        if group in self._waiting:
            self._running[group] = (now, self._waiting.pop(group))

    def finish(self, group: str, now: float, *, done: bool) -> None:
        """Record the end of a group. Only a group that completed its work (`done`) enters the estimated speed."""
        self._waiting.pop(group, None)
        since, work = self._running.pop(group, (now, 0.0))
        self._gpu_seconds += self._gpus * (now - since)
        if done and now > since:
            self._work_done += work
            self._seconds_of_work += now - since

    def is_spent(self, now: float) -> bool:
        """Whether a bound of the budget is reached."""
        self._meter.poll(now)
        return (
            now - self._began >= self._budget.seconds
            or self._spent_gpu_seconds(now) >= self._budget.gpu_seconds
            or self._meter.spent_usd(now) >= self._budget.usd
        )

    def allows(self, work: float, now: float) -> bool:
        """Whether one more group with this much work is expected to end within the budget.

        True if the budget is not spent and no group has finished, since there is nothing to predict from.
        """
        if self.is_spent(now):
            return False
        if not self._work_done:
            return True
        # All groups, of any size, are assumed to do equally much work per second.
        seconds_per_work = self._seconds_of_work / self._work_done
        needed = seconds_per_work * work
        remaining = [max(0.0, since + seconds_per_work * its_work - now) for since, its_work in self._running.values()]
        remaining += [seconds_per_work * its_work for its_work in self._waiting.values()]
        gpu_seconds = self._spent_gpu_seconds(now) + self._gpus * (sum(remaining) + needed)
        # All machines are paid for until the group ends.
        usd = self._meter.spent_usd(now) + self._meter.usd_per_hour * needed / 3600
        return (
            now - self._began + needed <= self._budget.seconds
            and gpu_seconds <= self._budget.gpu_seconds
            and usd <= self._budget.usd
        )

    def _spent_gpu_seconds(self, now: float) -> float:
        return self._gpu_seconds + self._gpus * sum(now - since for since, _ in self._running.values())
