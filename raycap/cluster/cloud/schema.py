"""Violations of a JSON Schema by a document, each with its line and the correction."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault
from raycap.spec.document import did_you_mean, truncated
from raycap.spec.yaml_reader import KeyPath

QUANTITY = "x-kubernetes-int-or-string"
MAX_LISTED = 8
"""Maximum number of accepted values that a rule lists."""


def schema_faults(document: ClusterDocument, schema: dict[str, Any], path: KeyPath = ()) -> Iterator[Fault]:
    """Yield all violations of a schema by the value at a path of a document.

    Ray and Kubernetes stop at the first violation.
    """
    import jsonschema

    validator = jsonschema.validators.validator_for(schema)(schema)
    for error in validator.iter_errors(document.value_at(*path)):
        yield from _faults_of(document, error, (*path, *error.absolute_path))


def _faults_of(document: ClusterDocument, error: Any, path: KeyPath) -> Iterator[Fault]:
    got = shown(error.instance)
    match error.validator:
        case "additionalProperties":
            known = list(error.schema.get("properties", ()))
            for name in [str(name) for name in error.instance if name not in known]:
                yield document.fault((*path, name), f"unknown field{meant(name, known)}")
        case "required":
            missing = re.sub(r"^'(.*)' is a required property$", r"\1", error.message)
            yield document.fault((*path, missing), "is missing; add it")
        case "enum":
            known = list(map(str, error.validator_value))
            yield document.fault(path, choice_rule(error.instance, known))
        case "type" | "anyOf":
            yield document.fault(path, _type_rule(error))
        case "pattern" if QUANTITY in error.schema:
            yield document.fault(path, quantity_rule(error.instance))
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            bound = "at least" if "inimum" in error.validator else "at most"
            yield document.fault(path, f"must be {bound} {error.validator_value}, got {got}; correct it")
        case _:
            yield document.fault(path, f"{error.message}; correct it")


def _type_rule(error: Any) -> str:
    """Return the rule about a value of a wrong type, with the value in the right type if it is obvious."""
    options = [error.schema, *error.schema.get("anyOf", ())]
    types = [one for option in options for one in _listed(option.get("type"))]
    value = error.instance
    rule = f"must be of type {' or '.join(types)}, got {shown(value)}"
    if "string" in types and isinstance(value, int | float):
        return f"{rule}; write it in quotes: {json.dumps(shown(value))}"
    if isinstance(value, str) and {"integer", "number"} & set(types) and re.fullmatch(r"-?\d+", value):
        return f"{rule}; write it without quotes: {value}"
    if isinstance(value, str) and "boolean" in types and value.lower() in ("true", "false"):
        return f"{rule}; write it without quotes: {value.lower()}"
    if value is None:
        return f"{rule}; write a value or remove the field"
    return f"{rule}; correct it"


def quantity_rule(value: Any) -> str:
    """Return the rule about a text that is no quantity of Kubernetes."""
    text = str(value)
    fixed = re.sub(r"\s+", "", text)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtpe])(i?)b?", fixed, re.IGNORECASE):
        fixed = f"{found[1]}{found[2].upper()}{'i' if found[3] else ''}"
    elif re.fullmatch(r"\d+cores?|\d+cpus?", fixed, re.IGNORECASE):
        fixed = re.sub(r"\D", "", fixed)
    example = fixed if fixed != text else "a number with a suffix such as 500m, 2 or 16Gi"
    return f"must be a quantity of Kubernetes, got {shown(value)}; write {example}"


def choice_rule(value: Any, known: Sequence[str]) -> str:
    """Return the rule about a value that is none of the known ones."""
    listed = ", ".join(known[:MAX_LISTED]) + (", ..." if len(known) > MAX_LISTED else "")
    return f"must be one of {listed}, got {shown(value)}{meant(str(value), known, '; choose one of these')}"


def meant(name: str, known: Iterable[str], otherwise: str = "; remove it") -> str:
    """Return the known name that resembles a name, regardless of case, as the end of a rule."""
    known = list(known)
    if same := [one for one in known if one.lower() == name.lower()]:
        return f"; did you mean '{same[0]}'?"
    return did_you_mean(name, known) or otherwise


def shown(value: Any) -> str:
    """Return a value as it is written in YAML, shortened."""
    return truncated(value if isinstance(value, str) and value else json.dumps(value, default=str))


def _listed(types: Any) -> list[str]:
    return types if isinstance(types, list) else [types] if types else []
