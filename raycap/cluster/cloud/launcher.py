"""Files for `ray up`: their groups of machines, and faults by Ray's schema, the clouds' APIs and raycap's needs."""

import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from raycap.cluster.cloud import ec2, gce
from raycap.cluster.cloud.document import ClusterDocument, Fault, value_at
from raycap.cluster.cloud.groups import Cluster, NodeGroup
from raycap.cluster.cloud.schema import choice_rule, schema_faults
from raycap.cluster.cloud.versions import Versions
from raycap.spec.document import did_you_mean
from raycap.spec.yaml_reader import KeyPath

REQUIRED_COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
REQUIRED_KEYS = ("max_workers", "available_node_types", "head_node_type", *REQUIRED_COMMANDS)
"""Keys that must be given, because Ray's defaults for them are unsuitable: few machines, an image of 2018, a nightly Ray."""
SETUP_KEYS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
START_OPTIONS = {
    "head_start_ray_commands": {
        "--head": "which starts the cluster",
        "--autoscaling-config": "without which no worker machine is started",
    },
    "worker_start_ray_commands": {"--address": "without which workers do not join the head"},
}
"""Options that `ray start` must have in each list of commands, with the reasons."""
PROVIDER_FIELDS = ("aws_credentials", "key_pair", "key_name", "use_external_head_ip", "_config_cache_path")
"""Fields of the provider that Ray reads although its schema does not list them."""
CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
MARKET_PATHS = {"aws": ("InstanceMarketOptions",), "gcp": ("scheduling",)}
IMAGE_PATHS = {"aws": ("ImageId",), "gcp": ("disks", 0, "initializeParams", "sourceImage")}


def cluster_of(document: ClusterDocument) -> Cluster:
    """Return the groups of machines in a file. Invalid parts count as missing; `faults_of` reports them."""
    if _is_local(document):
        return _local_cluster(document)
    provider, head = _text(document.value_at("provider", "type")), document.value_at("head_node_type")
    max_machines = _integer(document.value_at("max_workers")) or 0
    groups = []
    for name, node_type in _node_types(document).items():
        path = ("available_node_types", str(name))
        node = value_at(node_type, "node_config")
        count = _integer(value_at(node_type, "max_workers"))
        groups.append(
            NodeGroup(
                name=str(name),
                path=path,
                cpus_path=(*path, "resources", "CPU"),
                gpus_path=(*path, "resources", "GPU"),
                market_path=(*path, "node_config", *MARKET_PATHS.get(provider or "", ())),
                is_head=name == head,
                cpus=_integer(value_at(node_type, "resources", "CPU")),
                gpus=_integer(value_at(node_type, "resources", "GPU")),
                max_count=min(max_machines, max_machines if count is None else count),
                **(_on_aws(node) if provider == "aws" else _on_gcp(node) if provider == "gcp" else {}),
            )
        )
    return Cluster(document, tuple(groups), max_machines)


def _is_local(document: ClusterDocument) -> bool:
    """Whether the machines exist and are reached by SSH."""
    return bool(document.value_at("provider", "type") == "local")


def _local_cluster(document: ClusterDocument) -> Cluster:
    """Return the machines of a file for the provider local. All of them train, the head as well."""
    workers = document.value_at("provider", "worker_ips")
    number = 1 + (len(workers) if isinstance(workers, list) else 0)
    path: KeyPath = ("provider", "worker_ips")
    group = NodeGroup(
        name="machines",
        path=path,
        cpus_path=path,
        gpus_path=path,
        market_path=path,
        is_head=False,
        cpus=None,
        gpus=None,
        max_count=number,
        # Credentials of buckets are in the users' home folders, which the check cannot see.
        reaches=frozenset({"s3", "gs", "gcs"}),
        detects_size=True,
    )
    return Cluster(
        document,
        (group,),
        number,
        storage_example="storage=file:///FOLDER/runs for a folder that all machines share, or s3://BUCKET/raycap",
    )


def _node_types(document: ClusterDocument) -> dict[str, Any]:
    """Return the descriptions of the machines by name of the group; empty if they are not a mapping."""
    types = document.value_at("available_node_types")
    return types if isinstance(types, dict) else {}


def _on_aws(node: Any) -> dict[str, Any]:
    """Return the fields of a NodeGroup that depend on the provider."""
    return {
        "machine_type": _text(value_at(node, "InstanceType")),
        "is_spot": value_at(node, "InstanceMarketOptions", "MarketType") == "spot",
        "spot_setting": "InstanceMarketOptions: { MarketType: spot }",
        "reaches": frozenset({"s3"} if value_at(node, "IamInstanceProfile") else ()),
    }


def _on_gcp(node: Any) -> dict[str, Any]:
    """Return the fields of a NodeGroup that depend on the provider."""
    scheduling = value_at(node, "scheduling")
    settings = scheduling if isinstance(scheduling, list) else [scheduling]  # Ray's examples have a list here
    accelerators = value_at(node, "guestAccelerators")
    accelerators = accelerators if isinstance(accelerators, list) else []
    return {
        "machine_type": _text(value_at(node, "machineType")),
        "num_accelerators": sum(_integer(value_at(one, "acceleratorCount")) or 0 for one in accelerators),
        "is_spot": any(
            value_at(one, "provisioningModel") == "SPOT" or value_at(one, "preemptible") is True for one in settings
        ),
        "spot_setting": "scheduling: { provisioningModel: SPOT }",
        "reaches": frozenset({"gs", "gcs"} if value_at(node, "serviceAccounts") else ()),
    }


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of a file, except those that `Cluster.faults` finds."""
    violations = list(schema_faults(document, _ray_schema()))
    yield from violations
    yield from _missing_keys(document)
    yield from _start_faults(document)
    yield from _version_faults(document, versions)
    yield from _provider_faults(document)
    yield from _count_faults(document)
    if not violations:
        yield from _validation_faults(document)


def _provider_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield what the provider would refuse: regions and zones, names, and node configurations."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    provider = _text(document.value_at("provider", "type"))
    if provider is not None and provider not in _NODE_PROVIDERS:
        yield document.fault(("provider", "type"), choice_rule(provider, sorted(_NODE_PROVIDERS)))
    cloud = {"aws": ec2, "gcp": gce}.get(provider or "")
    if provider is None or cloud is None:
        return
    if document.value_at("provider", "region") is None:
        yield document.fault(("provider", "region"), f"is missing and the provider {provider} requires it; add it")
    settings = document.value_at("provider")
    known = [*_ray_schema()["properties"]["provider"]["properties"], *PROVIDER_FIELDS]
    for name in settings if isinstance(settings, dict) else ():
        if name not in known and (hint := did_you_mean(str(name), known)):
            yield document.fault(("provider", str(name)), f"unknown field{hint}")
    yield from cloud.provider_faults(document)
    for name in _node_types(document):
        path = ("available_node_types", str(name), "node_config")
        if not document.value_at(*path, *IMAGE_PATHS[provider]):
            rule = "is missing, so that Ray would use an image of its own; the template has the command that finds one"
            yield document.fault((*path, *IMAGE_PATHS[provider]), rule)
        yield from cloud.node_faults(document, path)


def _count_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield contradictions between numbers of machines, and names of resources that Ray does not know."""
    types = _node_types(document)
    head = document.value_at("head_node_type")
    if types and isinstance(head, str) and head not in types:
        names = tuple(map(str, types))
        yield document.fault(("head_node_type",), choice_rule(head, names))
    fewest_in_all = 0
    for name, node_type in types.items():
        path = ("available_node_types", str(name))
        fewest, most = (_integer(value_at(node_type, key)) for key in ("min_workers", "max_workers"))
        for key, count in {"min_workers": fewest, "max_workers": most}.items():
            if count is not None and count < 0:
                yield document.fault((*path, key), f"must be at least 0, got {count}; write 0 or more")
        if fewest is not None and most is not None and 0 <= most < fewest:
            rule = f"must be at most max_workers {most}, got {fewest}; lower it, or raise max_workers"
            yield document.fault((*path, "min_workers"), rule)
        fewest_in_all += fewest or 0
        resources = value_at(node_type, "resources")
        for key in resources if isinstance(resources, dict) else ():
            meant = next((one for one in RESOURCES if one.lower() == str(key).lower().rstrip("s")), None)
            if meant and key != meant:
                rule = f"is a resource that no trial requests, got {key}; write {meant}"
                yield document.fault((*path, "resources", str(key)), rule)
    most_in_all = _integer(document.value_at("max_workers"))
    if most_in_all is not None and fewest_in_all > most_in_all:
        rule = f"must be at least {fewest_in_all}, the sum of min_workers of all groups, got {most_in_all}"
        yield document.fault(("max_workers",), f"{rule}; raise it, or lower min_workers")


@cache
def _ray_schema() -> dict[str, Any]:
    import ray.autoscaler

    schema: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return schema


def _validation_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the error of Ray's own validation, if any, which has rules beyond the schema. `ray up` runs it first."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(json.loads(json.dumps(document.tree))))
    except Exception as error:  # validation raises exceptions of many types
        yield document.fault((), f"Ray rejects the file: {error}; correct it")


def _missing_keys(document: ClusterDocument) -> Iterator[Fault]:
    for name in REQUIRED_COMMANDS if _is_local(document) else REQUIRED_KEYS:
        if document.value_at(name) is None:
            yield document.fault(
                (name,), "is missing, so that Ray would use its own default; copy that of the template"
            )


def _start_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield faults of the commands that start Ray: without these options, trials wait forever for machines."""
    for name, options in START_OPTIONS.items():
        commands = document.value_at(name)
        starts = [one for one in commands if "ray start" in str(one)] if isinstance(commands, list) else []
        for option, reason in options.items():
            if commands is not None and not any(option in one for one in starts):
                yield document.fault(
                    (name,), f"must have a `ray start` with {option}, {reason}; add it as in the template"
                )


def _version_faults(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """Yield images and commands with other versions of Ray or Python, and the versions that nothing pins."""
    images, commands = _images(document), _commands(document)
    for path, image in images:
        if wrong := versions.wrong_image(image):
            yield document.fault(path, wrong)
    container = document.value_at("docker", "container_name")
    if isinstance(container, str) and not CONTAINER_NAME.fullmatch(container):
        rule = f"must have only letters, digits, '_', '.' and '-', got {container}; write raycap"
        yield document.fault(("docker", "container_name"), rule)
    for path, command in commands:
        for wrong in versions.wrong_command(command):
            yield document.fault(path, wrong)
    if images:
        return
    pins_ray, pins_python = versions.pinned_by([command for _, command in commands])
    if not pins_ray:
        rule = f"must pin Ray; use docker.image: rayproject/ray:{versions.tag}-gpu, or install ray=={versions.ray}"
        yield document.fault(("setup_commands",), rule)
    if not pins_python:
        rule = f"must pin Python; use docker.image: rayproject/ray:{versions.tag}-gpu, or python{versions.python}"
        yield document.fault(("setup_commands",), rule)


def _images(document: ClusterDocument) -> list[tuple[KeyPath, str]]:
    """Return the images of Ray's containers with their paths."""
    paths: list[KeyPath] = [("docker", name) for name in ("image", "head_image", "worker_image")]
    for name in _node_types(document):
        paths.append(("available_node_types", str(name), "docker", "worker_image"))
    return [(path, image) for path in paths if isinstance(image := document.value_at(*path), str)]


def _commands(document: ClusterDocument) -> list[tuple[KeyPath, str]]:
    """Return all setup commands with their paths."""
    paths: list[KeyPath] = [(name,) for name in SETUP_KEYS]
    for name in _node_types(document):
        paths += [("available_node_types", str(name), kind) for kind in SETUP_KEYS]
    lists = [(path, commands) for path in paths if isinstance(commands := document.value_at(*path), list)]
    return [
        ((*path, index), command)
        for path, commands in lists
        for index, command in enumerate(commands)
        if isinstance(command, str)
    ]


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
