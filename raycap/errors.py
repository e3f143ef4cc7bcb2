"""Exceptions for sweeps that cannot start although their spec is valid."""


class CannotRunError(Exception):
    """The environment cannot run the sweep; nothing was started."""


class ResourceError(CannotRunError):
    """The cluster does not have the resources for a single trial of the sweep."""


class TrackingError(CannotRunError):
    """MLflow cannot be reached or used."""
