"""Checks of this machine and its environment for `raycap doctor`, each with a verdict and advice."""

import importlib.metadata
import ipaddress
import os
import platform
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from raycap.errors import CannotRunError
from raycap.host.machine import available_memory, cpu_limit, memory_limit
from raycap.host.preflight import Check, CheckVerdict, preflight_checks
from raycap.spec.locations import LocationError, absolute_tracking_uri, database_path, local_path, refuse_shell_syntax
from raycap.spec.uris import NO_CREDENTIALS, has_password, without_password
from raycap.terminal.format import size

MIN_PYTHON = (3, 11)
GB = 1e9
DISK_FAIL_BYTES, DISK_WARN_BYTES = 0.5 * GB, 5 * GB
TRIAL_BYTES = 1.4 * GB
"""Memory of a running trial with its processes, without its data."""
SHM_BYTES = 1 * GB
PROBE_TIMEOUT_S = 5.0
MLFLOW_SERVER = re.compile(r"\bmlflow\.server\b(?!\.auth)")
"""Part of the command line of MLflow's server, unless it requires a password."""


def examine(storage: str, tracking_uri: str) -> list[Check]:
    """Run all checks, which takes seconds and changes nothing.

    `storage` and `tracking_uri` are those that sweeps will use.
    """
    checkers: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("cpu", _cpu),
        ("memory", _memory),
        ("environment", lambda: iter(preflight_checks())),
        ("ray", _ray),
        ("other users", _other_users),
        ("open services", _open_services),
        ("mlflow", lambda: _mlflow(tracking_uri)),
        ("disk", lambda: _disk(storage)),
        ("packages", _packages),
    ]
    checks: list[Check] = []
    for name, checker in checkers:
        try:
            checks += checker()
        except Exception as error:  # a broken installation can raise any error; the other checks still run
            message = (str(error) or type(error).__name__).splitlines()[0]
            checks.append(
                Check(
                    name, CheckVerdict.FAIL, f"{type(error).__name__}: {message}", "reinstall raycap: pip install -e ."
                )
            )
    return checks


def _python() -> Iterator[Check]:
    good = sys.version_info >= MIN_PYTHON
    needed = ".".join(map(str, MIN_PYTHON))
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check(
        "python",
        CheckVerdict.OK if good else CheckVerdict.FAIL,
        found,
        "" if good else f"install Python {needed} or newer",
    )


def _torch() -> Iterator[Check]:
    from raycap.learner import hardware

    gpus = hardware.gpus()
    has_driver = Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))
    yield Check("torch", CheckVerdict.OK, hardware.torch_build())
    names = ", ".join(f"{gpu.name} ({size(gpu.total_bytes)})" for gpu in gpus)
    if gpus or not has_driver:
        yield Check("gpus", CheckVerdict.OK, names or "none: trials train on CPUs")
    else:
        advice = "install a CUDA build of torch that matches the driver, or check CUDA_VISIBLE_DEVICES"
        yield Check("gpus", CheckVerdict.WARN, "there is an NVIDIA driver, but torch finds no GPU", advice)
    setting = os.environ.get("OMP_NUM_THREADS")
    origin = "OMP_NUM_THREADS is not set" if setting is None else f"OMP_NUM_THREADS={setting}"
    yield Check(
        "threads", CheckVerdict.OK, f"{hardware.threads()} per process ({origin}); workers use cpus_per_worker each"
    )


def _cpu() -> Iterator[Check]:
    cores = os.cpu_count() or 1
    usable = max(1, int(cpu_limit()))
    load = os.getloadavg()[0]
    if load > cores:
        advice = "timings and estimates will be too long while other programs use the cores"
        yield Check("cpu", CheckVerdict.WARN, f"{cores} cores, but a load of {load:.1f}", advice)
    else:
        limited = f", of which this process may use {usable}" if usable < cores else ""
        yield Check("cpu", CheckVerdict.OK, f"{cores} cores{limited}: {usable} trials of one worker at the same time")


def _memory() -> Iterator[Check]:
    available = available_memory()
    found, num_trials = f"{size(available)} free of {size(memory_limit())}", int(available / TRIAL_BYTES)
    cores = int(cpu_limit())
    if num_trials >= cores:
        yield Check("memory", CheckVerdict.OK, found)
    else:
        verdict = CheckVerdict.WARN if num_trials else CheckVerdict.FAIL
        advice = (
            f"a trial needs about {size(TRIAL_BYTES)}: set execution.max_concurrent_trials to {max(num_trials, 1)}, "
            "or free memory"
        )
        yield Check("memory", verdict, found, advice)
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free = shutil.disk_usage(shm).free
    if free >= SHM_BYTES:
        yield Check("/dev/shm", CheckVerdict.OK, f"{size(free)} free")
    else:
        advice = "Ray will use a slow disk instead; in Docker, set --shm-size=2g"
        yield Check("/dev/shm", CheckVerdict.WARN, f"{size(free)} free", advice)


def _ray() -> Iterator[Check]:
    from raycap.cluster.address import LOCAL, cluster_address, requires_token
    from raycap.cluster.private_folder import parent_folder
    from raycap.cluster.ray_version import REUSE_TESTED_WITH, SUPPORTED, ray_version

    version, (first, after) = importlib.metadata.version("ray"), SUPPORTED
    if first <= ray_version() < after:
        tested = ray_version() in REUSE_TESTED_WITH
        found = version if tested else f"{version}, with which every trial starts new processes"
        yield Check("ray", CheckVerdict.OK, found)
    else:
        advice = f"pip install 'ray[default,train,tune]>={first[0]}.{first[1]},<{after[0]}'"
        yield Check("ray", CheckVerdict.FAIL, version, advice)

    try:
        address = cluster_address(os.environ)
        if address == LOCAL:
            found = f"this machine: a run starts Ray of its own, with its temporary files in {parent_folder()}"
            yield Check("where trials run", CheckVerdict.OK, found)
        elif requires_token(address):
            found = f"the cluster at {address}, which answers and requires a token"
            yield Check("where trials run", CheckVerdict.OK, found)
        else:
            advice = "start it with RAY_AUTH_MODE=token, or let only trusted users reach it"
            found = (
                f"the cluster at {address}, which answers without a token: anyone who can connect can run code there"
            )
            yield Check("where trials run", CheckVerdict.WARN, found, advice)
    except CannotRunError as error:
        yield Check("where trials run", CheckVerdict.FAIL, error.problem, error.remedy)


def _other_users() -> Iterator[Check]:
    found = (
        "a run's Ray listens on 127.0.0.1 and requires its token; not protected: MLflow's runs while `raycap ui` serves "
        "them, and the connections between several workers of one trial"
    )
    yield Check("other users", CheckVerdict.OK, found)


def _open_services() -> Iterator[Check]:
    """Find Ray's control stores and MLflow's servers of this user that other machines reach without a token or password."""
    from raycap.cluster.address import requires_token

    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        is_ray = process.info["name"] == "gcs_server"
        if not is_ray and not MLFLOW_SERVER.search(" ".join(process.info["cmdline"] or ())):
            continue
        with suppress(psutil.Error, CannotRunError):  # the process has ended, or belongs to another user
            addresses = [one.laddr for one in process.net_connections("tcp") if _is_open(one)]
            found += [
                f"{'Ray' if is_ray else 'MLflow'} at port {address.port}"
                for address in addresses
                if not (is_ray and requires_token(f"localhost:{address.port}"))
            ]
    if found:
        advice = "bind it to 127.0.0.1, or require a token or password; see docs/security.md"
        yield Check(
            "open services", CheckVerdict.WARN, f"other machines can reach {', '.join(sorted(set(found)))}", advice
        )
    else:
        yield Check(
            "open services", CheckVerdict.OK, "none: no Ray or MLflow of yours that other machines reach freely"
        )


def _is_open(connection: Any) -> bool:
    """Whether a socket listens for connections from other machines."""
    return connection.status == psutil.CONN_LISTEN and not ipaddress.ip_address(connection.laddr.ip).is_loopback


def _mlflow(uri: str) -> Iterator[Check]:
    version = importlib.metadata.version("mlflow")
    advice = "move the file away: the next run, or raycap sync, logs all stored results to a new one"
    try:
        refuse_shell_syntax(uri)
        uri = absolute_tracking_uri(uri)
        file = database_path(uri)
        if file is not None:
            state = _database(Path(file))
        elif uri.startswith("http"):
            advice = "start the server, or set another one in tracking.uri"
            urlopen(f"{uri}/health", timeout=PROBE_TIMEOUT_S).close()
            state = "the server answers"
        else:
            state = "not checked; the first run connects to it"
        yield Check("mlflow", CheckVerdict.OK, f"{version}; {uri}: {state}")
    except LocationError as error:
        yield Check("mlflow", CheckVerdict.FAIL, f"{version}; {error}", "correct tracking.uri, or MLFLOW_TRACKING_URI")
    except PermissionError as error:
        yield Check(
            "mlflow", CheckVerdict.FAIL, f"{version}; {uri}: {error}", "make it writable, or change tracking.uri"
        )
    except (OSError, sqlite3.Error) as error:
        yield Check("mlflow", CheckVerdict.FAIL, f"{version}; {uri}: {error}", advice)


def _database(file: Path) -> str:
    """Return the state of a sqlite database. Raises PermissionError, or sqlite3.Error if the database is damaged."""
    if not file.exists():
        _check_writable(_existing(file.parent))
        return "does not exist yet; the first run creates it"
    _check_writable(file)
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=PROBE_TIMEOUT_S)
    try:
        (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        connection.close()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"damaged: {damage}")
    return f"intact, {size(file.stat().st_size)}"


def _disk(storage: str) -> Iterator[Check]:
    yield _storage(storage)


def _storage(storage: str) -> Check:
    if has_password(storage):
        return Check("storage", CheckVerdict.FAIL, without_password(storage), f"the URI {NO_CREDENTIALS}")
    try:
        refuse_shell_syntax(storage)
        folder = local_path(storage)
    except LocationError as error:
        return Check("storage", CheckVerdict.FAIL, str(error), "correct `storage`")
    if folder is None:
        return Check("storage", CheckVerdict.OK, f"{storage}: not checked; the first run connects to it")
    path, nearest = Path(folder), _existing(Path(folder))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        problem = "not writable" if nearest.is_dir() else f"{nearest} is not a folder"
        return Check("storage", CheckVerdict.FAIL, f"{path}: {problem}", "set `storage` to another folder")
    free = shutil.disk_usage(nearest).free
    verdict = (
        CheckVerdict.FAIL
        if free < DISK_FAIL_BYTES
        else CheckVerdict.WARN
        if free < DISK_WARN_BYTES
        else CheckVerdict.OK
    )
    advice = "" if verdict is CheckVerdict.OK else "free space, or set `storage` to a folder on another disk"
    return Check("storage", verdict, f"{path}: {size(free)} free", advice)


def _packages() -> Iterator[Check]:
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("raycap") or ():
        if match := re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"].*", requirement):
            extras.setdefault(match[2], []).append(match[1])
    for extra, names in extras.items():
        missing = [name for name in names if not _is_installed(name)]
        advice = f"only if you need them: pip install -e '.[{extra}]'" if missing else ""
        found = f"missing: {', '.join(missing)}" if missing else "all installed"
        yield Check(f"optional: {extra}", CheckVerdict.OK, found, advice)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _existing(path: Path) -> Path:
    """Return the path if it exists, otherwise its nearest existing parent."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
