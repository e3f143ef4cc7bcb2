"""All workers of a trial pause after the same steps and act on the same signal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, sys, time
import torch, torch.distributed as dist
from raycap.learner.replica import WorkerContext
from raycap.learner.pauses import PauseSchedule
from raycap.learner.signals import Signal

file, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
began = time.monotonic()
poll = (lambda: Signal.PAUSE if time.monotonic() > began + 1.5 else Signal.CONTINUE) if rank == 0 else lambda: Signal.STOP
pauses = PauseSchedule(0.3, poll, WorkerContext(rank, 2, torch.device("cpu")), 0)
step, polled = 0, []
while not polled or polled[-1][2] is Signal.CONTINUE:
    step += 1
    time.sleep(0.001 if rank == 0 else 0.004)  # ranks differ in speed
    if pauses.pauses_after(step):
        actions = pauses.poll(step)
        polled.append((step, actions.save, actions.signal))
        if actions.save:
            pauses.saved()
dist.destroy_process_group()
print(json.dumps([(step, save, int(signal)) for step, save, signal in polled]))
"""


@pytest.mark.slow
def test_workers_pause_after_the_same_steps_and_follow_rank_0(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "rendezvous"), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        (first, errors), (second, _) = (worker.communicate(timeout=300) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
    assert first, errors
    assert first == second
    polled = json.loads(first)
    assert len(polled) > 3
    assert any(save for _, save, _ in polled)
    assert polled[-1][2] == 1  # PAUSE, the signal of rank 0
