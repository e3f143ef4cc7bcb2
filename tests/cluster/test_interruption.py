"""Killed outright in the middle, a sweep goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raycap.storage import checkpoint_steps

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
name: killed
trial:
  profiles: {num_profiles: 500, num_relations: 4, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 16, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 5000}, batch_size: 256, num_evaluations: 40, optimizer: {lr: 0.01}}
grid:
  training.length.steps: [50, 2000, 5000]  # the longest are begun first: one has ended while another runs
execution: {checkpoint_every_steps: 200}
"""


def start(folder: Path) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "raycap.sweep", "spec.yaml"], cwd=folder, env=environment, start_new_session=True,
        stdout=(folder / "log").open("a"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_until(condition: object, seconds: float) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.2)


def trains(process: psutil.Process) -> bool:
    """Whether a process still runs and is one of a trial's."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(
        part in title
        for part in ("RayTrainWorker", "TrainController", "ImplicitFunc", "SynchronizationActor", "Analyst")
    )


def half_way(folder: Path) -> bool:
    finished = list(folder.glob("runs/trials/*/result.json"))
    running = [p.parent for p in folder.glob("runs/trials/*/checkpoint-*") if not (p.parent / "result.json").exists()]
    return len(finished) >= 1 and any(
        checkpoint_steps([p.name for p in trial.iterdir()])[0] >= 200 for trial in running
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    process = start(tmp_path)
    children = []

    def note_children_half_way() -> bool:
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return half_way(tmp_path)

    wait_until(note_children_half_way, 180)
    assert any(map(trains, children))
    process.send_signal(number)
    code = process.wait(60)
    assert code == (130 if number is signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: not any(map(trains, children)), 30)  # no orphans but Ray's idle agents
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/trials/*/result.json")}
    assert stamps

    (tmp_path / "log").rename(tmp_path / "first-log")
    assert start(tmp_path).wait(240) == 0
    log = (tmp_path / "log").read_text()
    assert "resumable" in log
    assert " 0.1 exposures" not in "".join(
        line for line in log.splitlines() if "steps=5000: " in line
    )  # not from scratch
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    summary = json.loads((tmp_path / "runs" / "killed" / "summary.json").read_text())
    assert [trial["state"] for trial in summary["trials"]] == ["finished"] * 3
    for path in tmp_path.glob("runs/trials/*/result.json"):
        steps = [e["step"] for e in json.loads(path.read_text())["evaluations"]]
        assert steps == sorted(set(steps))
