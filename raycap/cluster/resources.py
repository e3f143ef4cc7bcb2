"""What a trial needs against what the cluster has, or may ever have: refused with the arithmetic before anything waits."""

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import services
from ruamel.yaml import YAML

from raycap.errors import ResourceError
from raycap.spec import ExecutionSpec

CLUSTER_HEAD_MARKER = Path("~/ray_bootstrap_config.yaml")
"""`ray up` leaves its configuration in this file on the head of the clusters that it starts."""
KUBERAY = "KUBERAY_GEN_RAY_START_CMD"
"""Set in every container that KubeRay starts."""
CLUSTER_TIMEOUT_S = 3.0
"""How long a cluster may take to answer."""
UNKNOWN_SLOTS = 32
"""Trials at once where nobody knows how large the cluster may become; each that waits for room has a driver on the head."""


@dataclass(frozen=True)
class Machines:
    """So many machines alike."""

    count: float
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.count:g} x {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def concurrent_slots(execution: ExecutionSpec, places: set[tuple[str, str]]) -> int:
    """How many trials the connected cluster, as large as its autoscaler may make it, holds at once.

    `places` is what trials read and write, with the names of fields. Raises ResourceError, with the arithmetic, if one
    trial can never fit, or if several machines would look for a place in folders of their own.
    """
    alive, possible = _machines_alive(), _machines_possible()
    several = sum(machines.count for machines in alive) > 1 or possible
    for name, place in sorted(places):
        if "://" not in place and several:
            raise ResourceError(
                f"{name} {place} is a folder of one machine, but the cluster has or may have several; use file:///... for "
                "one that all of them share" + ("" if name.endswith("profiles.path") else ", s3://... or gs://...")
            )
    # A worker is on one machine; the reader of its rows takes a part of its CPUs and may be on any.
    workers = max(workers_on(alive, execution), workers_on(possible, execution))
    slots = workers // execution.num_workers if math.isfinite(workers) else UNKNOWN_SLOTS
    if slots < 1:
        raise ResourceError(
            f"{need(execution)}, but the cluster has {format_machines(alive)}"
            + (f", and may have {format_machines(possible)}" if possible else "")
            + f": room for {workers:g} workers; lower execution.num_workers, execution.cpus_per_worker or "
            "execution.gpus_per_worker"
        )
    return min(int(slots), execution.max_concurrent_trials)


def _machines_alive() -> list[Machines]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machines(1, mine.get("CPU", 0.0), mine.get("GPU", 0.0)) for mine in resources]


def _machines_possible() -> list[Machines]:
    """What an autoscaler may start; empty where there is none.

    Ray itself does not tell: on a cluster of `ray up` its configuration lies on the head. On Kubernetes all that is
    known is that somebody scales; then nothing is refused, and a trial that never finds room waits.
    """
    if CLUSTER_HEAD_MARKER.expanduser().exists():
        config = YAML(typ="safe", pure=True).load(CLUSTER_HEAD_MARKER.expanduser().read_text(encoding="utf-8"))
        types = {
            name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]
        }
        most = config.get("max_workers", math.inf)
        return [
            Machines(
                min(kind.get("max_workers", most), most),
                *(kind.get("resources", {}).get(name, 0) for name in ("CPU", "GPU")),
            )
            for kind in types.values()
        ]
    if KUBERAY in os.environ:
        return [Machines(math.inf, math.inf, math.inf)]
    return []


def need(execution: ExecutionSpec) -> str:
    """What one trial takes, in words."""
    workers, cpus, gpus = execution.num_workers, execution.cpus_per_worker, execution.gpus_per_worker
    return (
        f"one trial needs {workers} workers, each with {cpus:g} CPUs and {gpus:g} GPUs of one machine "
        f"(together {workers * cpus:g} and {workers * gpus:g})"
    )


def workers_on(machines: list[Machines], execution: ExecutionSpec) -> float:
    """How many workers some machines hold."""
    each = [(mine.count, execution.workers_on(mine.cpus, mine.gpus)) for mine in machines]
    return sum(count * workers for count, workers in each if workers)  # an infinite number of none is none


def format_machines(machines: list[Machines]) -> str:
    """Machines in words, those alike together."""
    alike: dict[tuple[float, float], float] = {}
    for mine in machines:
        alike[mine.cpus, mine.gpus] = alike.get((mine.cpus, mine.gpus), 0.0) + mine.count
    return ", ".join(str(Machines(count, *sizes)) for sizes, count in alike.items()) or "no machines"


def where_trials_run(environment: Mapping[str, str]) -> str:
    """Where a sweep would run: on Ray of its own, or on a cluster. Raises OSError if that does not answer."""
    address = environment.get("RAY_ADDRESS", "")
    if address == "local" or not (address or CLUSTER_HEAD_MARKER.expanduser().exists()):
        return "this machine: a run starts Ray of its own"
    if address in ("", "auto"):
        found = services.find_gcs_addresses()
        if not found:
            raise OSError("no Ray runs on this machine")
        address = sorted(found)[0]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OSError(f"{address!r} is not of the form host:port")
    socket.create_connection((host, int(port)), CLUSTER_TIMEOUT_S).close()
    return f"the cluster at {address}, which answers"
