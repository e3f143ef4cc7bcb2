"""A sweep against a described cluster: do its trials ever fit, and do all machines reach its storage and MLflow?"""

import math
from collections.abc import Callable, Iterator

from raycap.cluster.cloud.document import Fault
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.resources import Machines, describe_requirements, format_machines, workers_on
from raycap.spec import ExecutionSpec, SweepSpec

BUCKETS = ("s3", "gs", "gcs")
"""Storage that machines need a right to."""


def machines_of(cluster: Cluster) -> list[Machines]:
    """What may run beside the head."""
    return [Machines(group.max_count, *group.size) for group in cluster.workers if group.max_count]


def workers_at_most(cluster: Cluster, execution: ExecutionSpec) -> float:
    """How many workers fit at once, on at most as many machines as there may be together; the roomiest are taken first."""
    left, total = cluster.max_machines, 0.0
    each = [(workers_on([Machines(1, *group.size)], execution), group.max_count) for group in cluster.workers]
    for room, count in sorted(each, reverse=True):
        taken = min(count, left)
        left -= taken
        total += room * taken
    return total


def trials_at_most(cluster: Cluster, execution: ExecutionSpec) -> int:
    """How many trials run at once when all machines are there."""
    return min(math.floor(workers_at_most(cluster, execution) / execution.num_workers), execution.max_concurrent_trials)


def fit_faults(cluster: Cluster, spec: SweepSpec) -> Iterator[Fault]:
    """Whether one trial fits."""
    workers = workers_at_most(cluster, spec.execution)
    if workers >= spec.execution.num_workers:
        return
    place = cluster.workers[0].place[:-1] if cluster.workers else ()
    yield cluster.document.fault(
        place,
        f"must have room for a trial of {spec.name}: {describe_requirements(spec.execution)}, "
        f"but there may be {format_machines(machines_of(cluster))}, "
        f"{cluster.max_machines} machines in all: room for {workers:g} workers; take larger or more machines, or lower "
        "execution.num_workers, execution.cpus_per_worker or execution.gpus_per_worker",
    )


def reach_faults(cluster: Cluster, at: Callable[[str, str], Fault], storage: str, tracking_uri: str) -> Iterator[Fault]:
    """Whether every machine reaches the storage, and MLflow. `at` makes a fault of a field of the sweep and a rule."""
    if cluster.max_machines < 1:
        return
    number = cluster.max_machines + 1
    scheme, is_uri, _ = storage.partition("://")
    if not is_uri:
        rule = f"must be one place for up to {number} machines, got the folder {storage}, of which each has its own"
        yield at("storage", f"{rule}; add storage=s3://BUCKET/raycap, or gs://")
    if "://" not in tracking_uri or tracking_uri.startswith(("sqlite:", "file:")):
        rule = f"must be a server for up to {number} machines, got {tracking_uri}, which goes with its machine"
        way_out = "tracking.uri=http://127.0.0.1:5000 is the head's, where the template starts one"
        yield at("tracking.uri", f"{rule}; {way_out}")
    for group in cluster.workers:
        if scheme in BUCKETS and scheme not in group.reaches:
            given = (
                f"may reach {', '.join(sorted(group.reaches))}://" if group.reaches else "have no right to any bucket"
            )
            way_out = "give them an account as in the template, or take another storage"
            yield cluster.document.fault(group.place, f"must reach {storage}, but these machines {given}; {way_out}")
