"""Check whether a sweep can run on a cluster: whether a trial fits, and whether storage and MLflow are reachable."""

import math
from collections.abc import Callable, Iterator

from raycap.cluster.cloud.document import Fault
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.cloud.kuberay import is_kuberay
from raycap.cluster.resources import Machines, describe_requirements, format_machines, workers_on
from raycap.spec import ExecutionSpec, SweepSpec

BUCKETS = ("s3", "gs", "gcs")
"""URI schemes of storage that machines need permissions for."""


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


def fit_faults(cluster: Cluster, spec: SweepSpec) -> Iterator[Fault]:
    """Yield a fault if the cluster at its largest cannot hold one trial."""
    workers = max_concurrent_workers(cluster, spec.execution)
    if workers >= spec.execution.num_workers:
        return
    path = cluster.workers[0].path[:-1] if cluster.workers else ()
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
    number = cluster.max_machines + 1
    scheme, is_uri, _ = storage.partition("://")
    if not is_uri:
        rule = f"must be shared by up to {number} machines, got {storage}, a folder that each machine has for itself"
        yield make_fault("storage", f"{rule}; set storage=s3://BUCKET/raycap or gs://BUCKET/raycap")
    if "://" not in tracking_uri or tracking_uri.startswith(("sqlite:", "file:")):
        rule = f"must be a server, got {tracking_uri}, a file that is lost with its machine"
        remedy = "set tracking.uri=http://127.0.0.1:5000 for the server that the template starts on the head"
        if is_kuberay(cluster.document):
            remedy = "set tracking.uri=http://mlflow:5000 for the server that the template starts"
        yield make_fault("tracking.uri", f"{rule}; {remedy}")
    for group in cluster.workers:
        if scheme in BUCKETS and scheme not in group.reaches:
            access = (
                f"only {', '.join(f'{name}://' for name in sorted(group.reaches))}" if group.reaches else "no bucket"
            )
            rule = f"must have access to {storage}, but these machines have access to {access}"
            remedy = "add a service account or instance profile as in the template, or use another storage"
            yield cluster.document.fault(group.path, f"{rule}; {remedy}")
