"""Signals before trials start and after the first one: exit codes, and the notification, without Ray."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.faults import wait_until

SPEC = """\
name: early
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 30}, batch_size: 32, num_evaluations: 1}
"""
SLOW_TO_STOP = """\
import time
from raycap.commands.interruption import interruptible
with interruptible(at_kill=lambda: print("killed", flush=True)):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        time.sleep(60)
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_a_second_signal_ends_the_process_after_the_notification() -> None:
    processes = {
        number: subprocess.Popen(
            [sys.executable, "-c", SLOW_TO_STOP], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for number in SIGNALS
    }
    for expected in ("ready", "interrupted", "killed"):
        for number, process in processes.items():
            assert process.stdout
            assert process.stdout.readline().strip() == expected, number
            process.send_signal(number)
    for number, process in processes.items():
        assert process.wait(50) == 130, number
        assert process.stdout.read() == ""


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_before_the_trials_start_is_an_interruption(tmp_path: Path, number: signal.Signals) -> None:
    """The command connects to a cluster that does not answer, while the signal arrives."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    with socket.socket() as silent, (tmp_path / "log").open("w") as log:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "raycap.sweep", "spec.yaml", "--notify-cmd", "echo $RAYCAP_STATUS > status"],
            cwd=tmp_path, stdout=log, stderr=log,
            env=os.environ | {"RAY_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"},
        )  # fmt: skip
        wait_until(lambda: "1 trials" in (tmp_path / "log").read_text(), 60)
        process.send_signal(number)
        assert process.wait(50) == 130, (tmp_path / "log").read_text()
    assert (tmp_path / "status").read_text() == "interrupted\n"
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_ctrl_c_while_importing_leaves_no_traceback(tmp_path: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "raycap", "plan", "missing.yaml"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    time.sleep(seconds)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=50)
    assert process.returncode in (
        130,
        2,
        -signal.SIGINT,
    )  # 2 if the file was missed first, -2 before Python has started
    assert "Traceback" not in output or process.returncode == -signal.SIGINT
