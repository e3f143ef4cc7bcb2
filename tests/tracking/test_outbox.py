"""Tests that a server of MLflow receives every point once, although it is killed, stopped and restarted during a sweep."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycap.cluster.analyst import Analyst, sync_sweep
from raycap.errors import TrackingError
from raycap.results import SweepRecord, TrialResult
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import (
    assert_complete,
    has_step,
    make_results,
    planned_sweep,
    points_of,
    runs_of,
    store,
    wait_until,
)

START_TIMEOUT_S = 300.0
"""A server loads for minutes on a busy machine."""
RUN_JSON = planted.RUN.model_dump_json()


class Server:
    """A server of MLflow on a free port, whose database remains when it is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        options = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        options += ["--artifacts-destination", str(self._folder / "artifacts")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, "--port", str(self._port), "--workers", "1"],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.answers, START_TIMEOUT_S)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.read() == b"OK"
        except OSError:
            return False

    @property
    def has_ended(self) -> bool:
        """Whether the server was killed and not started again."""
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Send SIGKILL, SIGSTOP or SIGCONT to all processes of the server."""
        os.killpg(self._process.pid, number)
        if number is signal.SIGKILL:
            self._process.wait()

    def kill(self) -> None:
        """Kill the server unless it has ended, even if it is stopped or does not answer."""
        if not self.has_ended:
            self.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a running server. Requests time out after a time that is enough for a server on a busy machine."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    if running.has_ended:
        running.start()
    return running


def raycap(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raycap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def waiting_in(folder: Path) -> list[str]:
    """Return the names of the operations in the file of a sweep's outbox."""
    file = folder / "runs/planted/outbox.json"
    return [operation["name"] for operation in json.loads(file.read_text())] if file.exists() else []


class SimulatedTrials:
    """Trials that run in parallel and report to the analyst."""

    def __init__(self, record: SweepRecord, results: list[TrialResult], analyst: Analyst) -> None:
        self._record, self._results, self._analyst = record, results, analyst

    def evaluate(self, numbers: range) -> None:
        """Report these evaluations of all trials. Calls return without delivery, or a stopped server would block them."""
        for number in numbers:
            for result in self._results:
                if number == 0:
                    self._analyst.start_trial(result.trial_id, afresh=True)
                self._analyst.record_evaluation(result.trial_id, result.evaluations[number].model_dump_json())
                assert self._analyst.events("", 0)[1][-1].trial_id == result.trial_id

    def finish(self) -> None:
        for result in self._results:
            store(self._record, [result])
            self._analyst.record_result(result.model_dump_json())


def start_sweep(folder: Path, server: Server) -> tuple[SweepRecord, list[TrialResult], Analyst, SimulatedTrials]:
    record = planned_sweep(folder, server.uri)
    results = make_results(record)
    store(record, [])
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    return record, results, analyst, SimulatedTrials(record, results, analyst)


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_receives_every_point_once(tmp_path: Path, server: Server) -> None:
    record, results, analyst, trials = start_sweep(tmp_path, server)
    trials.evaluate(range(4))
    server.send(signal.SIGKILL)  # during a delivery: 12 evaluations are added faster than they are logged
    trials.evaluate(range(4, 8))
    wait_until(lambda: "log_evaluation" in waiting_in(tmp_path))
    server.start()
    wait_until(lambda: not (tmp_path / "runs/planted/outbox.json").exists())
    assert all(has_step(record, result, result.evaluations[7].step) for result in results)
    trials.evaluate(range(8, 10))
    trials.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)
    assert runs_of(record)[1].info.status == "FINISHED"


@pytest.mark.slow
def test_operations_whose_responses_are_lost_are_applied_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped server accepts requests and processes them after the client has timed out."""
    record, results, analyst, trials = start_sweep(tmp_path, server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server.send(signal.SIGSTOP)
    trials.evaluate(range(2))
    wait_until(lambda: "start_trial" in waiting_in(tmp_path))
    time.sleep(2)  # the creation of the first run is requested a second time
    server.send(signal.SIGCONT)
    wait_until(lambda: not waiting_in(tmp_path))
    server.send(signal.SIGSTOP)
    trials.evaluate(range(2, 5))
    wait_until(lambda: "log_evaluation" in waiting_in(tmp_path))
    server.send(signal.SIGCONT)
    wait_until(lambda: not waiting_in(tmp_path))
    trials.evaluate(range(5, 10))
    trials.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)


@pytest.mark.slow
def test_sync_delivers_what_an_unavailable_server_lacks(tmp_path: Path, server: Server) -> None:
    """The server is killed, two trials finish, and the sweep is killed during the third."""
    record = planned_sweep(tmp_path, server.uri)
    results = make_results(record)
    code = f"""
import sys, time
from pathlib import Path
from raycap.cluster.analyst import Analyst
from tests.tracking import test_outbox as tests
record = tests.planned_sweep(Path({str(tmp_path)!r}), {server.uri!r})
results = tests.make_results(record)
tests.store(record, [])
analyst = Analyst(record.model_dump_json())
analyst.open(1)
trials = tests.SimulatedTrials(record, results, analyst)
trials.evaluate(range(3))
print("started", flush=True)
sys.stdin.readline()
trials.evaluate(range(3, 10))
tests.SimulatedTrials(record, results[:2], analyst).finish()
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout.readline() == "started\n"
    server.send(signal.SIGKILL)
    process.stdin.write("continue\n")
    process.stdin.flush()
    wait_until(lambda: waiting_in(tmp_path).count("finish_trial") == 2)
    process.kill()
    process.communicate()
    assert waiting_in(tmp_path).count("log_evaluation") <= 11  # 10 of the third trial, and one in delivery

    folder = str(tmp_path / "runs/planted")
    failed = raycap("sync", folder, folder=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"{folder}: tracking.uri {server.uri}: ")
    assert "Traceback" not in failed.stderr
    assert waiting_in(tmp_path)
    server.start()
    delivered = raycap("sync", folder, folder=tmp_path)
    assert delivered.returncode == 0, delivered.stderr
    assert not (tmp_path / "runs/planted/outbox.json").exists()
    assert_complete(record, results[:2])
    assert_complete(record, results[2:], status="KILLED")
    client, parent, children = runs_of(record)
    assert parent.info.status == "KILLED"
    before = {trial_id: points_of(client, run) for trial_id, run in children.items()}
    assert sync_sweep(record).num_points == 0
    client, _, children = runs_of(record)
    assert {trial_id: points_of(client, run) for trial_id, run in children.items()} == before


@pytest.mark.slow
def test_an_interrupted_sweep_does_not_wait_for_a_stopped_server(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, results, analyst, trials = start_sweep(tmp_path, server)
    trials.evaluate(range(3))
    wait_until(lambda: all(has_step(record, result, result.evaluations[2].step) for result in results))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server.send(signal.SIGSTOP)
    trials.evaluate(range(3, 6))
    analyst.interrupt(RUN_JSON)
    assert analyst.delivery().undelivered > 0
    with pytest.raises(TrackingError):
        Tracker(record)
    server.send(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

    analyst = Analyst(record.model_dump_json())  # the next run starts with the operations in the file
    analyst.open(1)
    trials = SimulatedTrials(record, results, analyst)
    trials.evaluate(range(6, 10))
    trials.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert_complete(record, results)


@pytest.mark.slow
def test_a_sweep_ends_without_its_server_and_reports_what_is_undelivered(tmp_path: Path, server: Server) -> None:
    record, _, analyst, trials = start_sweep(tmp_path, server)
    trials.evaluate(range(5))
    server.send(signal.SIGKILL)
    trials.evaluate(range(5, 10))
    trials.finish()
    law = analyst.conclude(RUN_JSON, "FINISHED", timeout_s=1)
    assert "1.80" in law
    left = analyst.delivery()
    (problem,) = left.problems
    folder = f"{tmp_path}/runs/planted"
    assert left.undelivered == len(waiting_in(tmp_path)) > 3
    for value in (str(left.undelivered), f"{folder}/outbox.json", server.uri, f"raycap sync {folder}"):
        assert value in problem

    with pytest.raises(TrackingError):  # a new sweep does not start
        Tracker(record)
