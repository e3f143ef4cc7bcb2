"""A real MLflow server that is killed, stopped and started again while trials are measured: nothing lost, nothing twice."""

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

from raycap.cluster.analyst import Analyst, sync
from raycap.errors import TrackingError
from raycap.results import SweepRecord, TrialResult
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import (
    assert_complete,
    has_step,
    placed,
    points_of,
    runs_of,
    store,
    trained,
    wait_until,
)

AT_ONCE_S = 0.9
RUN_JSON = planted.RUN.model_dump_json()


class Server:
    """MLflow on a port of its own, with a database that outlives it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        places = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        places += ["--artifacts-destination", str(self._folder / "artifacts")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *places, "--port", str(self._port), "--workers", "1"],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.read() == b"OK"
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP or SIGCONT, to all its processes."""
        os.killpg(self._process.pid, number)
        if number is signal.SIGKILL:
            self._process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    if server.answers():
        server.send(signal.SIGKILL)


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """It is up when a test begins; an answer that does not come is waited for a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if not running.answers():
        running.start()
    return running


def raycap(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from raycap.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def waiting_in(folder: Path) -> list[str]:
    """The operations in a sweep's outbox."""
    file = folder / "runs/planted/outbox.json"
    return [operation["name"] for operation in json.loads(file.read_text())] if file.exists() else []


class CurriculumState:
    """Trials side by side, evaluated one after the other, each call answered at once."""

    def __init__(self, record: SweepRecord, results: list[TrialResult], analyst: Analyst) -> None:
        self._record, self._results, self._analyst = record, results, analyst

    def go_on(self, numbers: range) -> None:
        for number in numbers:
            for result in self._results:
                began = time.monotonic()
                if number == 0:
                    self._analyst.start_trial(result.trial_id, afresh=True)
                self._analyst.record_evaluation(result.trial_id, result.evaluations[number].model_dump_json())
                assert self._analyst.events(0)[-1].trial_id == result.trial_id
                assert time.monotonic() < began + AT_ONCE_S

    def finish(self) -> None:
        for result in self._results:
            store(self._record, [result])
            self._analyst.record_result(result.model_dump_json())


def begun(folder: Path, server: Server) -> tuple[SweepRecord, list[TrialResult], Analyst, CurriculumState]:
    record = placed(folder, server.uri)
    results = trained(record)
    store(record, [])
    analyst = Analyst(record.model_dump_json())
    analyst.open(1)
    return record, results, analyst, CurriculumState(record, results, analyst)


def test_a_server_that_is_killed_and_comes_back_lacks_nothing(tmp_path: Path, server: Server) -> None:
    record, results, analyst, course = begun(tmp_path, server)
    course.go_on(range(4))
    server.send(signal.SIGKILL)  # something is under way: four evaluations of three trials take it longer than us
    course.go_on(range(4, 8))
    wait_until(lambda: "log_evaluation" in waiting_in(tmp_path))
    server.start()
    wait_until(lambda: not (tmp_path / "runs/planted/outbox.json").exists())
    assert all(has_step(record, result, result.evaluations[7].step) for result in results)
    course.go_on(range(8, 10))
    course.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)
    assert runs_of(record)[1].info.status == "FINISHED"


def test_answers_that_are_lost_are_not_told_twice(tmp_path: Path, server: Server) -> None:
    """A server that stands still takes what it is sent, and does it when nobody waits for the answer any more."""
    record, results, analyst, course = begun(tmp_path, server)
    server.send(signal.SIGSTOP)
    course.go_on(range(2))
    wait_until(lambda: "start_trial" in waiting_in(tmp_path))
    time.sleep(2)  # the run of the first trial is asked for a second time
    server.send(signal.SIGCONT)
    wait_until(lambda: not waiting_in(tmp_path))
    server.send(signal.SIGSTOP)
    course.go_on(range(2, 5))
    wait_until(lambda: "log_evaluation" in waiting_in(tmp_path))
    server.send(signal.SIGCONT)
    wait_until(lambda: not waiting_in(tmp_path))
    course.go_on(range(5, 10))
    course.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert analyst.delivery().problems == ()
    assert_complete(record, results)


def test_what_a_lost_server_was_not_told_is_delivered_by_sync(tmp_path: Path, server: Server) -> None:
    """MLflow is away for good, two trials finish, and in the middle of the third everything is killed outright."""
    record = placed(tmp_path, server.uri)
    results = trained(record)
    code = f"""
import sys, time
from pathlib import Path
from raycap.cluster.analyst import Analyst
from tests.cluster import test_outbox as tests
record = tests.placed(Path({str(tmp_path)!r}), {server.uri!r})
results = tests.trained(record)
tests.store(record, [])
analyst = Analyst(record.model_dump_json())
analyst.open(1)
course = tests.Course(record, results, analyst)
course.go_on(range(3))
print("begun", flush=True)
sys.stdin.readline()
course.go_on(range(3, 10))
tests.Course(record, results[:2], analyst).finish()
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout.readline() == "begun\n"
    server.send(signal.SIGKILL)
    process.stdin.write("go on\n")
    process.stdin.flush()
    wait_until(lambda: waiting_in(tmp_path).count("finish_trial") == 2)
    process.kill()
    process.communicate()
    assert waiting_in(tmp_path).count("log_evaluation") <= 11  # those of the third, and what was under way

    folder = str(tmp_path / "runs/planted")
    away = raycap("sync", folder, folder=tmp_path)
    assert away.returncode == 2
    assert away.stderr.startswith(f"{folder}: tracking.uri {server.uri}: MLflow cannot be used: ")
    assert "Traceback" not in away.stderr
    assert waiting_in(tmp_path)
    server.start()
    delivered = raycap("sync", folder, folder=tmp_path)
    assert delivered.returncode == 0, delivered.stderr
    assert "points logged" in delivered.stdout
    assert not (tmp_path / "runs/planted/outbox.json").exists()
    assert_complete(record, results[:2])
    assert_complete(record, results[2:], status="KILLED")
    client, parent, children = runs_of(record)
    assert parent.info.status == "KILLED"
    before = {trial_id: points_of(client, run) for trial_id, run in children.items()}
    assert sync(record).num_points == 0
    client, _, children = runs_of(record)
    assert {trial_id: points_of(client, run) for trial_id, run in children.items()} == before


def test_an_interrupted_sweep_does_not_wait_for_a_server_that_stands_still(tmp_path: Path, server: Server) -> None:
    record, results, analyst, course = begun(tmp_path, server)
    course.go_on(range(3))
    wait_until(lambda: all(has_step(record, result, result.evaluations[2].step) for result in results))
    server.send(signal.SIGSTOP)
    course.go_on(range(3, 6))
    began = time.monotonic()
    analyst.interrupt(RUN_JSON)
    assert time.monotonic() < began + 4
    assert analyst.delivery().undelivered > 0
    began = time.monotonic()
    with pytest.raises(TrackingError, match="MLflow cannot be used"):
        Tracker(record, record.spec.tracking)
    assert time.monotonic() < began + 4  # MLflow itself would try for minutes
    server.send(signal.SIGCONT)

    analyst = Analyst(record.model_dump_json())  # the next run begins with what waits
    analyst.open(1)
    course = CurriculumState(record, results, analyst)
    course.go_on(range(6, 10))
    course.finish()
    analyst.conclude(RUN_JSON, "FINISHED")
    assert_complete(record, results)


def test_a_sweep_ends_without_its_server_and_says_what_waits(tmp_path: Path, server: Server) -> None:
    record, _, analyst, course = begun(tmp_path, server)
    course.go_on(range(5))
    server.send(signal.SIGKILL)
    course.go_on(range(5, 10))
    course.finish()
    law = analyst.conclude(RUN_JSON, "FINISHED", patience_s=1)
    assert law.startswith("1.80 bits per parameter")
    left = analyst.delivery()
    (problem,) = left.problems
    folder = f"{tmp_path}/runs/planted"
    assert left.undelivered == len(waiting_in(tmp_path)) > 3
    assert problem.startswith(f"{left.undelivered} records for MLflow wait in {folder}/outbox.json (tracking.uri http")
    assert problem.endswith(f"To deliver what is stored: raycap sync {folder}")

    with pytest.raises(TrackingError, match="MLflow cannot be used"):  # nor does another begin
        Tracker(record, record.spec.tracking)
