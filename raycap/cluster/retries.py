"""Policy that decides whether a trial is retried after an error."""

import re
from collections.abc import Callable

from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from raycap.cluster.errors import TrainingError, root_cause, root_error
from raycap.errors import StorageUnavailableError


class RetryPolicy(DefaultFailurePolicy):
    """Ray Train's default failure policy with four changes.

    - A trial that fails twice in a row with the same error at the same step is not retried.
    - The failures are counted from 0 again whenever the checkpoints have advanced since the last failure, so any number of
      preemptions is allowed as long as the trial makes progress.
    - An operation of the storage that failed until its retry limit (raycap/storage/retries.py) is not retried again.
    - A timeout while the trial waits for resources is not counted as a failure: `concurrent_slots` has checked that the
      cluster can provide them.

    `steps_done` returns the step of the last checkpoint (summed over the trials of a stack).
    """

    def __init__(self, failure_config: FailureConfig, steps_done: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self._steps_done = steps_done
        self._last_failure: tuple[int, str] | None = None  # steps done, and the error

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return RETRY or RAISE for one error."""
        if isinstance(getattr(training_failed_error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            return FailureDecision.RETRY  # resources are still in use, or the autoscaler is starting machines
        root = root_error(training_failed_error)
        if isinstance(root.cause if isinstance(root, TrainingError) else root, StorageUnavailableError):
            return FailureDecision.RAISE
        previous = self._last_failure
        steps = self._steps_done()
        # Numbers and addresses differ between two occurrences of the same error.
        message = re.sub(r"0x[0-9a-f]+|\d+", "#", root_cause(training_failed_error))
        self._last_failure = (steps, message)
        if previous is not None and steps > previous[0]:
            self._worker_group_failures = 0  # the count of DefaultFailurePolicy
        # A dead process (preempted, killed, out of memory) is no error of the trial, so only the count limits it.
        process_died = isinstance(root, ActorDiedError)
        repeated = self._last_failure == previous
        if isinstance(training_failed_error, WorkerGroupError) and repeated and not process_died:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
