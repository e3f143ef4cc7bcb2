"""Offline check of what EC2 would refuse in a file for `ray up`, by the model of EC2's API that botocore contains."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault, value_at
from raycap.cluster.cloud.schema import MAX_LISTED, meant, shown
from raycap.spec.yaml_reader import KeyPath

RAY_MANAGED_FIELDS = ("SubnetIds",)
"""Fields of a node_config that Ray removes before it calls EC2."""
# Messages of botocore.validate.
UNKNOWN = re.compile(r'Unknown parameter in (?P<where>[^:]*): "(?P<name>[^"]*)", must be one of: (?P<known>.*)')
MISSING = re.compile(r'Missing required parameter in (?P<where>[^:]*): "(?P<name>[^"]*)"')
WRONG_TYPE = re.compile(
    r"Invalid type for parameter (?P<where>[^,]*), value: (?P<got>.*), type: .*, valid types: (?P<types>.*)"
)
IDENTIFIERS = {"ImageId": "ami", "SubnetId": "subnet", "SubnetIds": "subnet", "SecurityGroupIds": "sg"}
"""Prefixes of the identifiers in some fields. All are followed by 8 or 17 hexadecimal digits."""
RAY_IMAGE = "latest_dlami"
"""The ImageId that Ray replaces by an image of its own list."""
PARAMETER = "resolve:ssm:"
"""Prefix with which EC2 reads an ImageId from a parameter of the Systems Manager."""
IOPS_TYPES = ("io1", "io2", "gp3")
MAX_VOLUME_GB = 65_536


def can_check() -> bool:
    """Whether botocore is installed."""
    return find_spec("botocore") is not None


@cache
def _session() -> Any:
    from botocore.session import Session

    return Session()


@cache
def _run_instances() -> Any:
    return _session().get_service_model("ec2").operation_model("RunInstances").input_shape


@cache
def _regions() -> list[str]:
    """Return the regions of all partitions, such as us-east-1 and cn-north-1."""
    session = _session()
    return [name for one in session.get_available_partitions() for name in session.get_available_regions("ec2", one)]


def run_instances_faults(node_config: dict[str, Any]) -> list[str]:
    """Return botocore's messages about a node_config as input of RunInstances, one for each fault.

    The list is empty if botocore is not installed.
    """
    if not can_check():
        return []
    from botocore.validate import ParamValidator

    parameters = {key: value for key, value in node_config.items() if key not in RAY_MANAGED_FIELDS}
    parameters |= {"MinCount": 1, "MaxCount": 1}  # required by EC2 and added by Ray
    report: str = ParamValidator().validate(parameters, _run_instances()).generate_report()
    return report.splitlines()


def provider_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of the region and the availability zones of the provider."""
    region, zones = (document.value_at("provider", name) for name in ("region", "availability_zone"))
    if not isinstance(region, str):
        return
    if can_check() and region not in _regions():
        hint = meant(
            region, _regions(), f"; write a region such as us-east-1, or install a botocore that knows {region}"
        )
        yield document.fault(
            ("provider", "region"), f"unknown to botocore {version('botocore')}, got {shown(region)}{hint}"
        )
        return
    # us-east-1a is a zone of the region itself, us-west-2-lax-1a a local zone.
    pattern = re.compile(rf"{re.escape(region)}([a-z]|-[a-z0-9]+(-[a-z0-9]+)*-\d+[a-z])")
    for zone in (one.strip() for one in zones.split(",")) if isinstance(zones, str) else ():
        if not pattern.fullmatch(zone):
            rule = f"must be a zone of the region {region}, got {shown(zone)}; write, for example, {region}a"
            yield document.fault(("provider", "availability_zone"), f"{rule}, or correct the region")


def node_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the faults of the node_config at a path; nothing if botocore is not installed."""
    node = document.value_at(*path)
    if not isinstance(node, dict) or not can_check():
        return
    for report in run_instances_faults(node):
        yield _fault_of(document, path, report)
    yield from _choice_faults(document, path, node, _run_instances())
    if "InstanceMarketOptions" in node and not value_at(node, "InstanceMarketOptions", "MarketType"):
        below = (*path, "InstanceMarketOptions", "MarketType")
        yield document.fault(below, "is missing; write spot for spot machines, or remove InstanceMarketOptions")
    for name, prefix in IDENTIFIERS.items():
        value = node.get(name)
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or one == RAY_IMAGE or one.startswith(PARAMETER):
                continue
            if not re.fullmatch(rf"{prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", one):
                rule = f"must be {prefix}- and 8 or 17 hexadecimal digits, got {shown(one)}; copy it from EC2"
                yield document.fault((*path, name), rule)
    for index, device in enumerate(_list(node.get("BlockDeviceMappings"))):
        if isinstance(volume := value_at(device, "Ebs"), dict):
            yield from _volume_faults(document, (*path, "BlockDeviceMappings", index, "Ebs"), volume)
    profile = node.get("IamInstanceProfile")
    if isinstance(profile, dict) and ("Name" in profile) == ("Arn" in profile):
        yield document.fault((*path, "IamInstanceProfile"), "must have either Name or Arn; write Name: raycap")
    price = value_at(node, "InstanceMarketOptions", "SpotOptions", "MaxPrice")
    if isinstance(price, str) and not re.fullmatch(r"\d*\.?\d+", price):
        below = (*path, "InstanceMarketOptions", "SpotOptions", "MaxPrice")
        yield document.fault(
            below, f'must be dollars per hour in quotes, got {shown(price)}; write, for example, "0.50"'
        )
    for name in ("SecurityGroupIds", "SubnetIds", "SubnetId"):
        if name in node and "NetworkInterfaces" in node:
            rule = "must not be given together with NetworkInterfaces; write it there, or remove NetworkInterfaces"
            yield document.fault((*path, name), rule)


def _fault_of(document: ClusterDocument, path: KeyPath, report: str) -> Fault:
    """Return the fault that a message of botocore describes."""
    if found := UNKNOWN.fullmatch(report):
        below = (*path, *_parse_path(found["where"]), found["name"])
        return document.fault(below, f"unknown to EC2{meant(found['name'], found['known'].split(', '))}")
    if found := MISSING.fullmatch(report):
        below = (*path, *_parse_path(found["where"]), found["name"])
        return document.fault(below, "is missing and EC2 requires it; add it")
    if found := WRONG_TYPE.fullmatch(report):
        types = re.sub(r"<class '(\w+)'>", r"\1", found["types"])
        rule = f"must be of type {types} for EC2, got {found['got']}"
        remedy = f'write it in quotes: "{found["got"]}"' if types == "str" else "correct it"
        return document.fault((*path, *_parse_path(found["where"])), f"{rule}; {remedy}")
    return document.fault(path, f"{report}; correct it")


def _parse_path(where: str) -> KeyPath:
    """Parse a path as botocore writes it: BlockDeviceMappings[0].Ebs, or `input` for the root."""
    if where == "input":
        return ()
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", where))


def _choice_faults(document: ClusterDocument, path: KeyPath, value: Any, shape: Any) -> Iterator[Fault]:
    """Yield the texts at or below a path that are none of the values that EC2 lists, which botocore does not check."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name, one in value.items():
            if name in shape.members:
                yield from _choice_faults(document, (*path, name), one, shape.members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for index, one in enumerate(value):
            yield from _choice_faults(document, (*path, index), one, shape.member)
    elif shape.type_name == "string" and isinstance(value, str) and shape.enum and value not in shape.enum:
        if len(shape.enum) <= MAX_LISTED:
            rule = f"must be one of {', '.join(shape.enum)}, got {shown(value)}"
        else:
            rule = f"unknown to EC2 as of botocore {version('botocore')}, got {shown(value)}"
        hint = meant(value, shape.enum, "; correct it, or upgrade botocore if it is newer")
        yield document.fault(path, f"{rule}{hint}")


def _volume_faults(document: ClusterDocument, path: KeyPath, volume: dict[str, Any]) -> Iterator[Fault]:
    size, kind, iops = volume.get("VolumeSize"), volume.get("VolumeType", "gp2"), volume.get("Iops")
    if isinstance(size, int) and not 1 <= size <= MAX_VOLUME_GB:
        rule = f"must be between 1 and {MAX_VOLUME_GB} GB, got {size}; write 200"
        yield document.fault((*path, "VolumeSize"), rule)
    if iops is not None and kind not in IOPS_TYPES:
        yield document.fault((*path, "Iops"), f"requires VolumeType {' or '.join(IOPS_TYPES)}, got {kind}; remove it")
    if iops is None and kind in ("io1", "io2"):
        yield document.fault((*path, "Iops"), f"is missing and VolumeType {kind} requires it; write gp3, or add Iops")
    if volume.get("Throughput") is not None and kind != "gp3":
        yield document.fault((*path, "Throughput"), f"requires VolumeType gp3, got {kind}; remove it")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
