"""What the session wishes of trials under way, in Ray's key-value store: every worker of the cluster can look there, and
no process has to serve it.
"""

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raycap.learner.signals import Wish

NAMESPACE = "raycap"
EVERYBODY = "all"


def _key(whom: str) -> str:
    return f"{ray.get_runtime_context().get_job_id()}/{whom}"


def wish(wished: Wish, whom: str = EVERYBODY) -> None:
    """Wish something of a trial, or of everybody."""
    _internal_kv_put(_key(whom), str(int(wished)), namespace=NAMESPACE)


def wished(trial_ids: list[str]) -> Wish:
    """What is wished of trials that train together: what is wished of everybody, else of all of these."""
    whole = _read(EVERYBODY)
    return whole if whole is not Wish.GO_ON else min(_read(trial_id) for trial_id in trial_ids)


def _read(whom: str) -> Wish:
    value = _internal_kv_get(_key(whom), namespace=NAMESPACE)
    return Wish(int(value)) if value else Wish.GO_ON


def forget_wishes() -> None:
    """Nothing is wished of anybody any more."""
    _internal_kv_del(_key(""), del_by_prefix=True, namespace=NAMESPACE)
