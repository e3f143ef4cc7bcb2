"""What a trial needs against what the cluster has, or may ever have: refused with the arithmetic before anything waits."""

import math
from dataclasses import dataclass

import ray
from ray._private.state import state as cluster_state

from raycap.cluster.errors import ResourceError
from raycap.spec import ExecutionSpec

UNLIMITED = -1
"""How Ray's autoscaler writes that there may be any number."""


@dataclass(frozen=True)
class Machines:
    """So many machines alike."""

    count: float
    cpus: float
    gpus: float

    def __str__(self) -> str:
        count = "any number of" if math.isinf(self.count) else f"{self.count:g}"
        return f"{count} x {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def concurrent_slots(execution: ExecutionSpec, places: dict[str, str]) -> int:
    """How many trials the connected cluster, as large as its autoscaler may make it, holds at once.

    `places` is what trials read and write, by name. Raises ResourceError, with the arithmetic, if one trial can never fit,
    or if several machines would look for a place in folders of their own.
    """
    alive, possible = _machines_alive(), _machines_possible()
    several = sum(machines.count for machines in alive) > 1 or possible
    for name, place in places.items():
        if "://" not in place and several:
            raise ResourceError(
                f"{name} {place} is a folder of one machine, but the cluster has or may have several; use file:///... for "
                "one that all of them share" + ("" if name.endswith("profiles.path") else ", s3://... or gs://...")
            )
    # A worker is on one machine; the reader of its rows takes a part of its CPUs and may be on any.
    workers = max(_workers_on(alive, execution), _workers_on(possible, execution))
    slots = workers // execution.num_workers if math.isfinite(workers) else execution.max_concurrent_trials
    if slots < 1:
        cpus, gpus = execution.cpus_per_worker, execution.gpus_per_worker
        raise ResourceError(
            f"one trial needs {execution.num_workers} workers, each with {cpus:g} CPUs and {gpus:g} GPUs of one machine "
            f"(together {execution.num_workers * cpus:g} and {execution.num_workers * gpus:g}), but the cluster has "
            f"{_told(alive)}"
            + (f", and may have {_told(possible)}" if possible else "")
            + f": room for {workers:g} workers; lower execution.num_workers, execution.cpus_per_worker or "
            "execution.gpus_per_worker"
        )
    return min(int(slots), execution.max_concurrent_trials)


def _machines_alive() -> list[Machines]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machines(1, mine.get("CPU", 0.0), mine.get("GPU", 0.0)) for mine in resources]


def _machines_possible() -> list[Machines]:
    """What the autoscaler may start; empty where there is none."""
    config = cluster_state.get_cluster_config()
    return [
        Machines(
            math.inf if group.max_count == UNLIMITED else group.max_count,
            group.resources.get("CPU", 0),
            group.resources.get("GPU", 0),
        )
        for group in (config.node_group_configs if config else ())
        if group.max_count and group.resources
    ]


def _workers_on(machines: list[Machines], execution: ExecutionSpec) -> float:
    """How many workers some machines hold."""
    total = 0.0
    for mine in machines:
        room = [mine.cpus / execution.cpus_per_worker]
        if execution.gpus_per_worker:
            room.append(mine.gpus / execution.gpus_per_worker)
        each = math.floor(min(room) + 1e-9)
        total += mine.count * each if each else 0.0
    return total


def _told(machines: list[Machines]) -> str:
    alike: dict[tuple[float, float], float] = {}
    for mine in machines:
        alike[mine.cpus, mine.gpus] = alike.get((mine.cpus, mine.gpus), 0.0) + mine.count
    return ", ".join(str(Machines(count, *sizes)) for sizes, count in alike.items()) or "no machines"
