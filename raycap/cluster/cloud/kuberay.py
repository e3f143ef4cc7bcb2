"""Reads KubeRay manifests, and finds faults by the rules of the operator, Ray's autoscaler and raycap."""

import json
import logging
import shlex
from collections.abc import Iterator
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault, find_document
from raycap.cluster.cloud.groups import Cluster, NodeGroup
from raycap.cluster.cloud.versions import Versions
from raycap.spec.document import did_you_mean
from raycap.spec.yaml_tree import KeyPath

KINDS = {"RayJob": ("spec", "rayClusterSpec"), "RayCluster": ("spec",)}
"""Path of the cluster's description in each kind of document."""
JOB = ("entrypoint", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
       "submissionMode", "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "submitterPodTemplate", "suspend",
       "entrypointNumCpus", "entrypointNumGpus", "metadata", "jobId", "managedBy", "deletionStrategy")  # fmt: skip
CLUSTER = ("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "suspend",
           "gcsFaultToleranceOptions", "authOptions", "managedBy", "headServiceAnnotations")  # fmt: skip
GROUP = ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "suspend",
         "idleTimeoutSeconds", "scaleStrategy", "resources", "labels", "serviceType", "headService")  # fmt: skip
HEAD_FIELDS = ("rayStartParams", "template")
WORKER_FIELDS = ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template")
"""Fields that a group of the head or of workers must have."""
MACHINE_TYPE = "node.kubernetes.io/instance-type"


def is_kuberay(document: ClusterDocument) -> bool:
    """Whether a document is for the KubeRay operator."""
    return str(document.find_document("apiVersion")).startswith("ray.io/")


def cluster_of(document: ClusterDocument) -> Cluster:
    """Return the groups of pods in a manifest. Invalid parts count as missing; `faults_of` reports them."""
    head, *workers = _group_paths(document)
    groups = (_group(document, head, is_head=True), *(_group(document, path, is_head=False) for path in workers))
    return Cluster(document, groups, sum(group.max_count for group in groups))


def _base(document: ClusterDocument) -> tuple[str, ...]:
    """Return the path of the cluster's description."""
    return KINDS.get(str(document.find_document("kind")), ("spec",))


def _group_paths(document: ClusterDocument) -> list[KeyPath]:
    """Return the paths of the head's group, which may be missing, and of all groups of workers."""
    base = _base(document)
    workers = document.find_document(*base, "workerGroupSpecs")
    paths: list[KeyPath] = [(*base, "headGroupSpec")]
    paths += [(*base, "workerGroupSpecs", index) for index in range(len(workers) if isinstance(workers, list) else 0)]
    return paths


def _group(document: ClusterDocument, path: KeyPath, *, is_head: bool) -> NodeGroup:
    pod = document.find_document(*path, "template", "spec")
    # Each cloud has its own label for spot nodes: capacityType: SPOT, gke-spot, kubernetes.azure.com/scalesetpriority: spot.
    scheduling = json.dumps([find_document(pod, name) for name in ("nodeSelector", "affinity")], default=str).lower()
    resources = _resources(document.find_document(*path), is_head=is_head)
    selector = find_document(pod, "nodeSelector")
    machine_type = selector.get(MACHINE_TYPE) if isinstance(selector, dict) else None
    count = document.find_document(*path, "maxReplicas")
    limits: KeyPath = (*path, "template", "spec", "containers", 0, "resources", "limits")
    return NodeGroup(
        name="head" if is_head else str(document.find_document(*path, "groupName")),
        path=path,
        cpus_path=(*path, "rayStartParams", "num-cpus") if is_head else (*limits, "cpu"),
        gpus_path=(*limits, "nvidia.com/gpu"),
        market_path=(*path, "template", "spec", "nodeSelector"),
        is_head=is_head,
        cpus=resources.get("CPU"),
        gpus=resources.get("GPU", 0),
        max_count=count if isinstance(count, int) and not is_head else 0,
        machine_type=machine_type,
        is_spot="spot" in scheduling,
        spot_setting="the nodeSelector of your cloud's spot nodes",
        # The account's permissions are known only to the cloud, so any account counts as access to buckets.
        reaches=frozenset({"s3", "gs", "gcs"} if find_document(pod, "serviceAccountName") else ()),
    )


def _resources(group: Any, *, is_head: bool) -> dict[str, int]:
    """Return the CPUs and GPUs of a pod as Ray's autoscaler reads them; empty if the group is invalid."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)
    if is_head and find_document(group, "rayStartParams", "num-cpus") is None:
        return {}
    try:
        resources: dict[str, int] = _get_ray_resources_from_group_spec(group, is_head)
    except Exception:  # rules for the single fields report the fault
        return {}
    return resources


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of a manifest, except those that `Cluster.faults` finds."""
    kind = str(document.find_document("kind"))
    if kind not in KINDS:
        rule = f"must be one of {', '.join(KINDS)}, got {kind}; write RayJob, as in the template"
        yield document.fault(("kind",), rule)
        return
    base = _base(document)
    yield from _misspelt(document, ("spec",), JOB if kind == "RayJob" else CLUSTER)
    if kind == "RayJob":
        yield from _misspelt(document, base, CLUSTER)
        if not document.find_document("spec", "entrypoint"):
            rule = "is missing; write the command of the job: python -m raycap.sweep SPEC storage=s3://... tracking.uri=http://..."
            yield document.fault(("spec", "entrypoint"), rule)
    if (autoscaling := document.find_document(*base, "enableInTreeAutoscaling")) is not True:
        rule = f"must be true, got {autoscaling}; write true: otherwise no GPU pod is started or stopped"
        yield document.fault((*base, "enableInTreeAutoscaling"), rule)
    version = document.find_document(*base, "rayVersion")
    if version != versions.ray:
        rule = f"must be this environment's Ray {versions.ray}, got {version}; write {versions.ray}"
        yield document.fault((*base, "rayVersion"), rule)
    for path in _group_paths(document):
        image_path = (*path, "template", "spec", "containers", 0, "image")  # Ray runs in the first container of a pod
        image = document.find_document(*image_path)
        if image and (wrong := versions.wrong_image(str(image))):
            yield document.fault(image_path, wrong)
    yield from _group_faults(document)


def _group_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of the groups' fields."""
    head, *workers = _group_paths(document)
    if not workers:
        rule = "must have at least one group of workers; copy that of the template"
        yield document.fault((*_base(document), "workerGroupSpecs"), rule)
    required = {head: HEAD_FIELDS} | dict.fromkeys(workers, WORKER_FIELDS)
    for path, fields in required.items():
        if not isinstance(document.find_document(*path), dict):
            yield document.fault(path, "must be a mapping; copy that of the template")
            continue
        yield from _misspelt(document, path, GROUP)
        for name in fields:
            if document.find_document(*path, name) is None:
                yield document.fault((*path, name), "is missing; add it")
        for name in ("replicas", "minReplicas", "maxReplicas"):
            count = document.find_document(*path, name)
            if count is not None and (not isinstance(count, int) or count < 0):
                yield document.fault((*path, name), f"must be a non-negative integer, got {count}; correct it")
        container = (*path, "template", "spec", "containers", 0)
        for name in ("image", "resources"):
            if document.find_document(*container, name) is None:
                yield document.fault((*container, name), "is missing; add it")
        limit, request = (
            document.find_document(*container, "resources", kind, "nvidia.com/gpu") for kind in ("limits", "requests")
        )
        if request is not None and request != limit:
            rule = f"must be equal to the limit {limit}, as Kubernetes requires for GPUs, got {request}; write {limit}"
            yield document.fault((*container, "resources", "requests", "nvidia.com/gpu"), rule)


def _misspelt(document: ClusterDocument, path: KeyPath, known: tuple[str, ...]) -> Iterator[Fault]:
    """Yield unknown fields that resemble a known one. Other unknown fields may be of a newer version of the operator."""
    fields = document.find_document(*path)
    for name in fields if isinstance(fields, dict) else ():
        if name not in known and (meant := did_you_mean(str(name), known)):
            yield document.fault((*path, str(name)), f"unknown field{meant}")


def overrides_of(document: ClusterDocument) -> tuple[str, ...] | None:
    """Return the key=value overrides in the entrypoint of a RayJob, or None if the entrypoint does not run raycap."""
    entrypoint = document.find_document("spec", "entrypoint")
    if not isinstance(entrypoint, str) or "raycap" not in entrypoint:
        return None
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    return tuple(word for word in words if "=" in word and not word.startswith("-"))
