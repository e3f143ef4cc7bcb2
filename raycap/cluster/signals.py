"""Signals to running trials, which are sent through Ray's internal key-value store.

Every worker of the cluster can read the store, and it needs no additional process. Keys contain the id of the Ray job, so
sweeps on the same cluster do not interfere.
"""

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raycap.learner.signals import Signal

NAMESPACE = "raycap"


def _key() -> str:
    return f"{ray.get_runtime_context().get_job_id()}/signal"


def send_signal(signal: Signal) -> None:
    """Send a signal to all trials of this Ray job."""
    _internal_kv_put(_key(), str(int(signal)), namespace=NAMESPACE)


def poll_signal() -> Signal:
    """Return the signal to the trials of this Ray job."""
    value = _internal_kv_get(_key(), namespace=NAMESPACE)
    return Signal(int(value)) if value else Signal.CONTINUE


def clear_signals() -> None:
    """Delete the signal to the trials of this Ray job."""
    _internal_kv_del(_key(), namespace=NAMESPACE)
