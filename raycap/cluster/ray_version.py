"""Versions of Ray that raycap supports, and those whose internals `worker_reuse` was tested with."""

import re
from importlib.metadata import version

from raycap.spec import ExecutionSpec

SUPPORTED = ((2, 56), (3, 0))
"""First supported version, and first later version that is not, as in pyproject.toml. Ray 2.56 is the first in which the
function of the workers can return a value."""
REUSE_TESTED_WITH = ((2, 60),)
"""Versions whose workers trials can take over from each other."""


def ray_version() -> tuple[int, int]:
    """Return the major and minor version of the installed Ray."""
    major, minor = map(int, re.findall(r"\d+", version("ray"))[:2])
    return major, minor


def reuses_workers(execution: ExecutionSpec) -> bool:
    """Return whether trials take over worker processes from the trials before them."""
    return execution.reuse_workers and ray_version() in REUSE_TESTED_WITH
