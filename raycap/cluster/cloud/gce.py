"""Offline check of what Google Cloud would refuse in a file for `ray up`.

The description of an instance is checked by the discovery document of the Compute API that google-api-python-client
contains, if it is installed.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault, value_at
from raycap.cluster.cloud.machines import known_size
from raycap.cluster.cloud.schema import schema_faults, shown
from raycap.spec.yaml_reader import KeyPath

REGION = re.compile(r"[a-z]+-[a-z]+\d+")
PROJECT = re.compile(r"([a-z0-9.]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
MACHINE_TYPE = re.compile(r"(.*/machineTypes/)?[a-z][a-z0-9]*(-[a-z0-9]+)+")
CLUSTER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
MAX_CLUSTER_NAME = 35
"""Ray appends the kind of node and a random part, and Google accepts names of at most 63 characters."""
GROUP_NAME = re.compile(r"[a-z0-9_-]{1,63}")
TPU_FIELDS = ("acceleratorType", "acceleratorConfig", "runtimeVersion")
"""Fields of a node_config that make Ray create a TPU, which is not an instance of the Compute API."""


def can_check() -> bool:
    """Whether google-api-python-client is installed."""
    return find_spec("googleapiclient") is not None


@cache
def _instance_schema() -> dict[str, Any]:
    """Return the JSON Schema of an instance of the Compute API."""
    path = files("googleapiclient") / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(path.read_text(encoding="utf-8"))["schemas"]
    needed, remaining = {}, ["Instance"]
    while remaining:
        name = remaining.pop()
        if name not in needed:
            needed[name] = _json_schema(schemas[name])
            remaining += re.findall(r'"#/\$defs/(\w+)"', json.dumps(needed[name]))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "#/$defs/Instance", "$defs": needed}


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Convert a schema of a discovery document, which has its own references and writes large integers as texts."""
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    kind = schema.get("type")
    if kind == "object":
        result: dict[str, Any] = {"type": "object"}
        if "properties" in schema:
            result["properties"] = {name: _json_schema(one) for name, one in schema["properties"].items()}
        more = schema.get("additionalProperties")
        return result | {"additionalProperties": _json_schema(more) if more else False}
    if kind == "array":
        return {"type": "array", "items": _json_schema(schema["items"])}
    if schema.get("format") in ("int64", "uint64"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^-?\d+$"}]}
    result = {"type": kind} if kind != "any" else {}
    return result | ({"enum": schema["enum"]} if "enum" in schema else {})


def provider_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of the provider and of the names that become names and labels of instances."""
    region, zone, project = (
        document.value_at("provider", name) for name in ("region", "availability_zone", "project_id")
    )
    for name, value in {"availability_zone": zone, "project_id": project}.items():
        if value is None:
            yield document.fault(
                ("provider", name), "is missing and Google Cloud requires it; add it as in the template"
            )
    if isinstance(region, str) and not REGION.fullmatch(region):
        rule = f"must be a region such as us-central1, got {shown(region)}; correct it"
        yield document.fault(("provider", "region"), rule)
    elif isinstance(region, str) and isinstance(zone, str) and not re.fullmatch(rf"{region}-[a-z]", zone):
        rule = f"must be one zone of the region {region}, got {shown(zone)}; write, for example, {region}-a"
        yield document.fault(("provider", "availability_zone"), f"{rule}, or correct the region")
    if isinstance(project, str) and not PROJECT.fullmatch(project):
        rule = f"must be 6 to 30 lower-case letters, digits and '-', with a letter first, got {shown(project)}"
        yield document.fault(("provider", "project_id"), f"{rule}; write the id of the project, not its name")
    name = document.value_at("cluster_name")
    if isinstance(name, str) and (not CLUSTER_NAME.fullmatch(name) or len(name) > MAX_CLUSTER_NAME):
        rule = (
            f"must be at most {MAX_CLUSTER_NAME} lower-case letters, digits and '-' on Google Cloud, got {shown(name)}"
        )
        yield document.fault(("cluster_name",), f"{rule}; write, for example, raycap")
    types = document.value_at("available_node_types")
    for group in types if isinstance(types, dict) else ():
        if not GROUP_NAME.fullmatch(str(group)):
            rule = (
                "must be at most 63 lower-case letters, digits, '-' and '_' on Google Cloud, where it becomes a label"
            )
            yield document.fault(("available_node_types", str(group)), f"{rule}, got {shown(str(group))}; rename it")


def node_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the faults of the node_config at a path."""
    node = document.value_at(*path)
    if not isinstance(node, dict) or any(name in node for name in TPU_FIELDS):
        return
    if can_check():
        for fault in schema_faults(document, _instance_schema(), path):
            # Ray's own examples write the scheduling as a list of mappings, which Google accepts.
            if not (fault.field.endswith("node_config.scheduling") and isinstance(node.get("scheduling"), list)):
                yield fault
    machine_type = node.get("machineType")
    if machine_type is None:
        yield document.fault((*path, "machineType"), "is missing and Google Cloud requires it; write g2-standard-8")
    elif isinstance(machine_type, str) and not MACHINE_TYPE.fullmatch(machine_type):
        rule = f"must be lower-case and have the form g2-standard-8, got {shown(machine_type)}; correct it"
        yield document.fault((*path, "machineType"), rule)
    disks = node.get("disks")
    if isinstance(disks, list):
        boots = [value_at(disk, "boot") for disk in disks].count(True)
        if boots != 1:
            rule = f"must have exactly one disk with boot: true, got {boots}; write it at the first disk"
            yield document.fault((*path, "disks"), rule)
    yield from _zone_faults(document, path)
    yield from _scheduling_faults(document, path, node)


def _zone_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the addresses of disks and machine types that are in another zone than the provider's."""
    zone = document.value_at("provider", "availability_zone")
    for below in document.lines:
        value = document.value_at(*below)
        if below[: len(path)] == path and isinstance(value, str) and isinstance(zone, str):
            found = re.search(r"\bzones/([^/]+)/", value)
            if found and found[1] != zone:
                rule = f"must be in the zone {zone} of the provider, got {shown(value)}"
                yield document.fault(below, f"{rule}; write zones/{zone}/")


def _scheduling_faults(document: ClusterDocument, path: KeyPath, node: dict[str, Any]) -> Iterator[Fault]:
    """Yield settings of a machine with GPUs, or of a spot machine, with which Google does not create it."""
    scheduling = node.get("scheduling")
    settings: dict[str, Any] = {}
    for one in scheduling if isinstance(scheduling, list) else [scheduling]:
        settings |= one if isinstance(one, dict) else {}
    accelerators = node.get("guestAccelerators")
    attached = len(accelerators) if isinstance(accelerators, list) else 0
    machine_type = str(node.get("machineType")).rpartition("/")[2]
    size = known_size(machine_type, attached)
    is_spot = value_at(settings, "provisioningModel") == "SPOT" or value_at(settings, "preemptible") is True
    maintenance = value_at(settings, "onHostMaintenance")
    if (attached or (size and size.gpus)) and maintenance != "TERMINATE" and not (is_spot and maintenance is None):
        rule = f"must be TERMINATE on a machine with GPUs, got {shown(maintenance)}; write TERMINATE"
        yield document.fault((*path, "scheduling", "onHostMaintenance"), rule)
    elif is_spot and maintenance == "MIGRATE":
        rule = "must be TERMINATE on a spot machine, got MIGRATE; write TERMINATE"
        yield document.fault((*path, "scheduling", "onHostMaintenance"), rule)
    if is_spot and value_at(settings, "automaticRestart") is True:
        rule = "must be false on a spot machine, got true; write false"
        yield document.fault((*path, "scheduling", "automaticRestart"), rule)
