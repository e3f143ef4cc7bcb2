"""Clusters of pretended machines on this one. GPUs are Ray's word alone: trials that take them train on the CPU."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import AutoscalingCluster

from raycap.cluster.worker import PRETEND_GPUS
from tests.cluster.faults import WORKER

ENVIRONMENT = {PRETEND_GPUS: "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class PretendAutoscaling(AutoscalingCluster):
    """Ray's own cluster for tests of autoscaling; the configuration that it starts from is not in its wheel."""

    def _generate_config(
        self,
        head_resources: dict[str, Any],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        head = {"resources": dict(head_resources), "node_config": {}, "max_workers": 0}
        provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
        lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                 "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
                 "rsync_filter")  # fmt: skip
        return {
            "cluster_name": "pretend",
            "max_workers": 8,
            "provider": provider | {"disable_launch_config_check": True},
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in lists},
            **more,
        }


@contextmanager
def autoscaling_cluster(*, max_workers: int, idle_minutes: float = 0.2) -> Iterator[None]:
    """A head without CPUs, and machines of one CPU and one GPU that come when they are needed and go when they are not.

    Ray stops whatever else it runs on this machine.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it calls `ray`
    machine = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 200 * 2**20}, "node_config": {}}
    cluster = PretendAutoscaling(
        head_resources={"CPU": 0},
        worker_node_types={"gpu": machine | {"min_workers": 0, "max_workers": max_workers}},
        idle_timeout_minutes=idle_minutes,
    )
    cluster.start(override_env=ENVIRONMENT)
    try:
        yield
    finally:
        cluster.shutdown()


def training_machines() -> list[psutil.Process]:
    """The raylets of the machines on which trials train."""
    found = {}
    for process in psutil.process_iter():
        try:
            if (process.cmdline() or [""])[0].startswith("ray::") and WORKER in process.cmdline()[0]:
                raylet = process.parent()
                found[raylet.pid] = raylet
        except (psutil.Error, AttributeError):
            continue
    return list(found.values())


def lose(machine: psutil.Process) -> None:
    """A machine is gone: its raylet and everything that ran under it, at once."""
    for process in [machine, *machine.children(recursive=True)]:
        try:
            process.kill()
        except psutil.Error:
            continue
