"""Errors of trials, and the search for the original exception below the wrappers of Ray."""

from collections.abc import Iterator


class TrialError(RuntimeError):
    """Raised for a trial that failed with an error that would occur again if the trial were retried."""

    after_step: int | None = None
    """Number of completed training steps, if training had started."""

    @classmethod
    def of(cls, error: str, after_step: int | None, traceback: str) -> "TrialError":
        """Build the error from a worker's record: its message, the last completed step, and its traceback as text."""
        self = cls(error)
        self.after_step = after_step
        self.add_note(traceback)
        return self


class TrainingError(Exception):
    """An unexpected error in a worker, with the number of training steps completed before.

    Both are arguments of the exception, because pickling drops `__cause__`.
    """

    def __init__(self, after_step: int, cause: Exception) -> None:
        super().__init__(after_step, cause)
        self.after_step, self.cause = after_step, cause

    def __str__(self) -> str:
        return f"{type(self.cause).__name__}: {self.cause} (after step {self.after_step})"


def root_error(error: BaseException) -> BaseException:
    """Return the original exception below the wrappers of Ray Train and Ray."""
    *_, root = _causes(error)
    return root


def completed_steps(error: BaseException) -> int | None:
    """Return the number of training steps completed before an error, or None if it is unknown."""
    return next((e.after_step for e in _causes(error) if isinstance(e, TrialError | TrainingError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, from the outermost wrapper to the root."""
    inner: object = error
    while isinstance(inner, BaseException):
        error = inner
        yield error
        failures = getattr(error, "worker_failures", None)
        # When one worker dies, the others fail with a RuntimeError about a broken connection; prefer other errors.
        inner = min(failures.values(), key=_is_runtime_error) if failures else None
        attributes = ("controller_failure", "health_check_failure", "cause", "__cause__")  # the first three are pickled
        inner = inner or next(filter(None, (getattr(error, name, None) for name in attributes)), None)


def _is_runtime_error(error: BaseException) -> bool:
    return isinstance(error.cause if isinstance(error, TrainingError) else error, RuntimeError)


def root_cause(error: BaseException) -> str:
    """Return the type and message of the original exception in one line."""
    root = root_error(error)
    if isinstance(root, TrialError):
        return str(root)
    first, *rest = f"{type(root).__name__}: {root}".splitlines() or [type(root).__name__]
    # The first line of Ray's error for a dead process says only that it is dead; a later line contains the reason.
    reasons = [line.strip() for line in rest if " because " in line]
    return " ".join([first, *reasons[:1]])
