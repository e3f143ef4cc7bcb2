"""Finds the original exception of a failed trial below the wrappers of Ray."""


class TrialError(RuntimeError):
    """Raised for a trial that failed with an error that would occur again if the trial were retried."""

    @classmethod
    def of(cls, error: str, after_step: int | None, traceback: str) -> "TrialError":
        """Build the error from a worker's record: its message, the last completed step, and its traceback as text."""
        self = cls(error)
        vars(self)["after_step"] = after_step
        self.add_note(traceback)
        return self


def root_error(error: BaseException) -> BaseException:
    """Return the original exception below the wrappers of Ray Train and Ray."""
    while True:
        failures = getattr(error, "worker_failures", None)
        # When one worker dies, the others fail with a RuntimeError of the broken connection, so any other type is
        # preferred as the cause.
        inner = min(failures.values(), key=lambda e: isinstance(e, RuntimeError)) if failures else None
        inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner


def root_cause(error: BaseException) -> str:
    """Return the type and message of the original exception in one line."""
    root = root_error(error)
    if isinstance(root, TrialError):
        return str(root)
    first, *rest = f"{type(root).__name__}: {root}".splitlines() or [type(root).__name__]
    # The first line of Ray's error for a dead process says only that it is dead; a later line contains the reason.
    reasons = [line.strip() for line in rest if " because " in line]
    return " ".join([first, *reasons[:1]])
