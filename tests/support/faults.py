"""Fault injection for sweeps (killing processes by PID, filling disks), and reading what they leave on disk."""

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

WORKER, DRIVER, ANALYST = "RayTrainWorker", "ImplicitFunc", "AnalystActor"
"""Parts of the titles that Ray gives to a training worker, to the driver of a trial, and to the analyst."""


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {seconds:g} s"
        time.sleep(0.05)


def processes(kind: str, *, of: psutil.Process | None = None) -> list[psutil.Process]:
    """Ray processes of a kind among the descendants of a process, by default of this one."""
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
    """Send SIGKILL to all processes of a kind; returns their number."""
    victims = processes(kind, of=of)
    for victim in victims:
        victim.kill()
    return len(victims)


def last_step(storage: Path) -> int:
    """The step of the latest checkpoint of any trial in a storage folder; 0 if there is none."""
    steps = [checkpoint_steps([path.name]) for path in storage.glob("trials/*/checkpoint-*.pt")]
    return max((of_trial[-1] for of_trial in steps if of_trial), default=0)


def results_in(storage: Path) -> dict[str, TrialResult]:
    """All results in a storage folder by trial_id. Verifies their checksums."""
    return {
        path.parent.name: TrialResult.model_validate_json(verify_checksum(path.read_bytes()))
        for path in storage.glob("trials/*/result.json")
    }


def timeless(result: TrialResult) -> list[Evaluation]:
    """The evaluations with their training times set to zero: the part of a result that must be bit-equal."""
    return [evaluation.model_copy(update={"train_seconds": 0.0}) for evaluation in result.evaluations]


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a tmpfs of `kib` KiB at a folder. Skips the test where the user may not mount file systems."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, kib: int) -> None:
    """Change the size of a mounted small disk."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
