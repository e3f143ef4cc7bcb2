"""When a trial is tried again after an error: not for ever, and not if it would only fail again."""

import re
from collections.abc import Callable

from ray.exceptions import ActorDiedError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from raycap.cluster.errors import root_cause, root_error


class RetryPolicy(DefaultFailurePolicy):
    """Ray Train's policy, except that the same error twice at the same place ends it, and progress clears the count.

    `steps_done` tells how far the checkpoints are: a trial that moves on between two errors may meet as many preemptions
    as a week brings. One that finds no room waits for it: that it may ever have some was seen before it started.
    """

    def __init__(self, failure_config: FailureConfig, steps_done: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self._steps_done = steps_done
        self._before: tuple[int, str] | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE."""
        if isinstance(getattr(training_failed_error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            return FailureDecision.RETRY  # there is no room yet: machines are on their way, or others still have it
        steps, before = self._steps_done(), self._before
        told = re.sub(r"0x[0-9a-f]+|\d+", "#", root_cause(training_failed_error))
        self._before = (steps, told)
        if before is not None and steps > before[0]:
            self._worker_group_failures = 0
        lost = isinstance(
            root_error(training_failed_error), ActorDiedError
        )  # whatever took it may leave the next alone
        if isinstance(training_failed_error, WorkerGroupError) and not lost and self._before == before:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
