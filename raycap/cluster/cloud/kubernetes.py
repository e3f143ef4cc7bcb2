"""Rules by which Kubernetes refuses the names, labels and pods of a manifest, beyond the types of the schema.

The patterns of names and labels are those of the documentation of Kubernetes, "Object Names and IDs" and "Labels and
Selectors"; quantities are parsed by Ray's copy of the parser of the Kubernetes client.
"""

import difflib
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from raycap.cluster.cloud.document import ClusterDocument, Fault, value_at
from raycap.cluster.cloud.schema import choice_rule, meant, schema_faults, shown
from raycap.spec.yaml_reader import KeyPath


class NameRule(NamedTuple):
    """A rule for names: pattern, largest length, and description."""

    pattern: re.Pattern[str]
    max_length: int
    description: str


LABEL_CHARACTERS = "letters, digits, '-', '_' and '.', with a letter or digit at the ends"
DNS_LABEL = NameRule(
    re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"), 63, "lower-case letters, digits and '-', with no '-' at the ends"
)
DNS_1035_LABEL = NameRule(
    re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?"),
    63,
    "lower-case letters, digits and '-', with a letter first and no '-' last",
)
DNS_SUBDOMAIN = NameRule(
    re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"),
    253,
    "lower-case letters, digits, '-' and '.', with a letter or digit at the ends",
)
LABEL_NAME = NameRule(
    re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"),
    63,
    LABEL_CHARACTERS,
)
LABEL_VALUE = NameRule(re.compile(rf"({LABEL_NAME.pattern.pattern})?"), 63, LABEL_NAME.description)
PORT_NAME = NameRule(
    re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
    15,
    "lower-case letters, digits and single '-', with a letter",
)

STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
DEVICES = ("nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "aws.amazon.com/neuron", "gpu.intel.com/i915")
"""Resources of well-known device plugins."""
MIN_MEMORY = 6 * 2**20
"""Container runtimes refuse to start containers with less memory; usually the suffix is missing."""
MAX_QUANTITY = 2**63
CHOICES = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "protocol": ("TCP", "UDP", "SCTP"),
}
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
OPERATORS = ("Exists", "Equal", "Gt", "Lt")


def name_fault(document: ClusterDocument, path: KeyPath, rule: NameRule) -> Iterator[Fault]:
    """Yield a fault if the text at a path breaks a rule for names."""
    value = document.value_at(*path)
    if isinstance(value, str) and (message := broken_name(value, rule)):
        yield document.fault(path, message)


def broken_name(value: str, rule: NameRule) -> str | None:
    """Return the rule that a name breaks, with a correction, or None."""
    if rule.pattern.fullmatch(value) and len(value) <= rule.max_length:
        return None
    allowed = r"[^A-Za-z0-9_.]+" if rule in (LABEL_NAME, LABEL_VALUE) else r"[^a-z0-9]+"
    text = value if rule in (LABEL_NAME, LABEL_VALUE) else value.lower()
    fixed = re.sub(allowed, "-", text).strip("-_.")[: rule.max_length].strip("-_.")
    remedy = f"write {fixed}" if fixed and rule.pattern.fullmatch(fixed) else "choose another name"
    return f"must have at most {rule.max_length} characters: {rule.description}, got {shown(value)}; {remedy}"


def label_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the faults of the keys and values of a mapping of labels, if there is one at a path."""
    labels = document.value_at(*path)
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if message := broken_key(str(key)):
            yield document.fault((*path, str(key)), f"key {message}")
        if isinstance(value, str) and (message := broken_name(value, LABEL_VALUE)):
            yield document.fault((*path, str(key)), message)


def broken_key(key: str) -> str | None:
    """Return the rule that the key of a label or the name of a resource breaks, or None."""
    prefix, slash, name = key.rpartition("/")
    return (slash and broken_name(prefix, DNS_SUBDOMAIN)) or broken_name(name, LABEL_NAME)


def metadata_faults(document: ClusterDocument, path: KeyPath = ("metadata",)) -> Iterator[Fault]:
    """Yield the faults of the labels, annotations and namespace of a document or a pod."""
    yield from name_fault(document, (*path, "namespace"), DNS_LABEL)
    yield from label_faults(document, (*path, "labels"))
    annotations = document.value_at(*path, "annotations")
    for key in annotations if isinstance(annotations, dict) else ():
        if message := broken_key(str(key).lower()):  # keys of annotations may have capital letters
            yield document.fault((*path, "annotations", str(key)), f"key {message}")


def workload_faults(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of a document that is not KubeRay's, such as a Deployment or a Service: its names and its pods."""
    yield from name_fault(document, ("metadata", "name"), DNS_SUBDOMAIN)
    yield from metadata_faults(document)
    if isinstance(document.value_at("spec", "template", "spec"), dict):
        yield from schema_faults(document, pod_schema(), ("spec", "template"))
        yield from pod_faults(document, ("spec", "template"))


@cache
def kuberay_schema() -> dict[str, Any]:
    """Return the schemas of KubeRay's CRDs; `RayCluster` and `RayJob` in $defs are those of the field spec."""
    text = (files("raycap.cluster.cloud") / "schemas" / "kuberay.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def pod_schema() -> dict[str, Any]:
    """Return the schema of the template of a pod."""
    return kuberay_schema() | {"$ref": "#/$defs/RayJob/properties/submitterPodTemplate"}


def pod_faults(document: ClusterDocument, template: KeyPath) -> Iterator[Fault]:
    """Yield the faults of the template of a pod: everything for which its pods would be refused or never start."""
    yield from metadata_faults(document, (*template, "metadata"))
    path = (*template, "spec")
    pod = document.value_at(*path)
    if not isinstance(pod, dict):
        return
    volumes = _names(pod.get("volumes"))
    seen: dict[str, KeyPath] = {}
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(_items(pod.get(kind))):
            below = (*path, kind, index)
            yield from unique(document, (*below, "name"), seen)
            yield from name_fault(document, (*below, "name"), DNS_LABEL)
            yield from _container_faults(document, below, container, volumes)
    if not _items(pod.get("containers")):
        yield document.fault((*path, "containers"), "must have at least one container; copy that of the template")
    seen = {}
    for index, volume in enumerate(_items(pod.get("volumes"))):
        below = (*path, "volumes", index)
        yield from unique(document, (*below, "name"), seen)
        yield from name_fault(document, (*below, "name"), DNS_LABEL)
        sources = sorted(str(key) for key in volume if key != "name")
        if len(sources) != 1:
            got = ", ".join(sources) or "none"
            yield document.fault(below, f"must have exactly one source, got {got}; write, for example, emptyDir: {{}}")
    yield from _choice_faults(document, path, pod, ("restartPolicy", "dnsPolicy"))
    for name in ("serviceAccountName", "priorityClassName"):
        yield from name_fault(document, (*path, name), DNS_SUBDOMAIN)
    yield from label_faults(document, (*path, "nodeSelector"))
    grace = pod.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        yield document.fault((*path, "terminationGracePeriodSeconds"), f"must be at least 0, got {grace}; write 30")
    for index, toleration in enumerate(_items(pod.get("tolerations"))):
        yield from _toleration_faults(document, (*path, "tolerations", index), toleration)


def _container_faults(
    document: ClusterDocument, path: KeyPath, container: dict[str, Any], volumes: list[str]
) -> Iterator[Fault]:
    yield from _choice_faults(document, path, container, ("imagePullPolicy",))
    image = container.get("image")
    if isinstance(image, str) and (not image.strip() or image != image.strip()):
        yield document.fault((*path, "image"), f"must name an image without white space, got {image!r}; correct it")
    numbers: dict[str, KeyPath] = {}
    names: dict[str, KeyPath] = {}
    for index, port in enumerate(_items(container.get("ports"))):
        below = (*path, "ports", index)
        for name in ("containerPort", "hostPort"):
            number = port.get(name)
            if isinstance(number, int) and not 1 <= number <= 65535:
                yield document.fault((*below, name), f"must be between 1 and 65535, got {number}; correct it")
        yield from _choice_faults(document, below, port, ("protocol",))
        yield from name_fault(document, (*below, "name"), PORT_NAME)
        yield from unique(document, (*below, "name"), names)
        endpoint = str([port.get("containerPort"), port.get("protocol", "TCP"), port.get("hostPort")])
        if endpoint in numbers:
            line = document.line(numbers[endpoint])
            yield document.fault(
                (*below, "containerPort"), f"is a duplicate of the port in line {line}; remove one of them"
            )
        numbers[endpoint] = below
    for index, variable in enumerate(_items(container.get("env"))):
        below = (*path, "env", index)
        key = variable.get("name")
        if isinstance(key, str) and (not key or "=" in key or not key.isprintable()):
            yield document.fault((*below, "name"), f"must be a name without '=', got {key!r}; correct it")
        if variable.get("value") and variable.get("valueFrom"):
            yield document.fault(below, "must have either value or valueFrom, got both; remove one of them")
    mounted: dict[str, KeyPath] = {}
    for index, mount in enumerate(_items(container.get("volumeMounts"))):
        below = (*path, "volumeMounts", index)
        yield from unique(document, (*below, "mountPath"), mounted)
        volume = mount.get("name")
        if isinstance(volume, str) and volume not in volumes:
            hint = meant(volume, volumes, "; add a volume of this name, or remove the mount")
            yield document.fault((*below, "name"), f"must be the name of a volume of the pod, got {volume}{hint}")
    yield from _resource_faults(document, (*path, "resources"))


def _resource_faults(document: ClusterDocument, path: KeyPath) -> Iterator[Fault]:
    """Yield the faults of the limits and requests of a container."""
    amounts: dict[str, dict[str, Decimal]] = {"limits": {}, "requests": {}}
    for kind, found in amounts.items():
        values = document.value_at(*path, kind)
        for name, value in values.items() if isinstance(values, dict) else ():
            below = (*path, kind, str(name))
            if message := _resource_name_rule(str(name)):
                yield document.fault(below, message)
                continue
            amount = quantity(value)
            if amount is None:  # reported by the schema
                continue
            if amount < 0:
                yield document.fault(below, f"must not be negative, got {shown(value)}; correct it")
            elif amount >= MAX_QUANTITY:
                yield document.fault(below, f"must be less than {MAX_QUANTITY:,}, got {shown(value)}; correct it")
            elif "/" in str(name) and amount != int(amount):
                yield document.fault(below, f"must be a whole number, got {shown(value)}; write {int(amount) + 1}")
            elif name == "memory" and amount < MIN_MEMORY:
                rule = f"must be at least 6Mi, got {shown(value)}, which is {amount:f} bytes"
                yield document.fault(below, f"{rule}; add a suffix: {re.sub('[^0-9.]', '', str(value))}Gi")
            else:
                found[str(name)] = amount
    limits = document.value_at(*path, "limits")
    for name, request in amounts["requests"].items():
        below, limit = (*path, "requests", name), amounts["limits"].get(name)
        got, written = shown(document.value_at(*below)), shown(value_at(limits, name))
        if limit is None and "/" in name and value_at(limits, name) is None:
            yield document.fault(below, f"requires a limit, as every device does, got only {got}; add the same limit")
        elif limit is not None and "/" in name and limit != request:
            rule = f"must be equal to the limit {written}, as for every device, got {got}"
            yield document.fault(below, f"{rule}; write {written}")
        elif limit is not None and request > limit:
            yield document.fault(below, f"must be at most the limit {written}, got {got}; lower it, or raise the limit")


def _resource_name_rule(name: str) -> str | None:
    """Return the rule that the name of a resource breaks, or None."""
    if "/" not in name:
        if name in STANDARD_RESOURCES or name.startswith("hugepages-"):
            return None
        if name.lower() in ("gpu", "gpus", "nvidia.com"):
            return f"unknown resource, got {name}; write nvidia.com/gpu"
        hint = meant(name, (*STANDARD_RESOURCES, *DEVICES), "; write its name with a domain")
        return f"unknown resource, got {name}{hint}"
    if message := broken_key(name):
        return message
    prefix, _, device = name.rpartition("/")
    known = next((one for one in DEVICES if one.startswith(f"{prefix.lower()}/")), None)
    if known is None:  # the domain may be misspelt
        known = next(iter(difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.9)), None)
        known = known or ("nvidia.com/gpu" if device.lower() == "gpu" and "." not in prefix else None)
    elif f"{prefix}/{device}".lower() not in (known, f"{known}s"):
        known = None  # another device of the same maker, such as nvidia.com/mig-1g.5gb
    if known and known != name:
        return f"is the resource of no known device, got {name}; write {known}"
    return None


def quantity(value: Any) -> Decimal | None:
    """Return a quantity as a number, or None if it is none."""
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed: Decimal = parse_quantity(value)
    except (ValueError, ArithmeticError):
        return None
    return parsed if parsed.is_finite() else None


def _toleration_faults(document: ClusterDocument, path: KeyPath, toleration: dict[str, Any]) -> Iterator[Fault]:
    operator, effect, key = toleration.get("operator", "Equal"), toleration.get("effect"), toleration.get("key")
    if isinstance(operator, str) and operator not in OPERATORS:
        yield document.fault((*path, "operator"), choice_rule(operator, OPERATORS))
    if isinstance(effect, str) and effect and effect not in EFFECTS:
        yield document.fault((*path, "effect"), choice_rule(effect, EFFECTS))
    if operator == "Exists" and toleration.get("value"):
        rule = f"must not be given with operator Exists, got {shown(toleration['value'])}; remove it, or write Equal"
        yield document.fault((*path, "value"), rule)
    if not key and operator == "Equal":
        yield document.fault(path, "must have a key, or operator: Exists for every taint; add one of them")
    if isinstance(key, str) and key and (message := broken_key(key)):
        yield document.fault((*path, "key"), message)
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        rule = f"requires effect: NoExecute, got {shown(effect)}; remove it, or change the effect"
        yield document.fault((*path, "tolerationSeconds"), rule)


def _choice_faults(
    document: ClusterDocument, path: KeyPath, values: dict[str, Any], names: tuple[str, ...]
) -> Iterator[Fault]:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value and value not in CHOICES[name]:
            yield document.fault((*path, name), choice_rule(value, CHOICES[name]))


def unique(document: ClusterDocument, path: KeyPath, seen: dict[str, KeyPath]) -> Iterator[Fault]:
    """Yield a fault if the text at a path is in `seen`, and add it there."""
    value = document.value_at(*path)
    if not isinstance(value, str):
        return
    if value in seen:
        line = document.line(seen[value])
        yield document.fault(path, f"must be unique, got {shown(value)} again, as in line {line}; rename one of them")
    seen[value] = path


def _items(values: Any) -> list[dict[str, Any]]:
    """Return the mappings of a list; mappings with the wrong type are reported by the schema."""
    return [one if isinstance(one, dict) else {} for one in values] if isinstance(values, list) else []


def _names(values: Any) -> list[str]:
    return [name for one in _items(values) if isinstance(name := value_at(one, "name"), str)]
