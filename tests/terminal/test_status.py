"""Tests of progress and status: extrapolation from events, progress.json, and the status from stored files."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from raycap.analysis.analyse import analyse
from raycap.analysis.summary import summary
from raycap.plan.inventory import Inventory, InventoryEntry, TrialState
from raycap.results import CostRecord, Failure, SweepRecord
from raycap.storage import Storage, checkpoint_path, failure_path, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.lock import locked
from raycap.storage.progress import Event, ProgressFile, TrialProgress, read_progress
from raycap.storage.sweep_folder import SweepFolder
from raycap.terminal.plan_table import plan_table
from raycap.terminal.progress_table import (
    FAILED,
    FINISHED,
    RUNNING,
    WAITING,
    TrialRow,
    render_progress,
    seconds_left,
    share_done,
    summarize,
)
from raycap.terminal.status import follow, read_status
from tests.support import planted
from tests.support.planted import results, sweep

RECORD = sweep([12, 14, 16, 18])
A, B, C, D = RECORD.trials
STEPS = A.steps


def evaluated(trial_id: str, at: float, share: float) -> Event:
    return Event(trial_id, "evaluated", at, round(share * STEPS), 10 * share, 5.0, 1.5, 2e5)


def progress(began: float, *events: Event) -> TrialProgress:
    result = TrialProgress(began=began)
    for event in events:
        result = result.after(event)
    return result


# --- one trial --------------------------------------------------------------------------------------------------------


def test_progress_is_extrapolated_at_the_speed_between_evaluations() -> None:
    """The time before the first evaluation, 90 s of start-up here, does not count."""
    trial = progress(0.0, evaluated(A.trial_id, 100.0, 0.25), evaluated(A.trial_id, 110.0, 0.5))
    assert trial.share_done(STEPS, 114.0) == pytest.approx(0.6, abs=0.01)
    assert trial.seconds_left(STEPS, 114.0) == pytest.approx(16.0, abs=0.2)
    assert trial.share_done(STEPS, 1000.0) == 0.99  # slower than predicted, but not done
    assert trial.seconds_left(STEPS, 1000.0) == pytest.approx(0.4, abs=0.01)


def test_with_one_evaluation_the_speed_is_measured_from_the_start() -> None:
    assert progress(0.0).seconds_left(STEPS, 50.0) is None
    assert progress(0.0).share_done(STEPS, 50.0) == 0.0
    assert progress(100.0, evaluated(A.trial_id, 110.0, 0.1)).seconds_left(STEPS, 110.0) == pytest.approx(90, rel=0.05)


# --- a sweep ----------------------------------------------------------------------------------------------------------


def test_waiting_trials_are_predicted_from_running_ones() -> None:
    """Two run and are half done after 50 s, two wait: about 50 s are left for the former and 100 s for the latter."""
    half = [progress(0.0, evaluated(t.trial_id, 0.0, 0.0), evaluated(t.trial_id, 50.0, 0.5)) for t in (A, B)]
    lines = [TrialRow(A, RUNNING, half[0]), TrialRow(B, RUNNING, half[1]), TrialRow(C, WAITING), TrialRow(D, WAITING)]
    left = seconds_left(lines, 50.0)
    assert left == pytest.approx(
        50 + 100 * (C.parameters.total + D.parameters.total) / (A.parameters.total + B.parameters.total), rel=0.05
    )
    assert share_done(lines, 50.0) < 0.25  # the waiting trials are larger
    assert re.findall(r"\d+", summarize(lines, 50.0, num_before=3))[:3] == ["3", "7", "2"]  # finished, all, running


def test_without_evaluations_there_is_no_prediction() -> None:
    lines = [TrialRow(A, RUNNING, progress(0.0)), TrialRow(B, WAITING), TrialRow(C, FINISHED), TrialRow(D, FAILED)]
    assert seconds_left(lines, 10.0) is None
    assert re.findall(r"\d+", summarize(lines, 10.0)) == ["1", "4", "1", "1"]  # finished, all, running, failed


def test_the_progress_table_shows_failed_and_running_trials_first() -> None:
    running = progress(0.0, evaluated(B.trial_id, 10.0, 0.25), evaluated(B.trial_id, 20.0, 0.5))
    lines = [TrialRow(A, FINISHED), TrialRow(B, RUNNING, running), TrialRow(C, WAITING), TrialRow(D, FAILED)]
    console = Console(file=StringIO(), width=120)
    console.print(render_progress(lines, 20.0, console))
    shown = console.file.getvalue().splitlines()
    rows = [row.split() for row in shown if "-L2-" in row]
    assert [row[:3] for row in rows] == [
        [trial.label, trial.trial_id, state]
        for trial, state in zip((D, B, C, A), (FAILED, RUNNING, WAITING, FINISHED), strict=True)
    ]
    assert rows[1][2:] == ["running", "50%", "5.0", "5.00", "1.50", "200,000", "20", "s"]
    assert "1 of 4 trials finished, 1 running, 1 failed" in shown[-1]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_tables_keep_state_id_and_seed(width: int) -> None:
    states = {trial.trial_id: InventoryEntry(TrialState.NEW) for trial in RECORD.trials}
    console = Console(file=StringIO(), width=width)
    console.print(render_progress([TrialRow(trial, WAITING) for trial in RECORD.trials], 20.0, console))
    console.print(plan_table(RECORD, RECORD.trials, Inventory(states, ()), console))
    shown = console.file.getvalue().splitlines()
    assert max(map(len, shown)) <= width
    for trial, state in ((trial, state) for trial in RECORD.trials for state in (WAITING, "new")):
        (row,) = (line for line in shown if trial.trial_id in line and state in line.split())
        assert f"-{trial.label.rpartition('-')[2]} " in row


# --- progress.json ----------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def test_the_progress_file_has_the_running_trials_and_is_written_once_a_second(storage: Storage, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("raycap.storage.progress.time.monotonic", lambda: clock[0])
    file = ProgressFile(storage, "planted")
    file.add(Event(A.trial_id, "started", 0.0))
    file.add(evaluated(A.trial_id, 5.0, 0.25))
    file.add(Event(B.trial_id, "started", 5.0))
    assert read_progress(storage, "planted") == {A.trial_id: TrialProgress(began=0.0)}
    clock[0] += 1.0
    file.flush()
    assert read_progress(storage, "planted") == {
        A.trial_id: progress(0.0, evaluated(A.trial_id, 5.0, 0.25)),
        B.trial_id: TrialProgress(began=5.0),
    }
    clock[0] += 1.0
    file.add(Event(A.trial_id, "finished", 9.0))
    assert list(read_progress(storage, "planted")) == [B.trial_id]
    storage.write("planted/progress.json", '{"trials": {')
    assert read_progress(storage, "planted") == {}
    file.close()
    assert not storage.exists("planted/progress.json")


def test_a_progress_file_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "planted").write_text("in the way")
    ProgressFile(Storage.at(str(tmp_path)), "planted").add(Event(A.trial_id, "started", 0.0))


# --- status -----------------------------------------------------------------------------------------------------------


def store_all_states(storage: Storage) -> SweepRecord:
    """Store a sweep in which A is finished, B is running, C has failed, and D has checkpoints."""
    result = results(RECORD, 1.8)[A.trial_id]
    storage.write(result_path(A.trial_id), with_checksum(result.model_dump_json()))
    failure = Failure(trial_id=C.trial_id, cause="ValueError: no", traceback="")
    storage.write(failure_path(C.trial_id), failure.model_dump_json())
    storage.write(checkpoint_path(D.trial_id, STEPS // 2), b"")
    file = ProgressFile(storage, "planted")
    file.add(Event(B.trial_id, "started", 0.0))
    return RECORD


def test_status_is_read_from_files_and_names_the_running_process(storage: Storage) -> None:
    record = store_all_states(storage)
    before = sorted(str(path) for path in Path(storage.root).rglob("*"))
    alone = read_status(record, storage)
    assert [row.state for row in alone.rows] == ["finished", "new", "failed", "resumable"]
    assert alone.holder is None
    assert alone.runner.startswith("planted: ")
    assert alone.rows[3].share_done(alone.at) == pytest.approx(0.5, abs=0.01)
    assert sorted(str(path) for path in Path(storage.root).rglob("*")) == before
    with locked(storage, "planted"):
        now = read_status(record, storage)
    assert [row.state for row in now.rows] == ["finished", "running", "failed", "waiting"]
    assert now.runner.startswith("planted: run by process ")
    parsed = json.loads(now.json())
    assert parsed["run_by"]["pid"] == now.holder.pid
    assert [trial["state"] for trial in parsed["trials"]] == [row.state for row in now.rows]
    assert parsed["trials"][2]["reason"] == "ValueError: no"
    console = Console(file=StringIO(), width=120)
    now.show(console)
    assert f"{C.label}: failed before: ValueError: no" in console.file.getvalue()


def test_finished_trials_show_the_numbers_of_the_last_analysis(storage: Storage) -> None:
    record = store_all_states(storage)
    measured = planted.measured({A.trial_id: results(RECORD, 1.8)[A.trial_id]})
    entries = summary(analyse(record, planted.RUN, measured, {}))
    storage.write("planted/summary.json", json.dumps(entries))
    first, *others = read_status(record, storage).rows
    assert (first.state, first.progress.last.bits_per_param) == ("finished", pytest.approx(1.8))
    assert first.progress.last.tokens_per_s > 0
    assert json.loads(read_status(record, storage).json())["trials"][0]["evaluation"]["step"] == 100
    assert [row.progress for row in others] == [None] * 3
    console = Console(file=StringIO(), width=120)
    read_status(record, storage).show(console)
    assert " 1.80 " in console.file.getvalue()
    assert entries["answer"] in console.file.getvalue()
    assert json.loads(read_status(record, storage).json())["answer"] == entries["answer"]
    assert 'finished": 1' not in console.file.getvalue()
    for trial in entries["trials"]:
        if trial["state"] == "finished":
            trial["bits_per_param"] = {"optimal": {"enumerate": -0.77}}
    storage.write("planted/summary.json", json.dumps(entries))
    console = Console(file=StringIO(), width=120)
    read_status(record, storage).show(console)
    assert "0.77" not in console.file.getvalue()  # a dash
    for broken in ("{", '{"trials": 3}', '{"trials": [{"trial_id": "a", "state": "finished"}]}'):
        storage.write("planted/summary.json", broken)
        assert read_status(record, storage).rows[0].progress is None


def test_the_cost_of_all_runs_and_the_rest_of_the_budget_are_shown(storage: Storage) -> None:
    record = store_all_states(storage)
    assert json.loads(read_status(record, storage).json())["cost"] is None
    cost = CostRecord(spent_usd=12.345, budget_usd=50)
    SweepFolder(storage, "planted").write(SweepFolder.COST, cost.model_dump_json())
    status, console = read_status(record, storage), Console(file=StringIO(), width=120)
    assert json.loads(status.json())["cost"] == {"spent_usd": 12.345, "budget_usd": 50, "left_usd": 37.655}
    status.show(console)
    assert {"12.35", "50.00", "37.66"} <= set(console.file.getvalue().replace(";", " ").split())


def test_following_ends_when_the_sweep_ends(storage: Storage, monkeypatch) -> None:
    monkeypatch.setattr("raycap.terminal.status.REFRESH_INTERVAL_S", 0.05)
    record, console = store_all_states(storage), Console(file=StringIO(), width=200)
    with locked(storage, "planted"):
        first = read_status(record, storage)
    follow(first, record, storage, console)
    lines = console.file.getvalue().splitlines()
    assert lines[0].endswith("1 of 4 trials finished, 1 running, 1 failed")
    assert lines[1].startswith("planted: ")
    assert lines[1].endswith("1 of 4 trials finished, 1 failed")


def test_the_status_says_that_the_last_run_was_killed(storage: Storage) -> None:
    ProgressFile(storage, "planted").add(Event(A.trial_id, "started", 0.0))
    with locked(storage, "planted"):
        assert not read_status(RECORD, storage).was_killed
    killed = read_status(RECORD, storage)
    assert killed.was_killed
    assert "killed" in killed.runner
    assert json.loads(killed.json())["was_killed"]
    ProgressFile(storage, "planted").close()
    assert not read_status(RECORD, storage).was_killed
