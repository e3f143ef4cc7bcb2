"""Memory and CPUs that this process may use: those of the machine, or less if a container or Slurm limits them."""

import os
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
"""File that lists the control groups of this process."""


def memory_limit() -> float:
    """Return the memory in bytes that this process may use: that of the machine, or the limit of its control group."""
    limits = [psutil.virtual_memory().total, *(limit for limit, _ in _memory_of_groups())]
    return float(min(limits))


def available_memory() -> float:
    """Return the memory in bytes that this process can still allocate."""
    free = [psutil.virtual_memory().available, *(limit - used for limit, used in _memory_of_groups())]
    return max(0.0, float(min(free)))


def cpu_limit() -> float:
    """Return the number of CPUs that this process may use at once."""
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    pairs = [text.split() for (text,) in _control_groups("cpu", "cpu.max")]  # version 2: quota and period
    pairs += _control_groups("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 1
    limits += [float(quota) / float(period) for quota, period in pairs if quota not in ("max", "-1")]
    return min(limits)


def _memory_of_groups() -> list[tuple[float, float]]:
    """Return the limit and the use of memory, in bytes, of every control group that contains this process."""
    pairs = _control_groups("memory", "memory.max", "memory.current")  # version 2
    pairs += _control_groups("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")  # version 1
    return [(float(limit), float(used)) for limit, used in pairs if limit != "max"]


def _control_groups(controller: str, *files: str) -> list[list[str]]:
    """Return the contents of `files` for every control group that contains this process and has all of these files."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers  # version 2 has a single hierarchy, whose list of controllers is empty
        folder = root / path.strip("/")
        # In a container the path can be that of the host, while the file system begins at the container's own group.
        groups = [group for group in (folder, *folder.parents) if group.is_relative_to(root)]
        for group in groups:
            if all((group / file).is_file() for file in files):
                found.append([(group / file).read_text(encoding="utf-8").strip() for file in files])
    return found
