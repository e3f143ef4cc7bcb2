"""Sends signals to running trials through Ray's internal key-value store.

Every worker of the cluster can read the store, and it needs no additional process. Keys begin with the id of the Ray job, so
sweeps on the same cluster do not interfere.
"""

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raycap.learner.signals import Signal

NAMESPACE = "raycap"
ALL_TRIALS = "all"


def _key(recipient: str) -> str:
    return f"{ray.get_runtime_context().get_job_id()}/{recipient}"


def send_signal(signal: Signal, recipient: str = ALL_TRIALS) -> None:
    """Send a signal to one trial, given by its trial_id, or to all trials of this Ray job."""
    _internal_kv_put(_key(recipient), str(int(signal)), namespace=NAMESPACE)


def poll_signal(trial_ids: list[str]) -> Signal:
    """Return the signal for trials that train together as one stack.

    A signal to all trials takes precedence. Otherwise it is the weakest signal of these trials: a stack stops early only
    when all of its trials have been stopped.
    """
    to_all = _read_signal(ALL_TRIALS)
    return to_all if to_all is not Signal.CONTINUE else min(_read_signal(trial_id) for trial_id in trial_ids)


def _read_signal(recipient: str) -> Signal:
    value = _internal_kv_get(_key(recipient), namespace=NAMESPACE)
    return Signal(int(value)) if value else Signal.CONTINUE


def clear_signals() -> None:
    """Delete all signals of this Ray job."""
    _internal_kv_del(_key(""), del_by_prefix=True, namespace=NAMESPACE)
