"""Sweeps that are killed or receive signals: they can be resumed, and leave no process behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import psutil
import pytest

from raycap.storage import checkpoint_steps
from tests.support.faults import ANALYST, WORKER, kill, processes, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
name: killed
trial:
  profiles: {num_profiles: 500, num_relations: 4, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 16, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 2000}, batch_size: 256, num_evaluations: 20, optimizer: {lr: 0.01}}
grid:
  training.length.steps: [50, 1000, 2000]  # the longest start first, so one ends while another runs
execution: {checkpoint_every_s: 2}
"""


def start(folder: Path) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "raycap.sweep", "spec.yaml", "--notify-cmd", "echo $RAYCAP_STATUS > status"],
        cwd=folder, env=environment, start_new_session=True,
        stdout=(folder / "log").open("a"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def half_way(folder: Path) -> bool:
    finished = list(folder.glob("runs/trials/*/result.json"))
    running = [p.parent for p in folder.glob("runs/trials/*/checkpoint-*") if not (p.parent / "result.json").exists()]
    return len(finished) >= 1 and any(
        max(checkpoint_steps([p.name for p in trial.iterdir()]), default=0) >= 200 for trial in running
    )


def alive(children: list[psutil.Process]) -> list[psutil.Process]:
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def started_half_way(folder: Path) -> tuple["subprocess.Popen[bytes]", list[psutil.Process]]:
    """Start a sweep, wait until it has finished a trial and trains another, and return it with its child processes."""
    (folder / "spec.yaml").write_text(SPEC)
    process = start(folder)
    children: dict[int, psutil.Process] = {}

    def note_children_half_way() -> bool:
        children.update({child.pid: child for child in psutil.Process(process.pid).children(recursive=True)})
        return half_way(folder)

    wait_until(note_children_half_way, 240)
    return process, list(children.values())


def check_that_it_resumes(folder: Path) -> None:
    """Check that the same command resumes the remaining trials, and that MLflow has every point once."""
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("runs/trials/*/result.json")}
    assert stamps
    (folder / "log").rename(folder / "first-log")
    assert start(folder).wait(240) == 0
    log = (folder / "log").read_text()
    assert re.search(r"resumable at \d+ %", log)
    unfinished = "".join(line for line in log.splitlines() if "steps=2000: " in line)
    assert " 0.1 exposures" not in unfinished  # not from the first step
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    summary = json.loads((folder / "runs" / "killed" / "summary.json").read_text())
    assert [trial["state"] for trial in summary["trials"]] == ["finished"] * 3
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("raycap").experiment_id])
    children = {run.data.tags["raycap.trial_id"]: run for run in runs if "raycap.trial_id" in run.data.tags}
    assert Counter(run.info.status for run in runs) == {"FINISHED": 4}
    assert len(children) == 3
    for path in folder.glob("runs/trials/*/result.json"):
        steps = [evaluation["step"] for evaluation in json.loads(path.read_text())["evaluations"]]
        assert steps == sorted(set(steps))
        history = client.get_metric_history(children[path.parent.name].info.run_id, "train/exposures")
        assert [point.step for point in history] == steps


def mlflow_statuses(folder: Path) -> set[str]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("raycap").experiment_id])
    return {run.info.status for run in runs}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_receives_a_signal_saves_and_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    process, children = started_half_way(tmp_path)
    process.send_signal(number)
    assert process.wait(60) == 130
    wait_until(lambda: not alive(children), 5)
    log = (tmp_path / "log").read_text()
    assert "Stopping" in log
    assert re.search(r"Interrupted: [12] of 3 trials .*\n  python -m raycap.sweep spec.yaml\n", log)
    assert "Traceback" not in log
    assert mlflow_statuses(tmp_path) == {"FINISHED", "KILLED"}
    check_that_it_resumes(tmp_path)


def test_a_killed_sweep_can_be_resumed(tmp_path: Path) -> None:
    process, children = started_half_way(tmp_path)
    process.kill()
    process.wait()
    without_agents = [child for child in alive(children) if "Agent" not in child.name()]
    wait_until(lambda: not alive(without_agents), 15)
    wait_until(lambda: not alive(children), 120)  # Ray's agents check once a minute whether their parent is alive
    assert list((tmp_path / "runs/killed/lock").iterdir())  # a killed process cannot delete its claim
    check_that_it_resumes(tmp_path)


def test_a_second_signal_stops_the_sweep_at_once(tmp_path: Path) -> None:
    process, children = started_half_way(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Interrupted" not in (tmp_path / "log").read_text()  # it was killed before it could print this
    assert (tmp_path / "status").read_text() == "interrupted\n"
    wait_until(lambda: not alive(children), 5)


@pytest.mark.parametrize("part", ["gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"])
def test_the_death_of_ray_is_reported_and_closes_mlflow(tmp_path: Path, part: str) -> None:
    process, children = started_half_way(tmp_path)
    (victim,) = [child for child in alive(children) if part in (child.name(), *child.cmdline()[:1])]
    victim.kill()
    assert process.wait(120) == 2
    log = (tmp_path / "log").read_text()
    assert re.search(r"Ray has died: [12] of 3 trials .*\n  python -m raycap.sweep spec.yaml", log)
    assert "Traceback" not in log
    assert (tmp_path / "status").read_text() == "refused\n"
    wait_until(lambda: not alive(children), 5)
    assert mlflow_statuses(tmp_path) == {"FINISHED", "KILLED"}
    check_that_it_resumes(tmp_path)


def test_an_analyst_that_dies_and_a_worker_that_is_stopped_are_restarted(tmp_path: Path) -> None:
    process, _ = started_half_way(tmp_path)
    command = psutil.Process(process.pid)
    assert kill(ANALYST, of=command) == 1
    stopped = processes(WORKER, of=command)
    for worker in stopped:
        worker.suspend()
    wait_until(lambda: not alive(stopped), 120)
    assert process.wait(240) == 0, (tmp_path / "log").read_text()
    assert mlflow_statuses(tmp_path) == {"FINISHED"}


def test_a_second_start_is_refused_and_names_the_running_process(tmp_path: Path) -> None:
    process, _ = started_half_way(tmp_path)
    second = subprocess.run(
        [sys.executable, "-m", "raycap.sweep", "spec.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert f"process {process.pid} " in second.stderr
    assert process.wait(240) == 0
