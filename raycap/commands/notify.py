"""A command of the user's that is run when a sweep is over."""

import os
import subprocess
import sys

COMMAND_TIMEOUT_S = 60.0
"""How long the command may take."""
STATUSES = {0: "finished", 1: "failed", 2: "refused", 3: "budget", 130: "interrupted"}
"""How a run ended, by its exit code."""


def notify(command: str, *, sweep: str, folder: str, code: int) -> None:
    """Run a shell command that learns from RAYCAP_* variables how a sweep ended. If it fails, that is told and no more."""
    about = {
        "RAYCAP_SWEEP": sweep,
        "RAYCAP_STATUS": STATUSES[code],
        "RAYCAP_FOLDER": folder,
        "RAYCAP_EXIT_CODE": str(code),
    }
    try:
        subprocess.run(command, shell=True, check=True, env=os.environ | about, timeout=COMMAND_TIMEOUT_S)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"--notify-cmd: {error}", file=sys.stderr)
