"""What the session wishes of trials under way, in Ray's key-value store: every worker of the cluster can look there, and
no process has to serve it.
"""

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raycap.learner.signals import Signal

NAMESPACE = "raycap"
ALL_TRIALS = "all"


def _key(whom: str) -> str:
    return f"{ray.get_runtime_context().get_job_id()}/{whom}"


def send_signal(signal: Signal, whom: str = ALL_TRIALS) -> None:
    """Wish something of a trial, or of everybody."""
    _internal_kv_put(_key(whom), str(int(signal)), namespace=NAMESPACE)


def poll_signal(trial_ids: list[str]) -> Signal:
    """What is wished of trials that train together: what is wished of everybody, else of all of these."""
    whole = _read(ALL_TRIALS)
    return whole if whole is not Signal.CONTINUE else min(_read(trial_id) for trial_id in trial_ids)


def _read(whom: str) -> Signal:
    value = _internal_kv_get(_key(whom), namespace=NAMESPACE)
    return Signal(int(value)) if value else Signal.CONTINUE


def clear_signals() -> None:
    """Nothing is wished of anybody any more."""
    _internal_kv_del(_key(""), del_by_prefix=True, namespace=NAMESPACE)
