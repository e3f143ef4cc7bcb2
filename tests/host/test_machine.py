"""Tests of the limits of containers: control groups of both versions, in folders laid out as the kernel does."""

import os
from pathlib import Path

import pytest

from raycap.host import machine

GB = 10**9


@pytest.mark.parametrize(
    ("own", "files", "memory", "free", "cpus"),
    [
        ("0::/\n", {}, None, None, None),
        ("0::/\n", {"memory.max": "max", "memory.current": "5", "cpu.max": "max 100000"}, None, None, None),
        (
            "0::/a/b\n",
            {"a/memory.max": f"{GB}", "a/memory.current": f"{GB // 4}", "a/b/cpu.max": "50000 100000"},
            1, 0.75, 0.5,
        ),
        ("0::/host/path\n", {"memory.max": f"{2 * GB}", "memory.current": "0"}, 2, 2, None),
        (
            "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
            {
                "memory/job/memory.limit_in_bytes": f"{GB}", "memory/job/memory.usage_in_bytes": f"{2 * GB}",
                "memory/memory.limit_in_bytes": f"{2**63 - 4096}", "memory/memory.usage_in_bytes": "1",
                "cpu,cpuacct/job/cpu.cfs_quota_us": "10000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1, 0, 0.1,
        ),
    ],
    ids=["none", "unlimited", "nested, version 2", "container, version 2", "version 1"],
)  # fmt: skip
def test_limits_of_control_groups_are_found(
    own: str, files: dict[str, str], memory: float | None, free: float | None, cpus: float | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "nothing")
    whole, cores = machine.memory_limit(), len(os.sched_getaffinity(0))
    assert machine.cpu_limit() == cores
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    assert machine.memory_limit() == (whole if memory is None else memory * GB)
    assert machine.cpu_limit() == (cores if cpus is None else cpus)
    assert 0 <= machine.available_memory() <= whole
    assert free is None or machine.available_memory() == free * GB
