"""Errors of the whole package: what keeps a sweep from starting, though its spec is sound."""


class CannotRunError(Exception):
    """The surroundings cannot run this sweep; nothing was started."""


class ResourceError(CannotRunError):
    """The cluster can never hold a single trial of the sweep."""


class TrackingError(CannotRunError):
    """MLflow cannot be reached or used."""
