"""MLflow's runs of a sweep in a database: made from what is stored, told twice and told once, and broken in many ways."""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.cluster.analyst import Analyst, Delivery, sync
from raycap.errors import TrackingError
from raycap.results import Failure
from raycap.storage import failure_path
from raycap.tracking.outbox import Operation
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import (
    STEP,
    assert_complete,
    has_step,
    placed,
    points_of,
    runs_of,
    store,
    trained,
    wait_until,
)


def test_a_new_database_gets_everything_that_is_stored_and_nothing_twice(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    *results, _ = trained(record)
    failed = record.trials[2].trial_id
    failure = Failure(trial_id=failed, cause="DivergedError: not finite", traceback="")
    store(record, results).write(failure_path(failed), failure.model_dump_json())
    first = sync(record)
    assert first == Delivery(first.num_points, undelivered=0, problems=())
    assert_complete(record, results)
    client, parent, children = runs_of(record)
    assert parent.info.status == "FAILED"
    assert children[failed].info.status == "FAILED"
    assert children[failed].data.tags["mlflow.note.content"] == failure.cause
    shown = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "capacity.png", "sweep.json", "spec.yaml"} <= shown
    before = {run.info.run_id: (run.info, points_of(client, run)) for run in (parent, *children.values())}
    assert first.num_points == sum(len(of_key) for _, points in before.values() for of_key in points.values())

    assert sync(record).num_points == 0
    client, parent, children = runs_of(record)
    for run in (parent, *children.values()):
        info, points = before[run.info.run_id]
        assert points_of(client, run) == points
        assert (run.info.status, run.info.end_time) == (info.status, info.end_time)


def test_operations_told_again_change_nothing(tmp_path: Path) -> None:
    """As after a lost answer, or from the file of a process that was killed: one by one, and all of them once more."""
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
    store(record, results)
    measured = planted.measured({result.trial_id: result for result in results})
    (trial_id, curve) = results[0].trial_id, measured[results[0].trial_id].curve
    now = time.time_ns() // 1_000_000
    evaluation = {STEP: 1.0, "loss/one_hop_bits": 4.0}
    told = [
        Operation("start_trial", now, {"trial_id": trial_id, "afresh": True}),
        Operation("log_evaluation", now + 1, {"trial_id": trial_id, "step": 1, "metrics": evaluation}),
        Operation("fail_trial", now + 2, {"trial_id": trial_id, "cause": "OSError: gone"}),
        Operation("start_trial", now + 3, {"trial_id": trial_id, "afresh": False}),
        Operation("finish_trial", now + 4, {"trial_id": trial_id}),
        Operation("close", now + 5, {"status": "FINISHED"}),
    ]
    tracker = Tracker(record, record.spec.tracking, measured)
    for operation in told:
        for _ in range(2):
            tracker.deliver(operation)
            tracker.forget()
    client, _, children = runs_of(record)
    points = points_of(client, children[trial_id])
    assert [step for step, _, _ in points[STEP]] == [1, *curve.step]
    for operation in told:
        tracker.deliver(operation)
    client, parent, again = runs_of(record)
    assert points_of(client, again[trial_id]) == points
    assert (parent.info.status, again[trial_id].info.status) == ("FINISHED", "FINISHED")

    # Its result is gone and it starts afresh: what was logged before is not its.
    tracker.deliver(Operation("start_trial", now + 6, {"trial_id": trial_id, "afresh": True}))
    client, parent, again = runs_of(record)
    assert again[trial_id].info.run_id != children[trial_id].info.run_id
    assert (parent.info.status, again[trial_id].info.status) == ("RUNNING", "RUNNING")
    assert STEP not in again[trial_id].data.metrics


def test_a_run_that_came_late_is_found_to_be_one_too_many(tmp_path: Path) -> None:
    """The answer to its making was lost, so another one was made."""
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
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


def test_runs_that_somebody_deleted_are_made_anew(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
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
    client.delete_run(parent.info.run_id)  # even that one: the sweep gets another, with all its trials
    assert sync(record).problems == ()
    assert_complete(record, results)
    assert runs_of(record)[1].info.run_id != parent.info.run_id


def test_what_is_refused_for_good_does_not_block_what_follows(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
    storage = store(record, results)
    metrics = {"no|good": 1.0}
    wrong = [
        Operation("log_evaluation", 1, {"trial_id": result.trial_id, "step": 1, "metrics": metrics})
        for result in results[:2]
    ]
    storage.write("planted/outbox.json", "[" + ",".join(json.dumps(vars(operation)) for operation in wrong) + "]")
    told = sync(record)
    assert told.undelivered == 0
    (problem,) = told.problems
    assert problem.startswith("MLflow refused 2 records, the first: log_evaluation of")
    assert_complete(record, results)
    assert not storage.exists("planted/outbox.json")


def test_an_outbox_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
    store(record, results).write("planted/outbox.json", "[{")
    (told,) = sync(record).problems
    assert told.startswith("planted/outbox.json cannot be read: ")
    assert_complete(record, results)
    assert (tmp_path / "runs/planted/outbox.json.damaged").read_text() == "[{"


def test_what_waits_of_trials_that_an_edit_left_out_is_kept(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    results = trained(record)
    storage = store(record, results[:2])
    of_another = {"name": "log_evaluation", "time_ms": 5, "arguments": {"trial_id": "stale", "step": 1, "metrics": {}}}
    lost = {"name": "finish_trial", "time_ms": 5, "arguments": {"trial_id": results[2].trial_id}}
    storage.write("planted/outbox.json", json.dumps([of_another, lost]))
    assert sync(record).problems == ()
    assert json.loads((tmp_path / "runs/planted/outbox.json").read_text()) == [of_another]
    assert_complete(record, results[:2])


def test_a_database_that_breaks_and_files_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    record = placed(tmp_path, f"sqlite:///{database}")
    results = trained(record)
    store(record, results)
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    wait_until(lambda: [run.info.status for run in runs_of(record)[2].values()] == ["FINISHED"] * 3)
    database.write_bytes(b"This is no database. " * 1000)
    folder = tmp_path / "runs/planted"
    for name in ("outbox.json", "report.html"):
        (folder / name).mkdir()
    law = analyst.conclude(planted.RUN.model_dump_json(), "FINISHED", patience_s=1)
    assert law.startswith("1.80 bits per parameter")
    report, outbox, waiting = analyst.delivery().problems
    assert report.startswith("report.html could not be written: ")
    assert outbox.startswith("planted/outbox.json cannot be written: ")
    assert waiting.startswith("2 records for MLflow could not be kept (tracking.uri sqlite:///")
    assert "move it away" in waiting


def junk(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 1000)


def half(path: Path) -> None:
    Tracker(record := placed(path.parent, f"sqlite:///{path}"), record.spec.tracking)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scrambled(path: Path) -> None:
    Tracker(record := placed(path.parent, f"sqlite:///{path}"), record.spec.tracking)
    content = bytearray(path.read_bytes())
    content[40_960:81_920] = os.urandom(40_960)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (junk, "file is not a database"),
        (half, "database disk image is malformed"),
        (scrambled, "the database is damaged"),
        (Path.mkdir, "unable to open database file"),
    ],
)
def test_a_database_that_is_none_is_told_at_once(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(tmp_path / "mlflow.db")
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    began = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        Tracker(record, record.spec.tracking)
    assert time.monotonic() < began + 10
    message = str(caught.value)
    assert told in message
    assert "move it away" in message
    assert "raycap sync" in message
    assert "\n" not in message


def test_a_database_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycap.tracking.client.LOCK_TIMEOUT_S", 0.5)
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    Tracker(record, record.spec.tracking)
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TrackingError, match="database is locked"):
        Tracker(record, record.spec.tracking)
    other.close()
    read_only = f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"
    record = placed(tmp_path, read_only)
    with pytest.raises(TrackingError, match="attempt to write a readonly database"):
        Tracker(record, record.spec.tracking)
