"""Rule that decides whether a trial is retried after an error."""

import re
from collections.abc import Callable

from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from raycap.cluster.errors import TrainingError, root_cause, root_error
from raycap.errors import StorageUnavailableError

MAX_START_FAILURES = 10
"""Number of errors in starting the workers of a trial that are retried."""


class RetryRule:
    """Decides whether a trial is retried after an error, from all errors that it had before.

    - A trial that fails twice in a row with the same error at the same step is not retried.
    - At most `max_failures` failures are retried. They are counted from 0 again whenever the checkpoints have advanced since
      the last failure, so any number of lost processes is allowed as long as the trial makes progress.
    - The loss of a worker whose machine was preempted is always retried.
    - An operation of the storage that failed until its retry limit (raycap/storage/retries.py) is not retried again.
    - A timeout while the trial waits for resources is always retried: `concurrent_slots` has checked that the cluster can
      provide them. Other errors in starting the workers are retried MAX_START_FAILURES times.
    """

    def __init__(self, max_failures: int, steps_done: Callable[[], int]) -> None:
        """`steps_done` returns the step of the last checkpoint (summed over the trials of a stack)."""
        self._max_failures, self._steps_done = max_failures, steps_done
        self._num_failures = self._num_start_failures = 0
        self._last_failure: tuple[int, str] | None = None  # steps done, and the error

    def should_retry(self, error: TrainingFailedError) -> bool:
        """Return whether the trial is retried after an error of `TorchTrainer.fit`."""
        root = root_error(error)
        if isinstance(root.cause if isinstance(root, TrainingError) else root, StorageUnavailableError):
            return False
        if isinstance(error, ControllerError):
            # These classes have no public name.
            kind = type(error.controller_failure).__name__
            if kind == "WorkerGroupStartupTimeoutError":
                return True  # resources are still in use, or the autoscaler is starting machines
            self._num_start_failures += 1
            return kind == "WorkerGroupStartupFailedError" and self._num_start_failures <= MAX_START_FAILURES
        previous = self._last_failure
        steps = self._steps_done()
        # Numbers and addresses differ between two occurrences of the same error.
        message = re.sub(r"0x[0-9a-f]+|\d+", "#", root_cause(error))
        self._last_failure = (steps, message)
        failures = getattr(error, "worker_failures", {}).values()
        # Ray announces most preemptions by an error of their own, which Ray 2.56 lacks, and marks the others.
        is_announced = type(error).__name__ == "PreemptionError"
        if is_announced or any(getattr(root_error(failure), "preempted", False) for failure in failures):
            return True
        if previous is not None and steps > previous[0]:
            self._num_failures = 0
        # A dead process (killed, out of memory) is no error of the trial, so only the count limits it.
        if self._last_failure == previous and not isinstance(root, ActorDiedError):
            return False
        self._num_failures += 1
        return self._num_failures <= self._max_failures
