"""A private temporary folder for the files, sockets and logs of one run, which is removed when the run ends."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raycap.errors import CannotRunError

PREFIX = "raycap-run-"
BASE_VARIABLE = "RAY_TMPDIR"
"""Environment variable with the parent folder. Ray itself uses it in the same way."""
MAX_SOCKET_BYTES = 103 if os.uname().sysname == "Darwin" else 107
"""Length that the operating system allows for the path of a socket."""
RAY_FOLDER = "ray"
"""Ray makes its temporary folder accessible to all users, so it gets a folder inside the private one."""
SOCKET_BYTES = len(f"/{RAY_FOLDER}/session_2000-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
"""Length of the longest path of a socket in Ray's temporary folder."""
MAX_BASE_BYTES = MAX_SOCKET_BYTES - SOCKET_BYTES - len(f"/{PREFIX}") - 8  # tempfile appends 8 random characters
REMOVAL_TIMEOUT_S = 3.0
MIN_ORPHAN_AGE_S = 60.0
"""Age from which a folder without a lock is an orphan; a younger one may belong to a run that has yet to lock it."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder that only this user can access, and remove it at the end of the context.

    The folder is locked as long as this process lives. Folders of earlier runs of this user that were killed, recognised by
    their missing lock, are removed first.

    Raises:
        CannotRunError: See `parent_folder`.
    """
    base = parent_folder()
    _remove_orphans(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def parent_folder() -> Path:
    """Return the parent of private folders: RAY_TMPDIR if it is set, else the system's temporary folder, else /tmp.

    Raises:
        CannotRunError: None of these is a folder that can be written and whose path is short enough for Ray's sockets.
    """
    chosen = os.environ.get(BASE_VARIABLE)
    candidates = [Path(chosen)] if chosen else [Path(tempfile.gettempdir()), Path("/tmp")]
    problems = []
    for candidate in candidates:
        base = candidate.absolute()
        if (length := len(os.fsencode(base))) > MAX_BASE_BYTES:
            problems.append(f"the path {base} has {length} bytes, and Ray's sockets allow at most {MAX_BASE_BYTES}")
        elif not os.access(base, os.W_OK | os.X_OK):
            problems.append(f"{base} {'cannot be written' if base.is_dir() else 'is not a folder'}")
        else:
            return base
    raise CannotRunError(
        f"no folder can hold Ray's temporary files: {', and '.join(problems)}",
        f"set {BASE_VARIABLE} to a folder that you can write, with a path of at most {MAX_BASE_BYTES} bytes",
    )


def _remove(folder: Path) -> None:
    """Remove a folder, with retries, because processes that are just ending may still write into it."""
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _remove_orphans(base: Path) -> None:
    """Remove the folders of this user's runs that were killed."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # a file, a link, a folder of another user, or one that is removed at the same time
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(opened)
                if found.st_uid != os.getuid() or abs(time.time() - found.st_mtime) < MIN_ORPHAN_AGE_S:
                    continue
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError if the run is alive
                _remove(folder)
            finally:
                os.close(opened)
