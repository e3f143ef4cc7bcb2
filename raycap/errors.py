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
