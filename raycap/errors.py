"""Exceptions for sweeps that cannot start although their spec is valid."""


class CannotRunError(Exception):
    """The environment cannot run the sweep; nothing was started. The message is the problem, then what the user can do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy


class ResourceError(CannotRunError):
    """The cluster does not have the resources for a single trial of the sweep."""


class TrackingError(CannotRunError):
    """MLflow cannot be reached or used."""


class LeaseLostError(OSError):
    """A process may no longer write to a sweep's folder, because its lock was lost; the message says why."""

    was_taken = False
    """Whether another process has taken over the lock; otherwise the sweep's folder is gone."""

    @classmethod
    def taken(cls, message: str) -> "LeaseLostError":
        """Return the error of a lock that another process has taken over."""
        error = cls(message)
        error.was_taken = True
        return error


class StorageUnavailableError(OSError):
    """A storage did not answer, or refused access, for as long as it is waited for; the message has its last error."""
