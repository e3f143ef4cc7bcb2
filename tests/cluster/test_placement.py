"""Workers and trials take the GPUs that were planned for them, on pretended machines; and jobs get to a cluster."""

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

from raycap.cluster.session import ray_session
from tests.support.faults import WORKER, results_in
from tests.support.pretend import ENVIRONMENT, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
# Who takes which GPU?
name: placed
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 2000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
"""


@dataclass(frozen=True)
class Pretended:
    """A cluster of machines with so many GPUs each, and a head with nothing."""

    cluster: Cluster
    nodes: list[str]
    """Their ids, in the order of the GPUs asked for."""

    def gpus_taken(self) -> tuple[float, ...]:
        """Of each machine, now."""
        total = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
        left = available_resources_per_node()
        return tuple(round(total[node] - left.get(node, {}).get("GPU", 0), 2) for node in self.nodes)

    def workers(self) -> tuple[int, ...]:
        """How many workers train on each machine, now."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.worker_nodes]
        by_pid = dict(zip([node.node_id for node in self.cluster.worker_nodes], raylets, strict=True))
        return tuple(sum(map(_trains, psutil.Process(by_pid[node]).children())) for node in self.nodes)


def _trains(process: psutil.Process) -> bool:
    try:
        return WORKER in " ".join(process.cmdline()[:1])
    except psutil.Error:
        return False


@contextmanager
def machines(monkeypatch: pytest.MonkeyPatch, *gpus: int, on_head: int = 0) -> Iterator[Pretended]:
    """Machines with so many GPUs, and twice as many CPUs each, beside a head which has `on_head`."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ports = {name: free_port() for name in ("gcs_server_port", "dashboard_port", "dashboard_agent_listen_port")}
    head = {"num_cpus": 2 * on_head, "num_gpus": on_head, "include_dashboard": True, **ports}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=2 * n, num_gpus=n, object_store_memory=80 * 2**20) for n in gpus]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_session():
            yield Pretended(cluster, [node.node_id for node in nodes])
    finally:
        cluster.shutdown()


def start(folder: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    (folder / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "raycap.sweep", "spec.yaml", f"storage=file://{folder}/runs", *overrides]
    return subprocess.Popen(command, cwd=folder, stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    ("gpus", "taken"),
    [
        pytest.param((1, 1), (1, 1), id="two machines of one GPU"),
        pytest.param((2,), (2,), id="one machine of two"),
        pytest.param((1, 2), (0, 2), id="one of each"),
    ],
)
def test_two_workers_of_a_trial_take_a_gpu_each(
    gpus: tuple[int, ...], taken: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine where there is one for both, and wherever there are GPUs where there is not."""
    seen = set()
    with machines(monkeypatch, *gpus) as pretended:
        process = start(tmp_path, "execution={num_workers: 2, gpus_per_worker: 1}")
        while process.poll() is None:
            seen.add((pretended.gpus_taken(), pretended.workers()))
            time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert (taken, taken) in seen, f"GPUs taken and workers at work: {seen}"
    assert all(max(map(sum, at_once)) <= 2 for at_once in seen)
    (result,) = results_in(tmp_path / "runs").values()
    assert result.num_workers == 2


def test_four_trials_share_a_gpu_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of six, on the one GPU there is; never five."""
    seen = set()
    with machines(monkeypatch, 1) as pretended:
        each = "execution={gpus_per_worker: 0.25, cpus_per_worker: 0.5}"
        process = start(tmp_path, each, f"grid.training.seed={list(range(6))}")
        while process.poll() is None:
            seen.add((*pretended.gpus_taken(), *pretended.workers()))
            time.sleep(0.2)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert (1.0, 4) in seen, f"GPUs taken and workers at work: {seen}"
    assert max(workers for _, workers in seen) == 4
    assert len(results_in(tmp_path / "runs")) == 6


def test_a_job_gets_to_the_cluster_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` with a working directory: the sweep runs there, on the cluster's GPU, and its end is the job's.

    On a cluster of one machine, since several on one host take each other's working directories away.
    """
    (tmp_path / "sweeps" / "specs").mkdir(parents=True)
    (tmp_path / "sweeps" / "specs" / "placed.yaml").write_text(SPEC)
    overrides = [f"storage=file://{tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    with machines(monkeypatch, on_head=1) as pretended:
        dashboard = f"http://{pretended.cluster.head_node.webui_url}"
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
        run = [sys.executable, "-m", "raycap.sweep", "specs/placed.yaml", "execution.gpus_per_worker=1", *overrides]
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
