"""Workers that hang are killed, and those that work are not."""

import subprocess
import sys

import pytest

WORKER = """\
import time
from raycap.cluster.stall import StallGuard
with StallGuard(min_idle_s=2.0) as guard:
    {body}
"""


@pytest.mark.parametrize(
    ("body", "is_killed"),
    [
        pytest.param("guard.record_step(); time.sleep(60)", True, id="hangs after a step"),
        pytest.param("time.sleep(60)", True, id="hangs before the first step"),
        pytest.param(
            "[(guard.record_step(), time.sleep(0.2)) for _ in range(20)]",
            False,
            id="waits between steps",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "end = time.monotonic() + 6\n    while time.monotonic() < end: pass",
            False,
            id="computes long",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "guard.record_step(); time.sleep(0.3); guard.record_step(); time.sleep(4)", False, id="slow steps"
        ),
    ],
)
def test_a_worker_that_hangs_is_killed(body: str, is_killed: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER.format(body=body)], capture_output=True, timeout=50, check=False
    )
    assert done.returncode == (-9 if is_killed else 0), done.stderr


def test_a_worker_that_was_stopped_for_long_continues() -> None:
    body = "print('on', flush=True)\n    for _ in range(20): guard.record_step(); time.sleep(0.1)"
    worker = subprocess.Popen([sys.executable, "-c", WORKER.format(body=body)], stdout=subprocess.PIPE)
    assert worker.stdout
    worker.stdout.readline()
    worker.send_signal(19)  # SIGSTOP
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(6)
    worker.send_signal(18)  # SIGCONT
    assert worker.wait(50) == 0
