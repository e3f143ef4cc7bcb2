"""Reads files for `ray up`, and finds faults by Ray's schema, by EC2's API, and by what raycap needs."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault, find_document
from raycap.cluster.cloud.groups import Cluster, NodeGroup
from raycap.cluster.cloud.versions import Versions
from raycap.spec.document import did_you_mean
from raycap.spec.yaml_tree import KeyPath

REQUIRED_KEYS = ("max_workers", "available_node_types", "head_node_type", "setup_commands", "head_start_ray_commands",
            "worker_start_ray_commands")  # fmt: skip
"""Keys that must be given, because Ray's defaults for them are unsuitable: few machines, an image of 2018, a nightly Ray."""
SETUP_KEYS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
# Messages of botocore.validate.
UNKNOWN = re.compile(r'Unknown parameter in (?P<where>[^:]*): "(?P<name>[^"]*)", must be one of: (?P<known>.*)')
MISSING = re.compile(r'Missing required parameter in (?P<where>[^:]*): "(?P<name>[^"]*)"')
WRONG_TYPE = re.compile(
    r"Invalid type for parameter (?P<where>[^,]*), value: (?P<got>.*), type: .*, valid types: (?P<types>.*)"
)
START_OPTIONS = {
    "head_start_ray_commands": {
        "--head": "which starts the cluster",
        "--autoscaling-config": "without which no worker machine is started",
    },
    "worker_start_ray_commands": {"--address": "without which workers do not join the head"},
}
"""Options that `ray start` must have in each list of commands, with the reasons."""
MARKET_PATHS = {"aws": ("InstanceMarketOptions",), "gcp": ("scheduling",)}
IMAGE_PATHS = {"aws": ("ImageId",), "gcp": ("disks", 0, "initializeParams", "sourceImage")}


def cluster_of(document: ClusterDocument) -> Cluster:
    """Return the groups of machines in a file. Invalid parts count as missing; `faults_of` reports them."""
    provider, head = _text(document.find_document("provider", "type")), document.find_document("head_node_type")
    max_machines = _integer(document.find_document("max_workers")) or 0
    groups = []
    for name, node_type in _node_types(document).items():
        path = ("available_node_types", str(name))
        node = find_document(node_type, "node_config")
        count = _integer(find_document(node_type, "max_workers"))
        groups.append(
            NodeGroup(
                name=str(name),
                path=path,
                cpus_path=(*path, "resources", "CPU"),
                gpus_path=(*path, "resources", "GPU"),
                market_path=(*path, "node_config", *MARKET_PATHS.get(provider or "", ())),
                is_head=name == head,
                cpus=_integer(find_document(node_type, "resources", "CPU")),
                gpus=_integer(find_document(node_type, "resources", "GPU")),
                max_count=min(max_machines, max_machines if count is None else count),
                **(_on_aws(node) if provider == "aws" else _on_gcp(node) if provider == "gcp" else {}),
            )
        )
    return Cluster(document, tuple(groups), max_machines)


def _node_types(document: ClusterDocument) -> dict[str, Any]:
    """Return the descriptions of the machines by name of the group; empty if they are not a mapping."""
    types = document.find_document("available_node_types")
    return types if isinstance(types, dict) else {}


def _on_aws(node: Any) -> dict[str, Any]:
    """Return the fields of a NodeGroup that depend on the provider."""
    return {
        "machine_type": _text(find_document(node, "InstanceType")),
        "is_spot": find_document(node, "InstanceMarketOptions", "MarketType") == "spot",
        "spot_setting": "InstanceMarketOptions: { MarketType: spot }",
        "reaches": frozenset({"s3"} if find_document(node, "IamInstanceProfile") else ()),
    }


def _on_gcp(node: Any) -> dict[str, Any]:
    """Return the fields of a NodeGroup that depend on the provider."""
    scheduling = find_document(node, "scheduling")
    settings = scheduling if isinstance(scheduling, list) else [scheduling]  # Ray's examples have a list here
    accelerators = find_document(node, "guestAccelerators")
    accelerators = accelerators if isinstance(accelerators, list) else []
    return {
        "machine_type": _text(find_document(node, "machineType")),
        "num_accelerators": sum(_integer(find_document(one, "acceleratorCount")) or 0 for one in accelerators),
        "is_spot": any(
            find_document(one, "provisioningModel") == "SPOT" or find_document(one, "preemptible") is True
            for one in settings
        ),
        "spot_setting": "scheduling: { provisioningModel: SPOT }",
        "reaches": frozenset({"gs", "gcs"} if find_document(node, "serviceAccounts") else ()),
    }


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """Yield the faults of a file, except those that `Cluster.faults` finds."""
    schema_faults = list(_schema_faults(document))
    yield from schema_faults
    yield from _missing_keys(document)
    yield from _start_faults(document)
    yield from _version_faults(document, versions)
    provider = _text(document.find_document("provider", "type"))
    zone, region = document.find_document("provider", "availability_zone"), document.find_document("provider", "region")
    if isinstance(zone, str) and isinstance(region, str) and not all(z.startswith(region) for z in zone.split(",")):
        yield document.fault(
            ("provider", "availability_zone"),
            f"must be a zone of the region {region}, got {zone}; correct one of the two",
        )
    for name in _node_types(document):
        path = ("available_node_types", str(name), "node_config")
        if provider in IMAGE_PATHS and not document.find_document(*path, *IMAGE_PATHS[provider]):
            rule = "is missing, so that Ray would use an image of its own; the template has the command that finds one"
            yield document.fault((*path, *IMAGE_PATHS[provider]), rule)
        if provider == "aws":
            yield from _ec2_faults(document, path)
    if not schema_faults:
        yield from _validation_faults(document)


def _schema_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield all violations of Ray's schema. (Ray itself reports only the first.)"""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document.tree):
        path: KeyPath = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", ()))
            for name in set(error.instance) - set(known):
                yield document.fault((*path, name), f"unknown field{did_you_mean(name, known) or '; remove it'}")
        elif error.validator == "required":
            missing = re.sub(r"^'(.*)' is a required property$", r"\1", error.message)
            yield document.fault((*path, missing), "is missing; add it")
        elif error.validator == "type":
            yield document.fault(
                path, f"must be of type {error.validator_value}, got {json.dumps(error.instance)}; correct it"
            )
        else:
            yield document.fault(path, f"{error.message}; correct it")


def _validation_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the error of Ray's own validation, if any, which has rules beyond the schema. `ray up` runs it first."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(json.loads(json.dumps(document.tree))))
    except Exception as error:  # validation raises exceptions of many types
        yield document.fault((), f"Ray rejects the file: {error}; correct it")


def _missing_keys(document: ClusterDocument) -> Iterator[Fault]:
    for name in REQUIRED_KEYS:
        if document.find_document(name) is None:
            yield document.fault(
                (name,), "is missing, so that Ray would use its own default; copy that of the template"
            )


def _start_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield faults of the commands that start Ray: without these options, trials wait forever for machines."""
    for name, options in START_OPTIONS.items():
        commands = document.find_document(name)
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
    return [(path, image) for path in paths if isinstance(image := document.find_document(*path), str)]


def _commands(document: ClusterDocument) -> list[tuple[KeyPath, str]]:
    """Return all setup commands with their paths."""
    paths: list[KeyPath] = [(name,) for name in SETUP_KEYS]
    for name in _node_types(document):
        paths += [("available_node_types", str(name), kind) for kind in SETUP_KEYS]
    lists = [(path, commands) for path in paths if isinstance(commands := document.find_document(*path), list)]
    return [
        ((*path, index), command)
        for path, commands in lists
        for index, command in enumerate(commands)
        if isinstance(command, str)
    ]


def _ec2_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the fields of a node_config that EC2's API rejects; nothing if botocore is not installed."""
    from raycap.cluster.cloud.ec2 import market_types, run_instances_faults

    node = document.find_document(*path)
    if not isinstance(node, dict):
        return
    for report in run_instances_faults(node):
        if found := UNKNOWN.fullmatch(report):
            below = (*path, *_parse_path(found["where"]), found["name"])
            hint = did_you_mean(found["name"], found["known"].split(", ")) or "; remove it"
            yield document.fault(below, f"unknown to EC2{hint}")
        elif found := MISSING.fullmatch(report):
            yield document.fault(
                (*path, *_parse_path(found["where"]), found["name"]), "is missing and EC2 requires it; add it"
            )
        elif found := WRONG_TYPE.fullmatch(report):
            types = re.sub(r"<class '(\w+)'>", r"\1", found["types"])
            rule = f"must be of type {types} for EC2, got {found['got']}; correct it"
            yield document.fault((*path, *_parse_path(found["where"])), rule)
        else:
            yield document.fault(path, f"{report}; correct it")
    market = find_document(node, "InstanceMarketOptions", "MarketType")
    known = market_types()
    if "InstanceMarketOptions" in node and known and market not in known:
        where = (*path, "InstanceMarketOptions", "MarketType")
        yield document.fault(where, f"must be one of {', '.join(known)}, got {market}; write spot for spot machines")


def _parse_path(where: str) -> KeyPath:
    """Parse a path as botocore writes it: BlockDeviceMappings[0].Ebs, or `input` for the root."""
    if where == "input":
        return ()
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", where))


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
