"""Sweeps on clusters whose machines start, stop and are lost."""

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from raycap.learner.trial import run_trial
from tests.support.faults import last_step, results_in, wait_until, without_timing
from tests.support.simulated_cluster import (
    CPU_ONLY_SWEEP,
    ENVIRONMENT,
    autoscaling_cluster,
    free_port,
    kill_machine,
    machines,
    raylets_with_workers,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
# Does it matter where it runs?
name: nodes
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 20000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
grid:
  training.seed: [0, 1]
execution: {gpus_per_worker: 1, checkpoint_every_s: 1}
"""


def start(folder: Path, *overrides: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the sweep on the cluster of the environment. The storage is a URI, as clusters of several machines require."""
    (folder / "spec.yaml").write_text(SPEC)
    command = [*CPU_ONLY_SWEEP, "spec.yaml", f"storage=file://{folder}/runs", *overrides]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=(folder / "log").open("a"), stderr=subprocess.STDOUT
    )


def test_a_lost_machine_is_replaced_and_idle_machines_are_removed(tmp_path: Path) -> None:
    """The cluster grows from 0 to 2 machines, replaces one that is lost during a trial, and shrinks to 0."""
    storage, seen = tmp_path / "runs", []
    with autoscaling_cluster(max_workers=3) as environment:
        began = time.monotonic()

        def alive() -> int:
            """Return the number of machines without the head, and record it whenever it changes."""
            number = len(machines()) - 1
            if not seen or seen[-1][1] != number:
                seen.append((round(time.monotonic() - began), number))
            return number

        try:
            assert alive() == 0
            process = start(tmp_path, environment=environment)
            wait_until(lambda: alive() == 2 and last_step(storage) > 2000, 240)
            victim = raylets_with_workers(machines())[0]
            before, killed_at = last_step(storage), time.monotonic()
            kill_machine(victim)
            wait_until(lambda: alive() == 1, 60)
            wait_until(lambda: alive() == 2 or process.poll() is not None, 240)
            wait_until(lambda: last_step(storage) > before, 240)
            print(f"training resumed {time.monotonic() - killed_at:.0f} s after a machine was lost at step {before}")
            wait_until(lambda: alive() >= 0 and process.poll() is not None, 400)
            assert process.returncode == 0, (tmp_path / "log").read_text()
            wait_until(lambda: alive() == 0, 120)
        finally:
            print("(second, machines without the head):", seen)
    found = results_in(storage)
    assert len(found) == 2
    for result in found.values():
        assert without_timing(result) == without_timing(run_trial(result.spec, source_commit="test").result)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["execution.gpus_per_worker=2"], "1 CPUs and 2 GPUs"),
        (["execution.num_workers=3"], "2 x 1 CPUs and 1 GPUs: room for 2 workers"),
        (["execution.cpus_per_worker=1.5"], "room for 0 workers"),
        (["storage=runs"], "use file:///"),
    ],
)
def test_trials_that_can_never_fit_are_refused(
    tmp_path: Path, overrides: list[str], message: str, cluster: dict[str, str]
) -> None:
    process = start(tmp_path, *overrides, environment=cluster)
    assert process.wait(60) == 2
    assert message in (tmp_path / "log").read_text()


def test_sixteen_machines_of_four_gpus_run_sixty_four_trials_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials run as 16 stacks of four, one stack per machine."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ports = {"gcs_server_port": free_port(), "dashboard_port": free_port(), "include_dashboard": True}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **ports})
    used = set()
    try:
        for _ in range(16):
            cluster.add_node(num_cpus=4, num_gpus=4, object_store_memory=80 * 2**20)
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.worker_nodes]
        # Long enough that the last stack starts before the first ends, although all share the cores of this machine.
        four_gpus = (
            "execution={gpus_per_worker: 4, cpus_per_worker: 4, replicas: 4}",
            "trial.training.length={steps: 3000}",
        )
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        process = start(tmp_path, *four_gpus, f"grid.training.seed={list(range(64))}", environment=environment)
        while process.poll() is None:
            used |= {raylet.pid for raylet in raylets_with_workers(raylets)}
            time.sleep(1)
    finally:
        cluster.shutdown()
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    events = re.findall(r": (started|finished)", log)
    running = list(itertools.accumulate(1 if event == "started" else -1 for event in events))
    assert max(running) == 64
    assert len(used) == 16
    assert len(list(tmp_path.glob("runs/trials/*/result.json"))) == 64


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with autoscaling_cluster(max_workers=2) as environment:
        yield environment
