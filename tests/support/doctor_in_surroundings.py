"""Runs `raycap doctor` in several broken surroundings, each in a process of its own, and prints the findings as JSON.

All packages are imported once, and every process is a fork, so that a case takes a fraction of a second.

Usage: doctor_in_surroundings.py FOLDER
"""

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from raycap.cli import app
from raycap.host import preflight

NOBODY = 65534
UNKNOWN_USER = 12345


def limit(number: int, value: int) -> None:
    resource.setrlimit(number, (value, value))


def become(user: int) -> None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def home(path: str | None) -> None:
    os.environ.pop("HOME", None)
    if path is not None:
        os.environ["HOME"] = path
    preflight.provide_home()  # as raycap/commands/entry.py does at the start of a command


def no_entry_and_no_home() -> None:
    become(UNKNOWN_USER)
    home(None)


def few_processes() -> None:
    become(NOBODY)
    limit(resource.RLIMIT_NPROC, 100)


def temporary_folder(path: str) -> None:
    os.environ["TMPDIR"] = path
    tempfile.tempdir = None


def cases(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the changes that break the surroundings of this process; FOLDER has been prepared by the test."""
    found: dict[str, Callable[[], object]] = {
        "home missing": lambda: home(f"{folder}/no-home"),
        "TMPDIR missing": lambda: temporary_folder(f"{folder}/no-folder"),
        "TMPDIR too long": lambda: os.environ.update(RAY_TMPDIR=f"{folder}/{'x' * 60}"),
        "few open files": lambda: limit(resource.RLIMIT_NOFILE, 64),
        "small files": lambda: limit(resource.RLIMIT_FSIZE, 10**6),
        "little address space": lambda: limit(resource.RLIMIT_AS, 15 * 10**9),
        "no cluster": lambda: os.environ.update(RAY_ADDRESS="127.0.0.1:9"),
        "storage below a file": lambda: os.chdir(folder / "below"),
        "damaged database": lambda: os.chdir(folder / "damaged"),
    }
    if os.getuid() == 0:
        found |= {"user without entry and home": no_entry_and_no_home, "few processes": few_processes}
    if (folder / "full").is_dir():
        found |= {
            "full disk": lambda: temporary_folder(f"{folder}/full"),
            "no inodes": lambda: temporary_folder(f"{folder}/inodes"),
        }
    return found


def examine(name: str) -> None:
    """Run the command and print what it found."""
    done = CliRunner().invoke(app, ["doctor", "--json"])
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    message = json.dumps({"case": name, "code": done.exit_code, "checks": json.loads(done.output)})
    os.write(1, f"{message}\n".encode())


def main() -> None:
    folder = Path(sys.argv[1])
    os.chdir(folder / "work")
    examine("nothing")  # imports everything, before the processes fork: another user may not be able to read it
    for name, change in cases(folder).items():
        if (child := os.fork()) == 0:
            try:
                change()
                examine(name)
            except Exception as error:
                print(name, repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
