"""What this machine can do: a verdict on each thing that a sweep needs, and what to do about it."""

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.request import urlopen

import psutil

from raycap.terminal.format import size

MIN_PYTHON = (3, 11)
RAY_SERIES = "2.60."
"""Of the releases whose internals cluster/worker_reuse.py knows."""
GB = 1e9
DISK_FAIL_BYTES, DISK_WARN_BYTES = 0.5 * GB, 5 * GB
TRIAL_BYTES = 1.4 * GB
"""Of a running trial with its processes, without its data."""
SHM_BYTES = 1 * GB
RAY_DISK_SHARE = 0.95
"""Ray refuses to work where the disk of its temporary files is fuller than this."""
PROBE_TIMEOUT_S = 5.0


class Verdict(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    to_do: str = ""
    """Empty where there is nothing to do."""


def examine(storage: str, tracking_uri: str) -> list[Check]:
    """Look at everything, in seconds; `storage` and `tracking_uri` are those that sweeps are to use. Nothing is changed."""
    looks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("cpu", _cpu),
        ("memory", _memory),
        ("ray", _ray),
        ("mlflow", lambda: _mlflow(tracking_uri)),
        ("disk", lambda: _disk(storage)),
        ("packages", _packages),
    ]
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks += look()
        except Exception as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            checks.append(
                Check(name, Verdict.FAIL, f"{type(error).__name__}: {told}", "install raycap anew: pip install -e .")
            )
    return checks


def _python() -> Iterator[Check]:
    good = sys.version_info >= MIN_PYTHON
    needed = ".".join(map(str, MIN_PYTHON))
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check(
        "python", Verdict.OK if good else Verdict.FAIL, found, "" if good else f"install Python {needed} or newer"
    )


def _torch() -> Iterator[Check]:
    from raycap.learner import hardware

    found, there = hardware.gpus(), Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))
    yield Check("torch", Verdict.OK, hardware.build())
    names = ", ".join(f"{gpu.name} ({size(gpu.total_bytes)})" for gpu in found)
    if found or not there:
        yield Check("gpus", Verdict.OK, names or "none: trials train on CPUs")
    else:
        advice = "install a CUDA build of torch that fits the driver, or see CUDA_VISIBLE_DEVICES"
        yield Check("gpus", Verdict.WARN, "there is an NVIDIA driver, but torch finds no GPU", advice)
    asked = os.environ.get("OMP_NUM_THREADS")
    told = "OMP_NUM_THREADS is not set" if asked is None else f"OMP_NUM_THREADS={asked}"
    yield Check("threads", Verdict.OK, f"{hardware.threads()} in a process ({told}); workers take cpus_per_worker each")


def _cpu() -> Iterator[Check]:
    cores, mine = (
        os.cpu_count() or 1,
        len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0,
    )
    load = os.getloadavg()[0]
    if load > cores:
        advice = "timings and estimates will be off until it calms down"
        yield Check("cpu", Verdict.WARN, f"{cores} cores, but a load of {load:.1f}", advice)
    elif 0 < mine < cores:
        advice = "Ray counts all of them: limit execution.max_concurrent_trials"
        yield Check("cpu", Verdict.WARN, f"{cores} cores, of which this process may use {mine}", advice)
    else:
        yield Check("cpu", Verdict.OK, f"{cores} cores, {cores} trials of one worker at once")


def _memory() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    found, room = f"{size(memory.available)} free of {size(memory.total)}", int(memory.available / TRIAL_BYTES)
    cores = os.cpu_count() or 1
    if room >= cores:
        yield Check("memory", Verdict.OK, found)
    else:
        verdict = Verdict.WARN if room else Verdict.FAIL
        advice = (
            f"about {size(TRIAL_BYTES)} a trial: set execution.max_concurrent_trials to {max(room, 1)}, or free some"
        )
        yield Check("memory", verdict, found, advice)
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free = shutil.disk_usage(shm).free
    if free >= SHM_BYTES:
        yield Check("/dev/shm", Verdict.OK, f"{size(free)} free")
    else:
        advice = "Ray falls back to a slow disk; in Docker give --shm-size=2g"
        yield Check("/dev/shm", Verdict.WARN, f"{size(free)} free", advice)


def _ray() -> Iterator[Check]:
    version = importlib.metadata.version("ray")
    good = version.startswith(RAY_SERIES)
    advice = "" if good else f"pip install 'ray[default,train,tune]=={RAY_SERIES}*'"
    yield Check("ray", Verdict.OK if good else Verdict.FAIL, version, advice)
    from raycap.cluster.resources import where_trials_run

    address = os.environ.get("RAY_ADDRESS")
    told = f"RAY_ADDRESS={address}: " if address else ""
    try:
        yield Check("where trials run", Verdict.OK, told + where_trials_run(os.environ))
    except OSError as error:
        advice = "start the cluster, or unset RAY_ADDRESS to run on this machine"
        yield Check("where trials run", Verdict.FAIL, f"{told}{error}", advice)


def _mlflow(uri: str) -> Iterator[Check]:
    version, told = importlib.metadata.version("mlflow"), uri
    away = "move the file away: the next run, or raycap sync, logs all that is stored in a new one"
    try:
        if uri.startswith("sqlite:///"):
            file = Path(uri.removeprefix("sqlite:///"))
            told = f"{uri}: " + _database(file)
        elif uri.startswith("http"):
            away = "start the server, or name another in tracking.uri"
            urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).close()
            told = f"{uri}: the server answers"
        else:
            told = f"{uri}: not looked at; the first run does"
        yield Check("mlflow", Verdict.OK, f"{version}; {told}")
    except PermissionError as error:
        yield Check("mlflow", Verdict.FAIL, f"{version}; {uri}: {error}", "make it writable, or change tracking.uri")
    except (OSError, sqlite3.Error) as error:
        yield Check("mlflow", Verdict.FAIL, f"{version}; {uri}: {error}", away)


def _database(file: Path) -> str:
    """The state of a sqlite database. Raises PermissionError, or sqlite3.Error where it is damaged."""
    if not file.exists():
        _check_writable(_existing(file.parent))
        return "not there yet; the first run makes it"
    _check_writable(file)
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=PROBE_TIMEOUT_S)
    try:
        (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        connection.close()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"damaged: {damage}")
    return f"sound, {size(file.stat().st_size)}"


def _disk(storage: str) -> Iterator[Check]:
    yield _storage(storage)
    place = tempfile.gettempdir()
    usage = shutil.disk_usage(place)
    full = usage.used / usage.total > RAY_DISK_SHARE
    advice = f"Ray stops where more than {RAY_DISK_SHARE:.0%} are used: free some, or set TMPDIR" if full else ""
    verdict = Verdict.WARN if full else Verdict.OK
    yield Check("temporary files", verdict, f"{place}: {size(usage.free)} of {size(usage.total)} free", advice)


def _storage(storage: str) -> Check:
    if "://" in storage:
        return Check("storage", Verdict.OK, f"{storage}: not looked at; the first run does")
    where, nearest = Path(storage).absolute(), _existing(Path(storage))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        told = "not writable" if nearest.is_dir() else f"{nearest} is no folder"
        return Check("storage", Verdict.FAIL, f"{where}: {told}", "give another folder in `storage`")
    free = shutil.disk_usage(nearest).free
    verdict = Verdict.FAIL if free < DISK_FAIL_BYTES else Verdict.WARN if free < DISK_WARN_BYTES else Verdict.OK
    advice = "" if verdict is Verdict.OK else "free some, or give a folder elsewhere in `storage`"
    return Check("storage", verdict, f"{where}: {size(free)} free", advice)


def _packages() -> Iterator[Check]:
    extras: dict[str, list[str]] = {}
    for needed in importlib.metadata.requires("raycap") or ():
        if found := re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"].*", needed):
            extras.setdefault(found[2], []).append(found[1])
    for extra, names in extras.items():
        missing = [name for name in names if not _is_installed(name)]
        advice = f"only if you need them: pip install -e '.[{extra}]'" if missing else ""
        told = f"missing: {', '.join(missing)}" if missing else "all there"
        yield Check(f"optional: {extra}", Verdict.OK, told, advice)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
