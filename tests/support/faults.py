"""Doing harm to sweeps on purpose, processes killed by pid, disks filled; and looking at what is left."""

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
"""What Ray calls the processes of a trial: the one that trains, and the one that steers it."""


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes(kind: str, *, of: psutil.Process | None = None) -> list[psutil.Process]:
    """Ray's processes of a kind that were started by this one, or another."""
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
    """Kill the busy process of a kind with SIGKILL; several where several trials run. Returns how many."""
    victims = processes(kind, of=of)
    for victim in victims:
        victim.kill()
    return len(victims)


def last_step(storage: Path) -> int:
    """The step of the latest checkpoint of any trial in a storage folder; 0 if there is none."""
    steps = [checkpoint_steps([path.name]) for path in storage.glob("trials/*/checkpoint-*.pt")]
    return max((mine[-1] for mine in steps if mine), default=0)


def results_in(storage: Path) -> dict[str, TrialResult]:
    """All results in a storage folder, by trial_id; their seals are checked."""
    return {
        path.parent.name: TrialResult.model_validate_json(verify_checksum(path.read_bytes()))
        for path in storage.glob("trials/*/result.json")
    }


def timeless(result: TrialResult) -> list[Evaluation]:
    """What must be bit-equal: everything but how long it took."""
    return [evaluation.model_copy(update={"train_seconds": 0.0}) for evaluation in result.evaluations]


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A disk of so many KiB at a folder. Skips the test where nothing may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, kib: int) -> None:
    """Make a small disk larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
