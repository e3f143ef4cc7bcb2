"""A stack of four trials whose worker, driver or command is killed at random moments ends bit-equal.

RAYCAP_KILLS sets the number of kills and RAYCAP_SEED the moments.
"""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from raycap import pipeline
from raycap.learner.trial import run_trials
from tests.support.faults import DRIVER, WORKER, kill, last_step, results_in, wait_until, without_timing

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_KILLS = int(os.environ.get("RAYCAP_KILLS", "6"))
SEED = int(os.environ.get("RAYCAP_SEED", "0"))
COMMAND = "command"
SPEC = """\
name: campaign
trial:
  profiles: {num_profiles: 200, num_relations: 4, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 10, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 4000}, batch_size: 64, num_evaluations: 8, optimizer: {lr: 0.02, warmup_steps: 50}}
grid: {training.seed: [0, 1, 2, 3]}
execution: {replicas: 4, checkpoint_every_s: 0.2, max_failures: 1000}
"""


def start(folder: Path) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "raycap.sweep", "spec.yaml"], cwd=folder, env=environment, start_new_session=True,
        stdout=(folder / "log").open("a"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_stack_killed_at_random_moments_ends_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    record, _ = pipeline.prepare("spec.yaml", ())
    undisturbed = run_trials(tuple(trial.spec for trial in record.trials), source_commit="test")
    moments, storage, killed = random.Random(SEED), tmp_path / "runs", []
    process = start(tmp_path)
    while len(killed) < NUM_KILLS:
        begun_at = last_step(storage)
        wait_until(lambda step=begun_at, process=process: process.poll() is not None or last_step(storage) > step, 240)
        if process.poll() is not None:
            break
        if killed:
            print(f"{killed[-1][0]} at step {killed[-1][1]}: trained on {time.monotonic() - killed[-1][2]:.1f} s later")
        time.sleep(moments.uniform(0.0, 2.0))
        victim = moments.choice([WORKER, DRIVER, COMMAND])
        step, command = last_step(storage), psutil.Process(process.pid)
        if victim == COMMAND:
            for child in [command, *command.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
        elif not kill(victim, of=command):
            continue
        killed.append((victim, step, time.monotonic()))
        if victim == COMMAND:
            process = start(tmp_path)
    assert process.wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    results = results_in(storage)
    print(f"{len(killed)} kills; {len(results)} results")
    assert killed
    for trial, expected in zip(record.trials, undisturbed, strict=True):
        assert without_timing(results[trial.trial_id]) == without_timing(expected.result), trial.label
    assert not list(storage.rglob("checkpoint-*"))
