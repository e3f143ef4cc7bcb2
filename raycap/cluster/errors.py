"""What it was that failed in a trial, below all wrappers."""


class TrialError(RuntimeError):
    """A trial that failed for a reason of its own and would fail again."""

    @classmethod
    def of(cls, error: str, after_step: int | None, traceback: str) -> "TrialError":
        """As a worker tells of it: the cause, how far the trial was, and where in the code."""
        self = cls(error)
        vars(self)["after_step"] = after_step
        self.add_note(traceback)
        return self


def root_error(error: BaseException) -> BaseException:
    """The exception that started it, below the wrappers of Ray Train and Ray."""
    while True:
        failures = getattr(error, "worker_failures", None)
        # When one worker dies the others fail too, of a broken connection: a RuntimeError tells least.
        inner = min(failures.values(), key=lambda e: isinstance(e, RuntimeError)) if failures else None
        inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner


def root_cause(error: BaseException) -> str:
    """The same in one line: type and message."""
    root = root_error(error)
    if isinstance(root, TrialError):
        return str(root)
    first, *others = f"{type(root).__name__}: {root}".splitlines() or [type(root).__name__]
    # Ray says of every dead process that it is dead, and further below why.
    why = [line.strip() for line in others if " because " in line]
    return " ".join([first, *why[:1]])
