"""What is wrong with a KubeRay manifest: a RayJob or RayCluster, by what the operator, Ray's autoscaler and raycap need."""

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
JOB = ("entrypoint", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
       "submissionMode", "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "submitterPodTemplate", "suspend",
       "entrypointNumCpus", "entrypointNumGpus", "metadata", "jobId", "managedBy", "deletionStrategy")  # fmt: skip
CLUSTER = ("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs", "suspend",
           "gcsFaultToleranceOptions", "authOptions", "managedBy", "headServiceAnnotations")  # fmt: skip
GROUP = ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "suspend",
         "idleTimeoutSeconds", "scaleStrategy", "resources", "labels", "serviceType", "headService")  # fmt: skip
WORKERS_NEED = ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template")
MACHINE_TYPE = "node.kubernetes.io/instance-type"


def is_kuberay(document: ClusterDocument) -> bool:
    """Whether a document is for the operator."""
    return str(document.find_document("apiVersion")).startswith("ray.io/")


def cluster_of(document: ClusterDocument) -> Cluster:
    """The pods that it describes, as far as it can be understood."""
    base = _base(document)
    workers = document.find_document(*base, "workerGroupSpecs")
    places: list[KeyPath] = [(*base, "headGroupSpec")]
    places += [(*base, "workerGroupSpecs", index) for index in range(len(workers) if isinstance(workers, list) else 0)]
    groups = tuple(_group(document, place, is_head=index == 0) for index, place in enumerate(places))
    return Cluster(document, groups, sum(group.max_count for group in groups))


def _base(document: ClusterDocument) -> tuple[str, ...]:
    return KINDS.get(str(document.find_document("kind")), ("spec",))


def _group(document: ClusterDocument, place: KeyPath, *, is_head: bool) -> NodeGroup:
    pod = document.find_document(*place, "template", "spec")
    wishes = json.dumps([find_document(pod, name) for name in ("nodeSelector", "affinity")], default=str).lower()
    resources = _resources(document.find_document(*place), is_head=is_head)
    selector = find_document(pod, "nodeSelector")
    machine_type = selector.get(MACHINE_TYPE) if isinstance(selector, dict) else None
    count = document.find_document(*place, "maxReplicas")
    limits: KeyPath = (*place, "template", "spec", "containers", 0, "resources", "limits")
    return NodeGroup(
        name="head" if is_head else str(document.find_document(*place, "groupName")),
        place=place,
        cpus_at=(*place, "rayStartParams", "num-cpus") if is_head else (*limits, "cpu"),
        gpus_at=(*limits, "nvidia.com/gpu"),
        market=(*place, "template", "spec", "nodeSelector"),
        is_head=is_head,
        cpus=resources.get("CPU"),
        gpus=resources.get("GPU", 0),
        max_count=count if isinstance(count, int) and not is_head else 0,
        machine_type=machine_type,
        is_spot="spot" in wishes,
        spot="the nodeSelector of your cloud's spot nodes",
        reaches=frozenset({"s3", "gs", "gcs"} if find_document(pod, "serviceAccountName") else ()),
    )


def _resources(group: Any, *, is_head: bool) -> dict[str, int]:
    """CPUs and GPUs of a pod, as Ray's autoscaler reads them; nothing where it cannot."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)
    if is_head and find_document(group, "rayStartParams", "num-cpus") is None:
        return {}
    try:
        found: dict[str, int] = _get_ray_resources_from_group_spec(group, is_head)
    except Exception:  # whatever is wrong with it is told by its own rule
        return {}
    return found


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """All that is wrong with the manifest by itself, but for its groups of pods."""
    kind = str(document.find_document("kind"))
    if kind not in KINDS:
        rule = f"must be one of {', '.join(KINDS)}, got {kind}; take the template's RayJob"
        yield document.fault(("kind",), rule)
        return
    base = _base(document)
    yield from _misspelt(document, ("spec",), JOB if kind == "RayJob" else CLUSTER)
    if kind == "RayJob":
        yield from _misspelt(document, base, CLUSTER)
        if not document.find_document("spec", "entrypoint"):
            rule = "is missing; write what the job runs: python -m raycap.sweep SPEC storage=s3://... tracking.uri=http://..."
            yield document.fault(("spec", "entrypoint"), rule)
    if document.find_document(*base, "enableInTreeAutoscaling") is not True:
        rule = "must be true, or GPU pods never come, or never go; write true"
        yield document.fault((*base, "enableInTreeAutoscaling"), rule)
    version = document.find_document(*base, "rayVersion")
    if version != versions.ray:
        rule = f"must be this environment's Ray {versions.ray}, got {version}; write {versions.ray}"
        yield document.fault((*base, "rayVersion"), rule)
    for place, image in _images(document, base):
        if wrong := versions.wrong_image(image):
            yield document.fault(place, wrong)
    yield from _group_faults(document, base)


def _images(document: ClusterDocument, base: KeyPath) -> list[tuple[KeyPath, str]]:
    """Of Ray's containers, which are the first of their pods."""
    ending = ("template", "spec", "containers", 0, "image")
    workers = document.find_document(*base, "workerGroupSpecs")
    places: list[KeyPath] = [(*base, "headGroupSpec", *ending)]
    for index in range(len(workers) if isinstance(workers, list) else 0):
        places.append((*base, "workerGroupSpecs", index, *ending))
    return [(place, str(document.find_document(*place))) for place in places if document.find_document(*place)]


def _group_faults(document: ClusterDocument, base: KeyPath) -> Iterator[Fault]:
    workers = document.find_document(*base, "workerGroupSpecs")
    needed: dict[KeyPath, tuple[str, ...]] = {(*base, "headGroupSpec"): ("rayStartParams", "template")}
    if not isinstance(workers, list) or not workers:
        yield document.fault(
            (*base, "workerGroupSpecs"), "must list at least one group of workers; take the template's"
        )
        workers = []
    for index in range(len(workers)):
        needed[*base, "workerGroupSpecs", index] = WORKERS_NEED
    for place, fields in needed.items():
        if not isinstance(document.find_document(*place), dict):
            yield document.fault(place, "must be a mapping; take the template's")
            continue
        yield from _misspelt(document, place, GROUP)
        for name in fields:
            if document.find_document(*place, name) is None:
                yield document.fault((*place, name), "is missing; add it")
        for name in ("replicas", "minReplicas", "maxReplicas"):
            count = document.find_document(*place, name)
            if count is not None and (not isinstance(count, int) or count < 0):
                yield document.fault((*place, name), f"must be a whole number, got {count}; correct it")
        container = (*place, "template", "spec", "containers", 0)
        for name in ("image", "resources"):
            if document.find_document(*container, name) is None:
                yield document.fault((*container, name), "is missing; add it")
        limit, request = (
            document.find_document(*container, "resources", kind, "nvidia.com/gpu") for kind in ("limits", "requests")
        )
        if request is not None and request != limit:
            rule = f"Kubernetes asks for as many as the limit, got {request} against {limit}; make them equal"
            yield document.fault((*container, "resources", "requests", "nvidia.com/gpu"), rule)


def _misspelt(document: ClusterDocument, place: KeyPath, known: tuple[str, ...]) -> Iterator[Fault]:
    """Fields unlike any known; the operator grows, so what resembles none is taken for new."""
    fields = document.find_document(*place)
    for name in fields if isinstance(fields, dict) else ():
        if name not in known and (meant := did_you_mean(str(name), known)):
            yield document.fault((*place, str(name)), f"unknown field{meant}")


def overrides_of(document: ClusterDocument) -> tuple[str, ...] | None:
    """The key=value overrides that a RayJob's entrypoint runs raycap with; None if it runs something else."""
    entrypoint = document.find_document("spec", "entrypoint")
    if not isinstance(entrypoint, str) or "raycap" not in entrypoint:
        return None
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    return tuple(word for word in words if "=" in word and not word.startswith("-"))
