"""Fault injection for sweeps (killed processes, full disks), and functions that read what the sweeps have stored."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from raycap.results import Evaluation, TrialResult
from raycap.storage import checkpoint_steps
from raycap.storage.checksum import verify_checksum

WORKER, DRIVER, ANALYST = "RayTrainWorker", "ImplicitFunc", "Analyst"
"""Parts of Ray's process titles: the process that trains, the driver of a trial, and the analyst."""


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait until the condition holds; fail after the given time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)


def processes(kind: str, *, of: psutil.Process | None = None) -> list[psutil.Process]:
    """Return Ray's processes of a kind below the given process, by default this one."""
    found = []
    for child in (of or psutil.Process()).children(recursive=True):
        try:
            title = child.cmdline()[:1]
        except psutil.Error:
            continue
        if title and title[0].startswith("ray::") and kind in title[0]:
            found.append(child)
    return found


def kill(kind: str, *, of: psutil.Process | None = None) -> int:
    """Kill all processes of a kind with SIGKILL, and return their number (one per running trial)."""
    victims = processes(kind, of=of)
    for victim in victims:
        victim.kill()
    return len(victims)


def last_step(storage: Path) -> int:
    """Return the step of the latest checkpoint of any trial in a storage folder; 0 if there is none."""
    steps = [checkpoint_steps([path.name]) for path in storage.glob("trials/*/checkpoint-*.pt")]
    return max((steps_of_trial[-1] for steps_of_trial in steps if steps_of_trial), default=0)


def results_in(storage: Path) -> dict[str, TrialResult]:
    """Return all results in a storage folder by trial_id, and verify their checksums."""
    return {
        path.parent.name: TrialResult.model_validate_json(verify_checksum(path.read_bytes()))
        for path in storage.glob("trials/*/result.json")
    }


def without_timing(result: TrialResult) -> list[Evaluation]:
    """Return the evaluations of a trial without their times; the rest must be bit-equal between runs."""
    return [evaluation.model_copy(update={"train_seconds": 0.0}) for evaluation in result.evaluations]


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a file system of the given size, in KiB, at a folder. Skips the test if mounting is not permitted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, kib: int) -> None:
    """Change the size, in KiB, of a disk made by `small_disk`."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
