"""What is wrong with a file for `ray up`: by Ray's schema, by EC2's, and by what raycap needs."""

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
"""What Ray fills in with defaults of its own: few machines, an image of 2018, a nightly Ray."""
SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
UNKNOWN = re.compile(r'Unknown parameter in (?P<where>[^:]*): "(?P<name>[^"]*)", must be one of: (?P<known>.*)')
MISSING = re.compile(r'Missing required parameter in (?P<where>[^:]*): "(?P<name>[^"]*)"')
OF_A_TYPE = re.compile(
    r"Invalid type for parameter (?P<where>[^,]*), value: (?P<got>.*), type: .*, valid types: (?P<types>.*)"
)
STARTS = {
    "head_start_ray_commands": {
        "--head": "so that others find it",
        "--autoscaling-config": "without which no machine ever comes",
    },
    "worker_start_ray_commands": {"--address": "so that it finds the head"},
}
"""How commands must start Ray, and why."""
MARKETS = {"aws": ("InstanceMarketOptions",), "gcp": ("scheduling",)}
IMAGES = {"aws": ("ImageId",), "gcp": ("disks", 0, "initializeParams", "sourceImage")}


def cluster_of(document: ClusterDocument) -> Cluster:
    """The machines that it describes, as far as it can be understood."""
    provider, head = _text(document.find_document("provider", "type")), document.find_document("head_node_type")
    all_together = _whole(document.find_document("max_workers")) or 0
    types = document.find_document("available_node_types")
    groups = []
    for name, node_type in types.items() if isinstance(types, dict) else ():
        place = ("available_node_types", str(name))
        node = find_document(node_type, "node_config")
        count = _whole(find_document(node_type, "max_workers"))
        groups.append(
            NodeGroup(
                name=str(name),
                place=place,
                cpus_at=(*place, "resources", "CPU"),
                gpus_at=(*place, "resources", "GPU"),
                market=(*place, "node_config", *MARKETS.get(provider or "", ())),
                is_head=name == head,
                cpus=_whole(find_document(node_type, "resources", "CPU")),
                gpus=_whole(find_document(node_type, "resources", "GPU")),
                max_count=min(all_together, all_together if count is None else count),
                **(_on_aws(node) if provider == "aws" else _on_gcp(node) if provider == "gcp" else {}),
            )
        )
    return Cluster(document, tuple(groups), all_together)


def _on_aws(node: Any) -> dict[str, Any]:
    return {
        "machine_type": _text(find_document(node, "InstanceType")),
        "is_spot": find_document(node, "InstanceMarketOptions", "MarketType") == "spot",
        "spot": "InstanceMarketOptions: { MarketType: spot }",
        "reaches": frozenset({"s3"} if find_document(node, "IamInstanceProfile") else ()),
    }


def _on_gcp(node: Any) -> dict[str, Any]:
    scheduling = find_document(node, "scheduling")
    parts = scheduling if isinstance(scheduling, list) else [scheduling]
    accelerators = find_document(node, "guestAccelerators")
    each = accelerators if isinstance(accelerators, list) else ()
    return {
        "machine_type": _text(find_document(node, "machineType")),
        "num_accelerators": sum(_whole(find_document(one, "acceleratorCount")) or 0 for one in each),
        "is_spot": any(
            find_document(p, "provisioningModel") == "SPOT" or find_document(p, "preemptible") is True for p in parts
        ),
        "spot": "scheduling: { provisioningModel: SPOT }",
        "reaches": frozenset({"gs", "gcs"} if find_document(node, "serviceAccounts") else ()),
    }


def faults_of(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    """All that is wrong with the file by itself, but for its groups of machines."""
    by_schema = list(_schema_faults(document))
    yield from by_schema
    yield from _defaults(document)
    yield from _start_faults(document)
    yield from _version_faults(document, versions)
    provider = _text(document.find_document("provider", "type"))
    zone, region = document.find_document("provider", "availability_zone"), document.find_document("provider", "region")
    if isinstance(zone, str) and isinstance(region, str) and not all(z.startswith(region) for z in zone.split(",")):
        yield document.fault(
            ("provider", "availability_zone"), f"must lie in the region {region}, got {zone}; correct one"
        )
    types = document.find_document("available_node_types")
    for name in types if isinstance(types, dict) else ():
        place = ("available_node_types", str(name), "node_config")
        if provider in IMAGES and not document.find_document(*place, *IMAGES[provider]):
            rule = "must name an image, or Ray takes one of its own; the template says how to find one"
            yield document.fault((*place, *IMAGES[provider]), rule)
        if provider == "aws":
            yield from _ec2_faults(document, place)
    if not by_schema:
        yield from _refusal_by_ray(document)


def _schema_faults(document: ClusterDocument) -> Iterator[Fault]:
    """All of them; Ray itself tells one."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document.tree):
        place: KeyPath = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", ()))
            for name in set(error.instance) - set(known):
                yield document.fault((*place, name), f"unknown field{did_you_mean(name, known) or '; remove it'}")
        elif error.validator == "required":
            missing = re.sub(r"^'(.*)' is a required property$", r"\1", error.message)
            yield document.fault((*place, missing), "is missing; add it")
        elif error.validator == "type":
            yield document.fault(
                place, f"must be of type {error.validator_value}, got {json.dumps(error.instance)}; correct it"
            )
        else:
            yield document.fault(place, f"{error.message}; correct it")


def _refusal_by_ray(document: ClusterDocument) -> Iterator[Fault]:
    """What Ray refuses beyond its schema, as `ray up` would."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(json.loads(json.dumps(document.tree))))
    except Exception as error:  # of whatever kind: `ray up` would end with it
        yield document.fault((), f"Ray refuses it: {error}; correct it")


def _defaults(document: ClusterDocument) -> Iterator[Fault]:
    for name in REQUIRED_KEYS:
        if document.find_document(name) is None:
            yield document.fault((name,), "must be given, or Ray takes a default of its own; the template has one")


def _start_faults(document: ClusterDocument) -> Iterator[Fault]:
    """A head that knows of no autoscaler waits for ever for machines, and machines that know of no head never join it."""
    for name, options in STARTS.items():
        commands = document.find_document(name)
        started = [one for one in commands if "ray start" in str(one)] if isinstance(commands, list) else []
        for option, why in options.items():
            if commands is not None and not any(option in one for one in started):
                yield document.fault((name,), f"none starts Ray with {option}, {why}; the template does")


def _version_faults(document: ClusterDocument, versions: Versions) -> Iterator[Fault]:
    images, commands = _images(document), _commands(document)
    for place, image in images:
        if wrong := versions.wrong_image(image):
            yield document.fault(place, wrong)
    for place, command in commands:
        for wrong in versions.wrong_command(command):
            yield document.fault(place, wrong)
    if images:
        return
    pins_ray, pins_python = versions.pinned_by([command for _, command in commands])
    if not pins_ray:
        rule = f"nothing pins Ray; take docker.image: rayproject/ray:{versions.tag}-gpu, or install ray=={versions.ray}"
        yield document.fault(("setup_commands",), rule)
    if not pins_python:
        rule = f"nothing pins Python; take docker.image: rayproject/ray:{versions.tag}-gpu, or python{versions.python}"
        yield document.fault(("setup_commands",), rule)


def _images(document: ClusterDocument) -> list[tuple[KeyPath, str]]:
    places: list[KeyPath] = [("docker", name) for name in ("image", "head_image", "worker_image")]
    types = document.find_document("available_node_types")
    for name in types if isinstance(types, dict) else ():
        places.append(("available_node_types", str(name), "docker", "worker_image"))
    return [(place, image) for place in places if isinstance(image := document.find_document(*place), str)]


def _commands(document: ClusterDocument) -> list[tuple[KeyPath, str]]:
    places: list[KeyPath] = [(name,) for name in SETUP]
    types = document.find_document("available_node_types")
    for name in types if isinstance(types, dict) else ():
        places += [("available_node_types", str(name), kind) for kind in SETUP]
    found = [(place, commands) for place in places if isinstance(commands := document.find_document(*place), list)]
    return [
        ((*place, index), command)
        for place, commands in found
        for index, command in enumerate(commands)
        if isinstance(command, str)
    ]


def _ec2_faults(document: ClusterDocument, place: KeyPath) -> Iterator[Fault]:
    """What EC2 would not understand of a node_config; nothing where botocore is not installed."""
    from raycap.cluster.cloud.ec2 import market_types, run_instances_faults

    node = document.find_document(*place)
    if not isinstance(node, dict):
        return
    for report in run_instances_faults(node):
        if found := UNKNOWN.fullmatch(report):
            below = (*place, *_path(found["where"]), found["name"])
            hint = did_you_mean(found["name"], found["known"].split(", ")) or "; remove it"
            yield document.fault(below, f"EC2 knows no such field{hint}")
        elif found := MISSING.fullmatch(report):
            yield document.fault((*place, *_path(found["where"]), found["name"]), "EC2 asks for it; add it")
        elif found := OF_A_TYPE.fullmatch(report):
            types = re.sub(r"<class '(\w+)'>", r"\1", found["types"])
            rule = f"EC2 takes {types} there, got {found['got']}; correct it"
            yield document.fault((*place, *_path(found["where"])), rule)
        else:
            yield document.fault(place, f"{report}; correct it")
    market = find_document(node, "InstanceMarketOptions", "MarketType")
    known = market_types()
    if "InstanceMarketOptions" in node and known and market not in known:
        where = (*place, "InstanceMarketOptions", "MarketType")
        yield document.fault(where, f"must be one of {', '.join(known)}, got {market}; for spot machines write spot")


def _path(where: str) -> KeyPath:
    """A place as botocore writes it: BlockDeviceMappings[0].Ebs, or `input` for the whole."""
    if where == "input":
        return ()
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", where))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
