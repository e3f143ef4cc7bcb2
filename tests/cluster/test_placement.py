"""Placement of workers and trials on simulated machines with GPUs, and submission of jobs to a cluster."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from raycap.cluster.connection import ray_session
from tests.support.faults import results_in
from tests.support.simulated_cluster import CPU_ONLY_SWEEP, ENVIRONMENT, free_port, is_worker

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
# Which worker reserves which GPU?
name: placed
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 2000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
"""


@dataclass(frozen=True)
class SimulatedMachines:
    """A cluster of simulated machines."""

    cluster: Cluster
    nodes: list[str]
    """Ids of the machines, without the head."""

    def gpus_reserved(self) -> tuple[float, ...]:
        """Return the number of GPUs that are reserved on each machine."""
        total = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
        available = available_resources_per_node()
        return tuple(round(total[node] - available.get(node, {}).get("GPU", 0), 2) for node in self.nodes)

    def workers(self) -> tuple[int, ...]:
        """Return the number of workers on each machine."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.worker_nodes]
        by_pid = dict(zip([node.node_id for node in self.cluster.worker_nodes], raylets, strict=True))
        return tuple(sum(map(is_worker, psutil.Process(by_pid[node]).children())) for node in self.nodes)


@contextmanager
def simulated_machines(monkeypatch: pytest.MonkeyPatch, *gpus: int, on_head: int = 0) -> Iterator[SimulatedMachines]:
    """Start a machine per element of `gpus`, with as many GPUs and twice as many CPUs, and a head with `on_head` GPUs."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ports = {name: free_port() for name in ("gcs_server_port", "dashboard_port", "dashboard_agent_listen_port")}
    head = {"num_cpus": 2 * on_head, "num_gpus": on_head, "include_dashboard": True, **ports}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=2 * n, num_gpus=n, object_store_memory=80 * 2**20) for n in gpus]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_session():
            yield SimulatedMachines(cluster, [node.node_id for node in nodes])
    finally:
        cluster.shutdown()


def start(folder: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    (folder / "spec.yaml").write_text(SPEC)
    command = [*CPU_ONLY_SWEEP, "spec.yaml", f"storage=file://{folder}/runs", *overrides]
    return subprocess.Popen(command, cwd=folder, stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    ("gpus", "reserved"),
    [
        pytest.param((1, 1), (1, 1), id="two machines of one GPU"),
        pytest.param((2,), (2,), id="one machine of two"),
        pytest.param((1, 2), (0, 2), id="one of each"),
    ],
)
def test_two_workers_of_a_trial_take_a_gpu_each(
    gpus: tuple[int, ...], reserved: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both workers are on one machine if it has enough GPUs, and on two machines otherwise."""
    seen = set()
    with simulated_machines(monkeypatch, *gpus) as machines:
        process = start(tmp_path, "execution={num_workers: 2, gpus_per_worker: 1}")
        while process.poll() is None:
            seen.add((machines.gpus_reserved(), machines.workers()))
            time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert (reserved, reserved) in seen, f"GPUs and workers by machine: {seen}"
    assert all(max(map(sum, gpus_and_workers)) <= 2 for gpus_and_workers in seen)
    (result,) = results_in(tmp_path / "runs").values()
    assert result.num_workers == 2


def test_four_trials_share_a_gpu_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of six trials run at once on a single GPU, and never five."""
    seen = set()
    with simulated_machines(monkeypatch, 1) as machines:
        quarter_gpu = "execution={gpus_per_worker: 0.25, cpus_per_worker: 0.5}"
        process = start(tmp_path, quarter_gpu, f"grid.training.seed={list(range(6))}")
        while process.poll() is None:
            seen.add((*machines.gpus_reserved(), *machines.workers()))
            time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert (1.0, 4) in seen, f"GPUs and workers: {seen}"
    assert max(workers for _, workers in seen) == 4
    assert len(results_in(tmp_path / "runs")) == 6


def test_a_submitted_job_runs_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` with a working directory runs the sweep on the cluster, and returns its exit status.

    The cluster has one machine, because several simulated machines on one host delete each other's working directories.
    """
    (tmp_path / "sweeps" / "specs").mkdir(parents=True)
    (tmp_path / "sweeps" / "specs" / "placed.yaml").write_text(SPEC)
    overrides = [f"storage=file://{tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    with simulated_machines(monkeypatch, on_head=1) as machines:
        dashboard = f"http://{machines.cluster.head_node.webui_url}"
        monkeypatch.delenv("RAY_ADDRESS")
        submit = [
            Path(sys.executable).parent / "ray",
            "job",
            "submit",
            "--address",
            dashboard,
            "--working-dir",
            "sweeps",
            "--",
        ]
        run = [*CPU_ONLY_SWEEP, "specs/placed.yaml", "execution.gpus_per_worker=1", *overrides]
        done = subprocess.run(
            [*submit, *run], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Report:" in done.stdout
        (result,) = results_in(tmp_path / "runs").values()
        assert result.spec.model
        again = subprocess.run([*submit, *run, "trial.training.batch_size=-1"], cwd=tmp_path, capture_output=True, text=True,
                               check=False)  # fmt: skip
        assert again.returncode == 1
        assert "trial.training.batch_size" in again.stdout + again.stderr
