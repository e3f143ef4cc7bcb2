"""Tests of the queue of trial groups: no group starts while it is held, and it can be stopped meanwhile."""

import time

from ray.tune.search import Searcher

from raycap.cluster.budget import UNBOUNDED, Spending
from raycap.cluster.trial_queue import TrialQueue
from tests.support.planted import sweep


def test_a_held_queue_suggests_nothing_and_can_be_stopped() -> None:
    held = True
    groups = [(trial,) for trial in sweep([12, 14, 16]).trials]
    queue = TrialQueue(groups, Spending(UNBOUNDED, 0, time.monotonic()), is_held=lambda: held)
    assert queue.suggest("a") is None
    held = False
    assert queue.suggest("a")["trials"]
    held = True
    assert queue.suggest("b") is None
    queue.on_trial_complete("a", error=True)
    assert queue.suggest("b") is None
    queue.stop()
    assert queue.suggest("b") == Searcher.FINISHED
