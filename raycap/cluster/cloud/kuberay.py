"""KubeRay manifests: their groups of pods, and faults by KubeRay's schema, its operator's rules and raycap's needs."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import yaml

from raycap.cluster.cloud.document import ClusterDocument, Fault, value_at
from raycap.cluster.cloud.groups import Cluster, NodeGroup
from raycap.cluster.cloud.kubernetes import (
    DNS_1035_LABEL,
    NameRule,
    kuberay_schema,
    label_faults,
    metadata_faults,
    name_fault,
    pod_faults,
    unique,
)
from raycap.cluster.cloud.schema import choice_rule, schema_faults, shown
from raycap.cluster.cloud.versions import Versions
from raycap.spec.yaml_reader import KeyPath

RUN_PATH: KeyPath = ("spec", "entrypoint")
"""Path of the command that runs the sweep in a RayJob."""
KINDS = {"RayJob": ("spec", "rayClusterSpec"), "RayCluster": ("spec",)}
"""Path of the cluster's description in each kind of document."""
API_VERSION = "ray.io/v1"
MAX_NAME_LENGTH = {"RayCluster": 53, "RayJob": 47}
"""KubeRay derives the names of services and jobs from these names, and refuses longer ones."""
GROUP_NAME = NameRule(
    re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?"),
    63,
    "letters, digits, '-' and '.', with none of these two at the ends",
)
"""KubeRay converts names of groups to lower case in names of pods."""
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
"""Parameters of `ray start` that the field resources of a group replaces."""
UNLIMITED = 2**31 - 1
"""The default of maxReplicas."""
METADATA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("name", "generateName", "namespace")},
        **{name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")},
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array"},
        **{
            name: {}
            for name in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink")
        },
    },
    "additionalProperties": False,
}
"""Schema of the metadata of a document, which a CRD does not contain."""
MACHINE_TYPE = "node.kubernetes.io/instance-type"


def is_kuberay(document: ClusterDocument) -> bool:
    """Whether a document is for the KubeRay operator."""
    return str(document.value_at("apiVersion")).startswith("ray.io/")


def cluster_of(document: ClusterDocument) -> Cluster:
    """Return the groups of pods in a manifest. Invalid parts count as missing; `faults_of` reports them."""
    head, *workers = _group_paths(document)
    groups = (_group(document, head, is_head=True), *(_group(document, path, is_head=False) for path in workers))
    return Cluster(
        document,
        groups,
        sum(group.max_count for group in groups),
        run_path=RUN_PATH if document.value_at("kind") == "RayJob" else None,
        tracking_example="tracking.uri=http://mlflow:5000 for the server that the template starts",
    )


def _base(document: ClusterDocument) -> tuple[str, ...]:
    """Return the path of the cluster's description."""
    kind = "RayJob" if document.value_at("spec", "rayClusterSpec") else "RayCluster"
    return KINDS.get(str(document.value_at("kind")), KINDS[kind])


def _group_paths(document: ClusterDocument) -> list[KeyPath]:
    """Return the paths of the head's group, which may be missing, and of all groups of workers."""
    base = _base(document)
    workers = document.value_at(*base, "workerGroupSpecs")
    paths: list[KeyPath] = [(*base, "headGroupSpec")]
    paths += [(*base, "workerGroupSpecs", index) for index in range(len(workers) if isinstance(workers, list) else 0)]
    return paths


def _group(document: ClusterDocument, path: KeyPath, *, is_head: bool) -> NodeGroup:
    pod = document.value_at(*path, "template", "spec")
    # Each cloud has its own label for spot nodes: capacityType: SPOT, gke-spot, kubernetes.azure.com/scalesetpriority: spot.
    scheduling = json.dumps([value_at(pod, name) for name in ("nodeSelector", "affinity")], default=str).lower()
    cpus, gpus = (_read(name, document.value_at(*path), is_head=is_head) for name in ("CPU", "GPU"))
    selector = value_at(pod, "nodeSelector")
    machine_type = selector.get(MACHINE_TYPE) if isinstance(selector, dict) else None
    count = document.value_at(*path, "maxReplicas")
    limits: KeyPath = (*path, "template", "spec", "containers", 0, "resources", "limits")
    return NodeGroup(
        name="head" if is_head else str(document.value_at(*path, "groupName")),
        path=path,
        cpus_path=(*path, "rayStartParams", "num-cpus") if is_head else (*limits, "cpu"),
        gpus_path=(*limits, "nvidia.com/gpu"),
        market_path=(*path, "template", "spec", "nodeSelector"),
        is_head=is_head,
        cpus=cpus,
        gpus=gpus or 0,
        max_count=0 if is_head else count if isinstance(count, int) else UNLIMITED if count is None else 0,
        machine_type=machine_type,
        is_spot="spot" in scheduling,
        spot_setting="the nodeSelector of your cloud's spot nodes",
        # The account's permissions are known only to the cloud, so any account counts as access to buckets.
        reaches=frozenset({"s3", "gs", "gcs"} if value_at(pod, "serviceAccountName") else ()),
    )


def _read(name: str, group: Any, *, is_head: bool) -> int | None:
    """Return the CPUs or GPUs of a pod as Ray's autoscaler reads them; None if they are invalid or not stated."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)
    resources, parameters = (value_at(group, key) or {} for key in ("resources", "rayStartParams"))
    container = value_at(group, "template", "spec", "containers", 0, "resources") or {}
    stated = [value_at(parameters, "num-cpus"), value_at(resources, "CPU")]
    if is_head and name == "CPU" and stated == [None, None]:
        return None  # Ray would take the CPUs of the container
    read = {"CPU": autoscaling_config._get_num_cpus, "GPU": autoscaling_config._get_num_gpus}[name]
    try:
        number: int | None = read(resources, parameters, container, "group")
    except Exception:  # rules for the single fields report the fault
        return None
    return number if number is None or number <= UNLIMITED else None


def _schema(kind: str) -> dict[str, Any]:
    """Return the schema of a document of this kind: KubeRay's for its spec, and that of metadata."""
    properties = {"apiVersion": {"enum": [API_VERSION]}, "kind": {"enum": [kind]}, "metadata": METADATA, "status": {}}
    properties["spec"] = {"$ref": f"#/$defs/{kind}"}
    document = {"type": "object", "properties": properties, "required": ["metadata", "spec"]}
    return kuberay_schema() | document | {"additionalProperties": False}


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of a manifest, except those that `Cluster.faults` finds."""
    kind = str(document.value_at("kind"))
    if kind not in KINDS:
        yield document.fault(("kind",), choice_rule(kind, tuple(KINDS)))
        return
    yield from schema_faults(document, _schema(kind))
    yield from _name_faults(document, kind)
    yield from metadata_faults(document)
    if kind == "RayJob":
        yield from _job_faults(document)
    yield from _cluster_faults(document, _base(document), versions)


def _name_faults(document: ClusterDocument, kind: str) -> Iterator[Fault]:
    """Yield the faults of the name of a document."""
    names = [name for name in ("name", "generateName") if document.value_at("metadata", name)]
    if not names and isinstance(document.value_at("metadata"), dict):
        yield document.fault(("metadata", "name"), "is missing; write name: raycap")
    yield from name_fault(document, ("metadata", "name"), DNS_1035_LABEL._replace(max_length=MAX_NAME_LENGTH[kind]))


def _job_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of a job by the rules of KubeRay's operator, and a missing entrypoint."""

    def of(name: str) -> Any:
        return document.value_at("spec", name)

    if not of("entrypoint"):
        rule = "is missing; write the command of the job: python -m raycap.sweep SPEC storage=s3://... tracking.uri=http://..."
        yield document.fault(("spec", "entrypoint"), rule)
    if not of("rayClusterSpec"):
        rule = (
            "is missing; describe the cluster here, as the template does: raycap does not check a cluster that exists"
        )
        yield document.fault(("spec", "rayClusterSpec"), rule)
    mode = of("submissionMode")
    if isinstance(mode, str) and mode not in SUBMISSION_MODES:
        yield document.fault(("spec", "submissionMode"), choice_rule(mode, SUBMISSION_MODES))
    for name, least in {
        "ttlSecondsAfterFinished": 0,
        "backoffLimit": 0,
        "activeDeadlineSeconds": 1,
        "preRunningDeadlineSeconds": 1,
    }.items():
        yield from _at_least(document, ("spec", name), least)
    shuts_down = of("shutdownAfterJobFinishes") is True
    if of("suspend") is True and not shuts_down:
        rule = "must be true for a job that may be suspended, got false; write true, or remove suspend"
        yield document.fault(("spec", "shutdownAfterJobFinishes"), rule)
    if isinstance(seconds := of("ttlSecondsAfterFinished"), int) and seconds > 0 and not shuts_down:
        rule = f"requires shutdownAfterJobFinishes: true, got {seconds}; write true there, or remove this"
        yield document.fault(("spec", "ttlSecondsAfterFinished"), rule)
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig"):
            if of(name) is not None:
                yield document.fault(("spec", name), "is not supported in SidecarMode; remove it, or the mode")
    if mode == "InteractiveMode" and isinstance(limit := of("backoffLimit"), int) and limit > 0:
        yield document.fault(("spec", "backoffLimit"), f"must be 0 in InteractiveMode, got {limit}; write 0")
    if isinstance(of("submitterPodTemplate"), dict):
        yield from pod_faults(document, ("spec", "submitterPodTemplate"))
    if isinstance(text := of("runtimeEnvYAML"), str):
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError as error:
            parsed = " ".join(str(error).split())
        if parsed is not None and not isinstance(parsed, dict):
            yield document.fault(
                ("spec", "runtimeEnvYAML"), f"must be YAML of a mapping, got {shown(parsed)}; correct it"
            )


def _cluster_faults(document: ClusterDocument, base: KeyPath, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of the description of the cluster by the rules of KubeRay's operator and of raycap."""
    if not isinstance(document.value_at(*base), dict):
        return
    if (autoscaling := document.value_at(*base, "enableInTreeAutoscaling")) in (None, False):
        rule = f"must be true, got {shown(autoscaling)}; write true: otherwise no GPU pod is started or stopped"
        yield document.fault((*base, "enableInTreeAutoscaling"), rule)
    version = document.value_at(*base, "rayVersion")
    if str(version) != versions.ray:
        rule = f"must be this environment's Ray {versions.ray}, got {shown(version)}; write {versions.ray}"
        yield document.fault((*base, "rayVersion"), rule)
    yield from _at_least(document, (*base, "autoscalerOptions", "idleTimeoutSeconds"), 0)
    head, *workers = _group_paths(document)
    if not workers:
        rule = "must have at least one group of workers; copy that of the template"
        yield document.fault((*base, "workerGroupSpecs"), rule)
    names: dict[str, KeyPath] = {}
    for path in [head, *workers]:
        if isinstance(document.value_at(*path), dict):
            yield from _group_faults(document, path, versions)
            yield from _worker_faults(document, path, names) if path != head else ()


def _group_faults(document: ClusterDocument, path: KeyPath, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of a group of pods."""
    base, template = _base(document), (*path, "template")
    yield from pod_faults(document, template)
    image_path = (*template, "spec", "containers", 0, "image")  # Ray runs in the first container of a pod
    image = document.value_at(*image_path)
    if image is None:
        yield document.fault(image_path, f"is missing; write the image of the Dockerfile, with the tag {versions.tag}")
    elif wrong := versions.wrong_image(str(image)):
        yield document.fault(image_path, wrong)
    yield from label_faults(document, (*path, "labels"))
    parameters = document.value_at(*path, "rayStartParams")
    given = [name for name in RESOURCE_PARAMETERS if value_at(parameters, name)]
    if given and document.value_at(*path, "resources"):
        rule = f"must not be given together with rayStartParams.{given[0]}; remove one of the two"
        yield document.fault((*path, "resources"), rule)
    if isinstance(parameters, dict) and "labels" in parameters:
        rule = "is not supported; write the labels in the field labels of the group"
        yield document.fault((*path, "rayStartParams", "labels"), rule)
    for name in ("num-cpus", "num-gpus", "memory"):
        value = value_at(parameters, name)
        if isinstance(value, str) and not re.fullmatch(r"\d+", value):
            rule = f"must be a whole number in quotes, got {shown(value)}; correct it"
            yield document.fault((*path, "rayStartParams", name), rule)
    restart = document.value_at(*template, "spec", "restartPolicy")
    uses_v2 = document.value_at(*base, "autoscalerOptions", "version") == "v2"
    if uses_v2 and restart not in (None, "Never"):
        rule = f"must be Never with version v2 of the autoscaler, got {shown(restart)}; write Never"
        yield document.fault((*template, "spec", "restartPolicy"), rule)


def _worker_faults(document: ClusterDocument, path: KeyPath, names: dict[str, KeyPath]) -> Iterator[Fault]:
    """Yield the faults of a group of workers; `names` has the paths of the names of earlier groups."""
    yield from unique(document, (*path, "groupName"), names)
    yield from name_fault(document, (*path, "groupName"), GROUP_NAME)
    counts = {}
    for name, least in {
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": 0,
        "idleTimeoutSeconds": 0,
        "numOfHosts": 1,
    }.items():
        yield from _at_least(document, (*path, name), least)
        counts[name] = value if isinstance(value := document.value_at(*path, name), int) else None
    fewest, most, initial = counts["minReplicas"] or 0, counts["maxReplicas"], counts["replicas"]
    if most is not None and 0 <= most < fewest:
        rule = f"must be at most maxReplicas {most}, got {fewest}; lower it, or raise maxReplicas"
        yield document.fault((*path, "minReplicas"), rule)
    elif most is not None and most >= 0 and initial is not None and initial >= 0 and not fewest <= initial <= most:
        rule = f"must be between minReplicas {fewest} and maxReplicas {most}, got {initial}; write {fewest}"
        yield document.fault((*path, "replicas"), rule)
    uses_v2 = document.value_at(*_base(document), "autoscalerOptions", "version") == "v2"
    if counts["idleTimeoutSeconds"] is not None and not uses_v2:
        rule = "requires autoscalerOptions.version: v2; write it there, or use autoscalerOptions.idleTimeoutSeconds"
        yield document.fault((*path, "idleTimeoutSeconds"), rule)
    if document.value_at(*path, "suspend") is True:
        yield document.fault((*path, "suspend"), "must not be true with the autoscaler; remove it")
    if not _states_cpus(document.value_at(*path)):
        rule = "must state the CPUs of the pod, from which the autoscaler computes how many pods it starts"
        limits = (*path, "template", "spec", "containers", 0, "resources", "limits", "cpu")
        yield document.fault(limits, f"{rule}; write cpu: 7, or what a node can give to a pod")


def _states_cpus(group: Any) -> bool:
    resources = value_at(group, "template", "spec", "containers", 0, "resources")
    stated = [value_at(resources, kind, "cpu") for kind in ("limits", "requests")]
    stated += [value_at(group, "rayStartParams", "num-cpus"), value_at(group, "resources", "CPU")]
    return any(value is not None for value in stated)


def _at_least(document: ClusterDocument, path: KeyPath, least: int) -> Iterator[Fault]:
    value = document.value_at(*path)
    if isinstance(value, int) and value < least:
        yield document.fault(path, f"must be at least {least}, got {value}; write {least} or more")
