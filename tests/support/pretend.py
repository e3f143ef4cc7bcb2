"""Ray clusters of simulated machines on this one. Their GPUs are Ray resources only: trials train on the CPU."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import AutoscalingCluster

from raycap.cluster.worker import PRETEND_GPUS
from tests.support.faults import WORKER

PORT = 6379
"""Port of the head. Simulated machines connect to Ray's default port and cannot be configured to use another."""
ENVIRONMENT = {PRETEND_GPUS: "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class PretendAutoscaling(AutoscalingCluster):
    """Ray's cluster for tests of autoscaling, with a base configuration, because Ray's wheel does not contain one."""

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


def free_port() -> int:
    """An unused TCP port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def autoscaling_cluster(*, max_workers: int, idle_minutes: float = 0.2) -> Iterator[dict[str, str]]:
    """Start an autoscaling cluster: a head without CPUs, and up to `max_workers` machines of one CPU and one GPU.

    Yields the environment in which a sweep is started on its head. Its home folder has the cluster's configuration, as
    `ray up` leaves it, and the authentication token that the head requires. Only processes of this cluster are killed at
    the end; `ray stop` would also stop other Ray clusters on the machine.
    """
    machine = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 200 * 2**20}, "node_config": {}}
    configured = PretendAutoscaling(
        head_resources={"CPU": 0},
        worker_node_types={"gpu": machine | {"min_workers": 0, "max_workers": max_workers}},
        idle_timeout_minutes=idle_minutes,
    )
    with tempfile.TemporaryDirectory(prefix="raycap-home-") as home:
        config = Path(home) / "ray_bootstrap_config.yaml"
        config.write_text(json.dumps(configured._config))
        (Path(home) / ".ray").mkdir()
        (Path(home) / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        environment = os.environ | ENVIRONMENT | {"HOME": home, "RAY_ADDRESS": f"127.0.0.1:{PORT}"}
        started = environment | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        del started["RAY_ADDRESS"]
        subprocess.run(
            [Path(sys.executable).parent / "ray", "start", "--head", f"--port={PORT}", "--num-cpus=0",
             f"--autoscaling-config={config}", "--include-dashboard=true", f"--dashboard-port={free_port()}"],
            env=started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        try:
            yield environment
        finally:
            for process in psutil.process_iter():
                if _belongs_to(process):
                    lose(process)


def machines() -> list[psutil.Process]:
    """The raylets of the cluster, including the head's."""
    return [p for p in psutil.process_iter() if _belongs_to(p) and "raylet/raylet" in " ".join(p.cmdline()[:1])]


def _belongs_to(process: psutil.Process) -> bool:
    """Whether a process belongs to the cluster."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return f":{PORT} " in f"{command} " or f"--gcs_server_port={PORT}" in command


def training_machines(of: list[psutil.Process]) -> list[psutil.Process]:
    """The raylets on whose machines a training worker runs."""
    return [raylet for raylet in of if raylet.is_running() and any(map(_trains, raylet.children()))]


def _trains(process: psutil.Process) -> bool:
    try:
        return WORKER in " ".join(process.cmdline()[:1])
    except psutil.Error:
        return False


def lose(machine: psutil.Process) -> None:
    """Simulate the loss of a machine: kill its raylet and all processes below it."""
    for process in [machine, *machine.children(recursive=True)]:
        try:
            process.kill()
        except psutil.Error:
            continue
