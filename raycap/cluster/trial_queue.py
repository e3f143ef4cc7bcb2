"""The queue of trial groups that Ray Tune runs, which ends when it is empty, stopped, or out of budget."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from raycap.cluster.budget import Spending
from raycap.cluster.signals import send_signal
from raycap.learner.signals import Signal
from raycap.plan.sizes import computed_parameters
from raycap.plan.stacks import StackGroup

GRACE_PERIOD_S = 5.0
"""Time that running trials have to save a checkpoint; slower ones are killed and resume from their previous checkpoint."""

PLACED = "placed"
"""Key that a Tune trial reports once its workers run."""


def work_of(group: StackGroup) -> float:
    """Return the approximate amount of computation of a group: parameters times tokens."""
    return sum(float(computed_parameters(trial)) * trial.tokens for trial in group)


class TrialQueue(Searcher):
    """Search algorithm that suggests one group of trials after the other to Tune.

    It stops suggesting when the budget is spent or `stop` has been called. All methods but `stop` run in Tune's event loop.
    """

    def __init__(
        self, groups: list[StackGroup], spending: Spending, is_held: Callable[[], bool] = lambda: False
    ) -> None:
        """Initialize with the groups in order. No group is suggested while `is_held` returns True.

        `is_held` pauses the queue, for example while the storage does not answer.
        """
        super().__init__()
        self._is_held = is_held
        self._waiting, self._spending = deque(groups), spending
        self._running: dict[str, StackGroup] = {}
        self._suggested: dict[str, StackGroup] = {}
        self._stop_requested = False
        self._paused_at: float | None = None
        self.stopped_by_budget = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the function, which cannot be pickled; Tune pickles the queue and never loads it."""
        return vars(self) | {"_is_held": None}

    # --- called by the session ---

    def stop(self) -> None:
        """Request that all trials save a checkpoint and pause. Safe in a signal handler, since it only sets a flag."""
        self._stop_requested = True

    @property
    def was_stopped(self) -> bool:
        """Whether `stop` has been called."""
        return self._stop_requested

    def group_of(self, tune_trial_id: str) -> StackGroup:
        """Return the group that one of Tune's trials ran. Tune's own results lack it if the driver died before a report."""
        return self._suggested[tune_trial_id]

    # --- called by Tune ---

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's search space, which is empty and unused."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the first waiting group that fits the budget, or FINISHED.

        Returns None, which makes Tune ask again, while groups run: when one ends, the prediction of what fits may change.
        """
        # While no trial runs, Tune calls this method in a loop and does not call `is_over`, so check the request to stop.
        is_open = self._paused_at is None and not self._stop_requested
        if is_open and self._waiting and self._is_held():
            return None
        if is_open:
            for group in self._waiting:
                if self._spending.allows(work_of(group), time.monotonic()):
                    self._waiting.remove(group)
                    self._running[trial_id] = self._suggested[trial_id] = group
                    self._spending.wait(trial_id, work_of(group))
                    return {"trials": [trial.model_dump_json() for trial in group]}
            self.stopped_by_budget |= bool(self._waiting)
        return None if self._running else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Start the accounting of a group whose workers run. Reports of evaluations concern the scheduler only."""
        if PLACED in result:
            self._spending.start(trial_id, time.monotonic())

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the accounting of a group that finished, paused or failed."""
        self._running.pop(trial_id, None)
        done = not error and result is not None and bool(result.get("all_finished"))
        self._spending.finish(trial_id, time.monotonic(), done=done)

    def is_over(self) -> bool:
        """Whether Tune has to stop all trials.

        Tune calls this about ten times per second, so the budget and the grace period are checked here. Trials are first
        signalled to pause, and Tune kills those that still run after `GRACE_PERIOD_S`.
        """
        now = time.monotonic()
        if self._paused_at is None:
            spent = self._spending.is_spent(now)
            self.stopped_by_budget |= spent
            if not (spent or self._stop_requested):
                return False
            self._paused_at = now
            send_signal(Signal.PAUSE)
        return not self._running or now - self._paused_at > GRACE_PERIOD_S

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the storage shows which trials are finished."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class StopWhenDone(Stopper):
    """Tune stopper that ends the run when the queue is over."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial is stopped individually."""
        return False

    def stop_all(self) -> bool:
        """Whether the whole run stops."""
        return self._queue.is_over()
