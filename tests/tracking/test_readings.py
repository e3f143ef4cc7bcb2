"""Results of analyses of stored models are logged once to the runs that trials have in MLflow."""

import time
from pathlib import Path

import pytest

from raycap.analysis.inspected import Inspected
from raycap.errors import TrackingError
from raycap.tracking.outbox import Operation
from raycap.tracking.readings import log_models
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import make_results, planned_sweep, points_of, runs_of, store
from tests.support.probe_readings import probe_record, usable


def test_readings_are_logged_once_at_the_steps_of_their_models(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    store(record, results)
    trial_id = results[0].trial_id
    probed = {trial_id: tuple(probe_record(trial_id, step, seed=0) for step in (10, 20))}
    metrics = Inspected(probes=probed).metrics(record)
    with pytest.raises(TrackingError):
        log_models(record, metrics)  # the sweep is not logged
    tracker = Tracker(record, planted.measured({result.trial_id: result for result in results}))
    tracker.deliver(Operation("finish_trial", time.time_ns() // 1_000_000, {"trial_id": trial_id}))
    assert log_models(record, metrics) == log_models(record, metrics)
    client, _, children = runs_of(record)
    points = points_of(client, children[trial_id])["probe/bridge/answer/L2_usable_bits"]
    assert [step for step, _, _ in points] == [10, 20]
    assert usable(2.0, "answer", 0) in points[0]
