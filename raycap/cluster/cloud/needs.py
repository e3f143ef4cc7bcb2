"""Check whether a sweep can run on a cluster: whether a trial fits, and whether storage and MLflow are reachable."""

import math
from collections.abc import Callable, Iterator

from raycap.cluster.cloud.document import Fault
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.resources import Machines, describe_requirements, format_machines, workers_on
from raycap.spec import ExecutionSpec, SweepSpec

BUCKETS = ("s3", "gs", "gcs")
"""URI schemes of storage that machines need permissions for."""
ABSOLUTE_DATABASE = "sqlite:////"
"""Beginning of the URI of a database file with an absolute path."""


def machines_of(cluster: Cluster) -> list[Machines]:
    """Return the worker machines of the cluster at its largest, by group."""
    return [Machines(group.max_count, *group.size) for group in cluster.workers if group.max_count]


def max_concurrent_workers(cluster: Cluster, execution: ExecutionSpec) -> float:
    """Return how many training workers (`execution.num_workers`) fit on the cluster at its largest."""
    remaining, total = cluster.max_machines, 0.0
    per_machine = [(workers_on([Machines(1, *group.size)], execution), group.max_count) for group in cluster.workers]
    # The cluster has a limit on all machines together, so machines that hold the most workers are counted first.
    for workers, max_count in sorted(per_machine, reverse=True):
        count = min(max_count, remaining)
        remaining -= count
        total += workers * count
    return total


def max_concurrent_trials(cluster: Cluster, execution: ExecutionSpec) -> int:
    """Return how many trials can run at once on the cluster at its largest."""
    return min(
        math.floor(max_concurrent_workers(cluster, execution) / execution.num_workers), execution.max_concurrent_trials
    )


def has_known_sizes(cluster: Cluster) -> bool:
    """Whether the CPUs and GPUs of all machines are known before the cluster starts."""
    return not any(group.detects_size for group in cluster.workers)


def fit_faults(cluster: Cluster, spec: SweepSpec) -> Iterator[Fault]:
    """Yield a fault if the cluster at its largest cannot hold one trial. None if its sizes are unknown."""
    if not has_known_sizes(cluster):
        return
    workers = max_concurrent_workers(cluster, spec.execution)
    if workers >= spec.execution.num_workers:
        return
    path = cluster.workers[0].path if cluster.workers else ()
    path = path[:-1] or path  # all groups, unless there is only one place for them
    yield cluster.document.fault(
        path,
        f"must have room for a trial of {spec.name}: {describe_requirements(spec.execution)}, "
        f"but the cluster has at most {format_machines(machines_of(cluster))}, "
        f"{cluster.max_machines} machines in all, with room for {workers:g} workers; use larger or more machines, or lower "
        "execution.num_workers, execution.cpus_per_worker or execution.gpus_per_worker",
    )


def reach_faults(
    cluster: Cluster, make_fault: Callable[[str, str], Fault], storage: str, tracking_uri: str
) -> Iterator[Fault]:
    """Yield faults if a machine of the cluster cannot reach the storage or MLflow.

    `make_fault` takes the name of a field of the sweep and the rule that it violates.
    """
    if cluster.max_machines < 1:
        return
    number = cluster.num_machines
    scheme, is_uri, _ = storage.partition("://")
    if not is_uri and number > 1:
        rule = f"must be shared by up to {number} machines, got {storage}, a folder that each machine has for itself"
        yield make_fault("storage", f"{rule}; set {cluster.storage_example}")
    is_file = "://" not in tracking_uri or tracking_uri.startswith(("sqlite:", "file:"))
    if is_file and not (cluster.shares_folders and tracking_uri.startswith(ABSOLUTE_DATABASE)):
        rule = f"must be a server, got {tracking_uri}, a file that is lost with its machine"
        if cluster.shares_folders:
            rule = f"must be a server, or a database in a folder that all machines share, got {tracking_uri}"
        yield make_fault("tracking.uri", f"{rule}; set {cluster.tracking_example}")
    for group in cluster.workers:
        if scheme in BUCKETS and scheme not in group.reaches:
            access = (
                f"only {', '.join(f'{name}://' for name in sorted(group.reaches))}" if group.reaches else "no bucket"
            )
            rule = f"must have access to {storage}, but these machines have access to {access}"
            remedy = "add a service account or instance profile as in the template, or use another storage"
            yield cluster.document.fault(group.path, f"{rule}; {remedy}")
