"""Tests of the runs of a sweep in a database: repeated operations, rejected ones, and damaged databases and files."""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.cluster.analyst import Analyst, Delivery, sync_sweep
from raycap.errors import TrackingError
from raycap.results import Failure
from raycap.storage import failure_path
from raycap.tracking.outbox import Operation
from raycap.tracking.problems import unusable
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import (
    STEP,
    assert_complete,
    has_step,
    make_results,
    planned_sweep,
    points_of,
    runs_of,
    store,
    wait_until,
)


@pytest.mark.usefixtures("one_figure")
def test_a_new_database_receives_all_stored_results_once(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    *results, _ = make_results(record)
    failed = record.trials[2].trial_id
    failure = Failure(trial_id=failed, cause="DivergedError: not finite", traceback="")
    store(record, results).write(failure_path(failed), failure.model_dump_json())
    first = sync_sweep(record)
    assert first == Delivery(first.num_points, undelivered=0, problems=())
    assert_complete(record, results)
    client, parent, children = runs_of(record)
    assert parent.info.status == "FAILED"
    assert children[failed].info.status == "FAILED"
    assert children[failed].data.tags["mlflow.note.content"] == failure.cause
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "capacity.png", "sweep.json", "spec.yaml"} <= artifacts
    before = {run.info.run_id: (run.info, points_of(client, run)) for run in (parent, *children.values())}
    assert first.num_points == sum(len(of_key) for _, points in before.values() for of_key in points.values())

    assert sync_sweep(record).num_points == 0
    client, parent, children = runs_of(record)
    for run in (parent, *children.values()):
        info, points = before[run.info.run_id]
        assert points_of(client, run) == points
        assert (run.info.status, run.info.end_time) == (info.status, info.end_time)


def test_repeated_operations_change_nothing(tmp_path: Path, tracking_uri: str) -> None:
    """Each operation is delivered twice, as after a lost response; then all of them again, as from an old file."""
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    store(record, results)
    measured = planted.measured({result.trial_id: result for result in results})
    (trial_id, curve) = results[0].trial_id, measured[results[0].trial_id].curve
    now = time.time_ns() // 1_000_000
    evaluation = {STEP: 1.0, "loss/one_hop_bits": 4.0}
    operations = [
        Operation("start_trial", now, {"trial_id": trial_id, "afresh": True}),
        Operation("log_evaluation", now + 1, {"trial_id": trial_id, "step": 1, "metrics": evaluation}),
        Operation("fail_trial", now + 2, {"trial_id": trial_id, "cause": "OSError: gone"}),
        Operation("start_trial", now + 3, {"trial_id": trial_id, "afresh": False}),
        Operation("finish_trial", now + 4, {"trial_id": trial_id}),
        Operation("close", now + 5, {"status": "FINISHED"}),
    ]
    tracker = Tracker(record, measured)
    for operation in operations:
        for _ in range(2):
            tracker.deliver(operation)
            tracker.clear_cache()
    client, _, children = runs_of(record)
    points = points_of(client, children[trial_id])
    assert [step for step, _, _ in points[STEP]] == [1, *curve.step]
    for operation in operations:
        tracker.deliver(operation)
    client, parent, again = runs_of(record)
    assert points_of(client, again[trial_id]) == points
    assert (parent.info.status, again[trial_id].info.status) == ("FINISHED", "FINISHED")

    # A trial that starts afresh, because its result is gone, gets a new run without earlier points.
    tracker.deliver(Operation("start_trial", now + 6, {"trial_id": trial_id, "afresh": True}))
    client, parent, again = runs_of(record)
    assert again[trial_id].info.run_id != children[trial_id].info.run_id
    assert (parent.info.status, again[trial_id].info.status) == ("RUNNING", "RUNNING")
    assert STEP not in again[trial_id].data.metrics


@pytest.mark.slow
def test_duplicate_runs_of_a_trial_are_deleted(tmp_path: Path, tracking_uri: str) -> None:
    """They exist after the response to a creation was lost."""
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    store(record, results)
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    client, parent, _ = runs_of(record)
    for result in results:
        tags = {"raycap.trial_id": result.trial_id, "mlflow.parentRunId": parent.info.run_id}
        client.create_run(parent.info.experiment_id, tags=tags)
    analyst.conclude(planted.RUN.model_dump_json(), "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)


@pytest.mark.slow
def test_deleted_runs_are_created_again(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    store(record, [])
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    for half in (slice(0, 5), slice(5, 10)):
        for result in results:
            analyst.start_trial(result.trial_id, afresh=half.start == 0)
            for evaluation in result.evaluations[half]:
                analyst.record_evaluation(result.trial_id, evaluation.model_dump_json())
        if half.start == 0:
            wait_until(lambda: len(runs_of(record)[2]) == 3 and has_step(record, results[2], 50))
            client, _, children = runs_of(record)
            client.delete_run(children[results[0].trial_id].info.run_id)
            client.delete_run(children[results[1].trial_id].info.run_id)
    for result in results:
        store(record, [result])
        analyst.record_result(result.model_dump_json())
    analyst.conclude(planted.RUN.model_dump_json(), "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)

    client, parent, _ = runs_of(record)
    client.delete_run(parent.info.run_id)  # the sweep gets a new run, with all its trials
    assert sync_sweep(record).problems == ()
    assert_complete(record, results)
    assert runs_of(record)[1].info.run_id != parent.info.run_id


@pytest.mark.usefixtures("one_figure")
def test_rejected_operations_do_not_block_later_ones(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    storage = store(record, results)
    metrics = {"no|good": 1.0}
    wrong = [
        Operation("log_evaluation", 1, {"trial_id": result.trial_id, "step": 1, "metrics": metrics})
        for result in results[:2]
    ]
    storage.write("planted/outbox.json", "[" + ",".join(json.dumps(vars(operation)) for operation in wrong) + "]")
    delivery = sync_sweep(record)
    assert delivery.undelivered == 0
    (problem,) = delivery.problems
    assert " 2 " in problem
    assert f"log_evaluation of {results[0].trial_id}" in problem
    assert_complete(record, results)
    assert not storage.exists("planted/outbox.json")


@pytest.mark.slow
def test_an_unreadable_outbox_is_set_aside(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    store(record, results).write("planted/outbox.json", "[{")
    (problem,) = sync_sweep(record).problems
    assert problem.startswith("planted/outbox.json ")
    assert_complete(record, results)
    assert (tmp_path / "runs/planted/outbox.json.damaged").read_text() == "[{"


@pytest.mark.slow
def test_operations_of_trials_that_an_edit_removed_are_kept(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    storage = store(record, results[:2])
    removed = {"name": "log_evaluation", "time_ms": 5, "arguments": {"trial_id": "stale", "step": 1, "metrics": {}}}
    lost = {"name": "finish_trial", "time_ms": 5, "arguments": {"trial_id": results[2].trial_id}}
    storage.write("planted/outbox.json", json.dumps([removed, lost]))
    assert sync_sweep(record).problems == ()
    assert json.loads((tmp_path / "runs/planted/outbox.json").read_text()) == [removed]
    assert_complete(record, results[:2])


@pytest.mark.slow
def test_a_sweep_ends_despite_a_damaged_database_and_unwritable_files(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    record = planned_sweep(tmp_path, f"sqlite:///{database}")
    results = make_results(record)
    store(record, results)
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    wait_until(lambda: [run.info.status for run in runs_of(record)[2].values()] == ["FINISHED"] * 3)
    database.write_bytes(b"This is no database. " * 1000)
    folder = tmp_path / "runs/planted"
    for name in ("outbox.json", "report.html"):
        (folder / name).mkdir()
    law = analyst.conclude(planted.RUN.model_dump_json(), "FINISHED", timeout_s=1)
    assert "1.80" in law
    report, outbox, waiting = analyst.delivery().problems
    assert report.startswith("report.html ")
    assert outbox.startswith("planted/outbox.json ")
    assert waiting.startswith("2 ")
    assert f"tracking.uri sqlite:///{database}" in waiting


def overwrite(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 1000)


def truncate(path: Path) -> None:
    Tracker(planned_sweep(path.parent, f"sqlite:///{path}"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path: Path) -> None:
    Tracker(planned_sweep(path.parent, f"sqlite:///{path}"))
    content = bytearray(path.read_bytes())
    content[40_960:81_920] = os.urandom(40_960)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (overwrite, "file is not a database"),
        (truncate, "database disk image is malformed"),
        (scramble, "the database is damaged"),
    ],
)
def test_a_damaged_database_is_reported_without_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], cause: str, tracking_uri: str
) -> None:
    damage(tmp_path / "mlflow.db")
    record = planned_sweep(tmp_path, tracking_uri)

    def fail(uri: str) -> None:
        raise AssertionError("MLflow opened the database, which it retries for minutes")

    monkeypatch.setattr("mlflow.store.db.utils.create_sqlalchemy_engine_with_retry", fail)
    with pytest.raises(TrackingError) as caught:
        Tracker(record)
    message = str(caught.value)
    assert cause in message
    assert "raycap sync" in message
    assert "\n" not in message


def test_a_locked_or_read_only_database_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    monkeypatch.setattr("raycap.tracking.client.LOCK_TIMEOUT_S", 0.5)
    record = planned_sweep(tmp_path, tracking_uri)
    Tracker(record)
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TrackingError, match=r"mlflow\.db.*locked"):
        Tracker(record)
    other.close()
    read_only = sqlite3.connect(f"file:{tmp_path}/mlflow.db?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        read_only.execute("PRAGMA user_version = 1")
    read_only.close()
    message = str(unusable(record.tracking_uri, caught.value))
    assert "readonly" in message
    assert "make it and its folder writable" in message
