"""Which group of trials Ray Tune runs next, and when it is over: at the end, on a signal, or when the budget is spent."""

import time
from collections import deque
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from raycap.cluster.budget import Spending
from raycap.cluster.signals import send_signal
from raycap.learner.signals import Signal
from raycap.results import PlannedTrial

GRACE_PERIOD_S = 5.0
"""How long trials may take to save where they are; those that take longer go on from where they last saved."""

PLACED = "placed"
"""What a Tune trial reports once its workers run."""

TrialGroup = tuple[PlannedTrial, ...]


def work_of(group: TrialGroup) -> float:
    """What a group has to compute, about: parameters times tokens."""
    return sum(float(trial.parameters.total) * trial.tokens for trial in group)


class TrialQueue(Searcher):
    """Gives Tune one group after the other, as long as the budget allows and nobody asked to stop."""

    def __init__(self, groups: list[TrialGroup], spending: Spending) -> None:
        super().__init__()
        self._waiting, self._spending = deque(groups), spending
        self._running: dict[str, TrialGroup] = {}
        self._stop_asked = False
        self._paused_at: float | None = None
        self.stopped_by_budget = False

    # --- what the session asks ---

    def stop(self) -> None:
        """Have everybody save and leave. May be called in a signal handler: it only leaves word."""
        self._stop_asked = True

    @property
    def was_stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop_asked

    # --- what Tune asks ---

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's own space of trials is empty: there is nothing to take from it."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The first group that the budget allows; None to wait for one under way to tell how long they take."""
        if self._paused_at is None:
            for group in self._waiting:
                if self._spending.allows(work_of(group), time.monotonic()):
                    self._waiting.remove(group)
                    self._running[trial_id] = group
                    self._spending.wait(trial_id, work_of(group))
                    return {"trials": [trial.model_dump_json() for trial in group]}  # what a Tune trial is given
            self.stopped_by_budget |= bool(self._waiting)
        return None if self._running else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A group tells of itself: that it has room, or, to the scheduler, of an evaluation."""
        if PLACED in result:
            self._spending.start(trial_id, time.monotonic())

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A group is over, one way or another."""
        self._running.pop(trial_id, None)
        done = not error and result is not None and bool(result.get("all_finished"))
        self._spending.finish(trial_id, time.monotonic(), done=done)

    def is_over(self) -> bool:
        """Whether Tune is to stop whatever still runs. Tune asks ten times a second, so this is also where time is kept."""
        now = time.monotonic()
        if self._paused_at is None:
            spent = self._spending.is_spent(now)
            self.stopped_by_budget |= spent
            if not (spent or self._stop_asked):
                return False
            self._paused_at = now
            send_signal(Signal.PAUSE)
        return not self._running or now - self._paused_at > GRACE_PERIOD_S

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is finished is told by the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StopWhenDone(Stopper):
    """Stops everything once the queue is over."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether everything stops."""
        return self._queue.is_over()
