"""Execution of the user's notification command at the end of a run."""

import subprocess
import sys
from collections.abc import Mapping

COMMAND_TIMEOUT_S = 60.0
"""Maximum run time of the command."""
STATUSES = {0: "finished", 1: "failed", 2: "refused", 3: "budget", 130: "interrupted"}
"""Values of RAYCAP_STATUS by the exit code of the run."""


def notify(command: str, environment: Mapping[str, str], *, sweep: str, folder: str, code: int) -> None:
    """Run a shell command with the outcome of a sweep in RAYCAP_* environment variables, added to `environment`.

    If the command fails, the error is printed and otherwise ignored.
    """
    variables = {
        "RAYCAP_SWEEP": sweep,
        "RAYCAP_STATUS": STATUSES[code],
        "RAYCAP_FOLDER": folder,
        "RAYCAP_EXIT_CODE": str(code),
    }
    try:
        subprocess.run(command, shell=True, check=True, env={**environment, **variables}, timeout=COMMAND_TIMEOUT_S)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"--notify-cmd: {error}", file=sys.stderr)
