"""Comparison of the resources of a trial with those of the cluster, which finds trials that can never be scheduled."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ruamel.yaml import YAML

from raycap.cluster.address import LOCAL, cluster_address, cluster_configuration, requires_token
from raycap.cluster.connection import ray_session
from raycap.errors import CannotRunError, ResourceError
from raycap.results import PlannedTrial
from raycap.spec import (
    ExecutionSpec,
    ParentModel,
    PretrainedModel,
    PretrainedTokenizer,
    ProfilesFromDisk,
    ProfilesFromTable,
)

KUBERAY_VARIABLE = "KUBERAY_GEN_RAY_START_CMD"
"""Environment variable that is set in every container that KubeRay starts."""
POLL_INTERVAL_S = 1.0
"""Interval at which `wait_for_machines` counts the machines."""
UNKNOWN_SLOTS = 32
"""Number of concurrent trials if the maximum size of the cluster is unknown. It is bounded because each trial, even while it
waits for resources, has a driver process on the head node."""


@dataclass(frozen=True)
class Machines:
    """A number of identical machines."""

    count: float
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.count:g} x {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def concurrent_slots(execution: ExecutionSpec, paths: set[tuple[str, str]]) -> int:
    """Return how many trials run at once on the connected cluster, at the maximum size that its autoscaler allows.

    `paths` contains (field name, path or URI) of everything that trials read or write.

    Raises:
        ResourceError: No trial can ever be scheduled, or a path is a local folder although the cluster has several machines.
    """
    alive, possible = _machines_alive(), _machines_possible()
    several_machines = sum(machines.count for machines in alive) > 1 or possible
    for name, path in sorted(paths):
        if "://" not in path and several_machines:
            raise ResourceError(
                f"{name} {path} is a folder of one machine, but the cluster has or may start several; use file:///... for "
                "a folder that all of them share" + ("" if name.endswith("profiles.path") else ", s3://... or gs://...")
            )
    # Each worker must fit on one machine. The task that reads its rows is not counted, because it uses part of the worker's
    # CPUs (see READER_CPUS); Ray may place it on any machine.
    workers = max(workers_on(alive, execution), workers_on(possible, execution))
    slots = workers // execution.num_workers if math.isfinite(workers) else UNKNOWN_SLOTS
    if slots < 1:
        raise ResourceError(
            f"{describe_requirements(execution)}, but the cluster has {format_machines(alive)}"
            + (f", and may start {format_machines(possible)}" if possible else "")
            + f": room for {workers:g} workers; lower execution.num_workers, execution.cpus_per_worker or "
            "execution.gpus_per_worker"
        )
    return min(int(slots), execution.max_concurrent_trials)


def input_paths(trials: Sequence[PlannedTrial]) -> set[tuple[str, str]]:
    """Return (field name, path) of the files and folders that trials read."""
    paths = set()
    for trial in trials:
        fill = trial.spec.fill
        for name, profiles in (
            ("profiles.path", trial.spec.profiles),
            ("fill.profiles.path", fill.profiles if fill else None),
        ):
            if isinstance(profiles, ProfilesFromDisk | ProfilesFromTable):
                paths.add((name, profiles.path))
        tokenizer = trial.spec.tokenizer
        if isinstance(tokenizer, PretrainedTokenizer) and tokenizer.path is not None:
            paths.add(("tokenizer.path", tokenizer.path))
        if isinstance(trial.spec.model, PretrainedModel):
            paths.add(("model.path", trial.spec.model.path))
        if fill and isinstance(fill.parent, ParentModel):
            paths.add(("fill.parent.path", fill.parent.path))
    return paths


def wait_for_machines(count: int, timeout_s: float) -> None:
    """Wait until the cluster at RAY_ADDRESS has a number of machines.

    Raises:
        CannotRunError: The cluster does not answer, or has fewer machines, when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    address = cluster_address(os.environ)
    if address == LOCAL:
        raise CannotRunError("RAY_ADDRESS is not set", "set it to the address of a cluster, HOST:PORT")
    while True:
        try:
            requires_token(address)
            # The control store answers before the head accepts connections.
            with ray_session():
                while (alive := len(_machines_alive())) < count:
                    if time.monotonic() > deadline:
                        raise CannotRunError(
                            f"the Ray cluster at {address} has {alive} of {count} machines after {timeout_s:g} s",
                            "read the output of `ray start` on the other machines, or wait longer with --timeout",
                        )
                    time.sleep(POLL_INTERVAL_S)
                return
        except CannotRunError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_INTERVAL_S)


def _machines_alive() -> list[Machines]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machines(1, node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]


def _machines_possible() -> list[Machines]:
    """Return the machines that an autoscaler may start; an empty list without an autoscaler.

    Ray has no interface for this. On a cluster of `ray up`, the limits are read from its configuration on the head node. On
    Kubernetes they are unknown and treated as infinite: no trial is refused, and one that cannot be scheduled waits.
    """
    if cluster_configuration().exists():
        config = YAML(typ="safe", pure=True).load(cluster_configuration().read_text(encoding="utf-8"))
        types = {
            name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]
        }
        limit = config.get("max_workers", math.inf)
        return [
            Machines(
                min(kind.get("max_workers", limit), limit),
                *(kind.get("resources", {}).get(name, 0) for name in ("CPU", "GPU")),
            )
            for kind in types.values()
        ]
    if KUBERAY_VARIABLE in os.environ:
        return [Machines(math.inf, math.inf, math.inf)]
    return []


def describe_requirements(execution: ExecutionSpec) -> str:
    """Return a sentence about the resources that one trial reserves."""
    workers, cpus, gpus = execution.num_workers, execution.cpus_per_worker, execution.gpus_per_worker
    return (
        f"one trial needs {workers} workers, each with {cpus:g} CPUs and {gpus:g} GPUs of one machine "
        f"(together {workers * cpus:g} and {workers * gpus:g})"
    )


def workers_on(machines: list[Machines], execution: ExecutionSpec) -> float:
    """Return how many workers fit on the machines; `inf` if the number of machines is unknown."""
    fits = [(group.count, execution.workers_on(group.cpus, group.gpus)) for group in machines]
    return sum(count * workers for count, workers in fits if workers)  # without 0, since inf * 0 is NaN


def format_machines(machines: list[Machines]) -> str:
    """Return a list of the machines as text, in which identical machines are counted together."""
    count_of: dict[tuple[float, float], float] = {}
    for group in machines:
        count_of[group.cpus, group.gpus] = count_of.get((group.cpus, group.gpus), 0.0) + group.count
    return ", ".join(str(Machines(count, *size)) for size, count in count_of.items()) or "no machines"
