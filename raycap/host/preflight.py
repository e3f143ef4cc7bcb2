"""Checks of the user's folders and limits, which `raycap doctor` reports and `raycap run` makes before it starts.

If the home folder is missing or cannot be written, caches are redirected to a temporary folder.
"""

import atexit
import math
import os
import pwd
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from raycap.errors import CannotRunError
from raycap.host.machine import memory_limit

HOME_PREFIX = "raycap-home-"
MIN_FREE_INODES, MIN_FREE_BYTES = 1000, 50 * 10**6
RAY_DISK_SHARE = 0.95
"""Ray stops creating objects if more than this share of the disk with its temporary files is used."""
MIN_OPEN_FILES, MIN_PROCESSES, MIN_ADDRESS_BYTES = 256, 1000, 16 * 10**9
"""Lowest limits with which Ray starts and one trial runs. Each of Ray's processes reserves up to 9 GB of address space, most
of which it never uses; together they have about 800 threads, which count as processes."""
SHARE_OF_OBJECT_STORE = 0.3
"""Share of the memory that Ray reserves for its object store, as one file."""


class CheckVerdict(StrEnum):
    """CheckVerdict of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    verdict: CheckVerdict
    found: str
    to_do: str = ""
    """Advice; empty if there is none."""


def preflight_checks() -> list[Check]:
    """Check the home folder, the temporary folder, and the limits of the shell."""
    return [_home(), _temporary_files(), *_limits()]


def refuse_failed_preflight() -> None:
    """Raise CannotRunError with all failures of `preflight_checks`."""
    failures = [check for check in preflight_checks() if check.verdict is CheckVerdict.FAIL]
    if failures:
        raise CannotRunError("; ".join(f"{check.name}: {check.found}; {check.to_do}" for check in failures))


def provide_home() -> None:
    """Set a user name and folders for caches in the environment of this process if the user has none.

    Matplotlib, Hugging Face's libraries and torch create folders in the user's home when they are imported. If the home
    folder cannot be written, they are given a temporary folder, which is removed at the end of the process.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # in a container with an arbitrary user id, where getpass.getuser() would raise an error
        os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")
    if _home_problem() is None:
        return
    folder = tempfile.mkdtemp(prefix=HOME_PREFIX)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    variables = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "MPLCONFIGDIR", "TRITON_HOME")
    for variable in variables if os.environ.get("HOME") else ("HOME", *variables):
        if not os.environ.get(variable):
            os.environ[variable] = folder


def _home_problem() -> str | None:
    """Return why the home folder cannot be used; None if it can."""
    home = os.path.expanduser("~")  # "~" if there is neither HOME nor an entry in the list of users
    if not os.path.isabs(home) or Path(home).name.startswith(HOME_PREFIX):
        return "there is no home folder"
    if not os.path.isdir(home):
        return f"{home} does not exist"
    return None if os.access(home, os.W_OK | os.X_OK) else f"{home} cannot be written"


def _home() -> Check:
    problem = _home_problem()
    if problem is None:
        return Check("home", CheckVerdict.OK, os.path.expanduser("~"))
    advice = "set HOME to a folder that you can write, to keep downloads and caches from one command to the next"
    return Check("home", CheckVerdict.WARN, f"{problem}: caches go to a temporary folder", advice)


def _temporary_files() -> Check:
    name, advice = "temporary files", "set TMPDIR to a folder that you can write, on a disk with space"
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # neither TMPDIR nor /tmp, /var/tmp and the working directory can be written
        return Check(
            name, CheckVerdict.FAIL, "no folder for temporary files can be written, or its disk is full", advice
        )
    disk, usage = os.statvfs(folder), shutil.disk_usage(folder)
    found = f"{folder}: {usage.free / 1e9:.3g} of {usage.total / 1e9:.3g} GB free"
    if disk.f_files and disk.f_favail < MIN_FREE_INODES:
        return Check(name, CheckVerdict.FAIL, f"{folder}: room for only {disk.f_favail} more files (inodes)", advice)
    if usage.free < MIN_FREE_BYTES:
        return Check(name, CheckVerdict.FAIL, found, advice)
    if usage.used / usage.total > RAY_DISK_SHARE:
        return Check(name, CheckVerdict.WARN, found, f"Ray stops if more than {RAY_DISK_SHARE:.0%} are used: {advice}")
    asked = os.environ.get("TMPDIR")
    if asked and os.path.realpath(asked) != os.path.realpath(folder):
        return Check(name, CheckVerdict.WARN, f"{found}; TMPDIR={asked} cannot be written", advice)
    return Check(name, CheckVerdict.OK, found)


def _limits() -> Iterator[Check]:
    """Compare the limits of this process, which its children inherit, with what Ray and one trial need."""
    needs = [
        ("open files", "ulimit -n", resource.RLIMIT_NOFILE, MIN_OPEN_FILES, 1),
        ("address space", "ulimit -v", resource.RLIMIT_AS, MIN_ADDRESS_BYTES, 1024),
        ("file size", "ulimit -f", resource.RLIMIT_FSIZE, int(SHARE_OF_OBJECT_STORE * memory_limit()), 1024),
    ]
    if os.getuid() != 0:  # the limit does not apply to root
        needs.append(("processes", "ulimit -u", resource.RLIMIT_NPROC, MIN_PROCESSES, 1))
    for name, command, number, least, unit in needs:
        soft, hard = (
            math.inf if limit == resource.RLIM_INFINITY else float(limit) for limit in resource.getrlimit(number)
        )
        unit_name = " KiB" if unit > 1 else ""
        if soft >= least:
            found = "unlimited" if soft == math.inf else f"at most {soft / unit:,.0f}{unit_name}"
            yield Check(name, CheckVerdict.OK, f"{found} ({command})")
            continue
        to_do = f"run `{command} {least // unit}` in this shell, then run raycap again"
        if hard < least:
            to_do = f"ask the administrator for a limit of at least {least // unit} ({command})"
        yield Check(
            name, CheckVerdict.FAIL, f"at most {soft / unit:,.0f}{unit_name} ({command}), too low for Ray", to_do
        )
