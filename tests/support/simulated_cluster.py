"""Ray clusters of several simulated machines on this machine, whose GPUs exist only as a resource that Ray schedules by."""

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

from tests.support.faults import WORKER

PORT = 6379
"""Port of the head. Ray's simulated machines always connect to this port."""
CPU_ONLY_SWEEP = [sys.executable, str(Path(__file__).with_name("cpu_only_sweep.py"))]
"""Command that runs a sweep without using the GPUs that it reserves; a spec and overrides follow."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class SimulatedAutoscalingCluster(AutoscalingCluster):
    """Ray's cluster for tests of autoscaling, with a configuration file that Ray's wheel does not contain."""

    def _generate_config(
        self,
        head_resources: dict[str, Any],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        head_type = {"resources": dict(head_resources), "node_config": {}, "max_workers": 0}
        provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
        lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                 "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
                 "rsync_filter")  # fmt: skip
        return {
            "cluster_name": "simulated",
            "max_workers": 8,
            "provider": provider | {"disable_launch_config_check": True},
            "available_node_types": {**worker_node_types, "ray.head.default": head_type},
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
    """Return a port of this machine that is not in use."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@contextmanager
def autoscaling_cluster(*, max_workers: int, idle_minutes: float = 0.2) -> Iterator[dict[str, str]]:
    """Start a head without CPUs and an autoscaler for machines with one CPU and one GPU each.

    Yields the environment of a process that starts sweeps on the head. Its home directory contains the configuration of the
    cluster, as on a cluster of `ray up`, and an authentication token that the head requires. Unlike the methods of
    `AutoscalingCluster`, this does not affect other Ray instances on this machine.
    """
    machine = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 200 * 2**20}, "node_config": {}}
    configured = SimulatedAutoscalingCluster(
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
        head_environment = environment | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        del head_environment["RAY_ADDRESS"]
        subprocess.run(
            [Path(sys.executable).parent / "ray", "start", "--head", f"--port={PORT}", "--num-cpus=0",
             f"--autoscaling-config={config}", "--include-dashboard=true", f"--dashboard-port={free_port()}"],
            env=head_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        try:
            yield environment
        finally:
            for process in psutil.process_iter():
                if _belongs_to(process):
                    kill_machine(process)


def machines() -> list[psutil.Process]:
    """Return the raylets of the cluster, including that of the head."""
    return [p for p in psutil.process_iter() if _belongs_to(p) and "raylet/raylet" in " ".join(p.cmdline()[:1])]


def _belongs_to(process: psutil.Process) -> bool:
    """Whether a process belongs to the cluster."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return f":{PORT} " in f"{command} " or f"--gcs_server_port={PORT}" in command


def raylets_with_workers(raylets: list[psutil.Process]) -> list[psutil.Process]:
    """Return the raylets on whose machines trials train."""
    return [raylet for raylet in raylets if raylet.is_running() and any(map(is_worker, raylet.children()))]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a worker of Ray Train."""
    try:
        return WORKER in " ".join(process.cmdline()[:1])
    except psutil.Error:
        return False


def kill_machine(machine: psutil.Process) -> None:
    """Kill a machine: its raylet and all processes below it."""
    for process in [machine, *machine.children(recursive=True)]:
        try:
            process.kill()
        except psutil.Error:
            continue
