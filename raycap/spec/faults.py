"""What is wrong with a spec: pydantic's findings as lines of place, field, rule, value got and way out."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, ValidationError

from raycap.spec.document import SpecDocument, shown, truncated
from raycap.spec.yaml_tree import KeyPath

MAX_FAULTS = 100
"""So many faults are told at once; who made more has made a few many times."""
MEANING_LENGTH = 110
"""Characters of what a field is that are told with a fault of it."""
MAX_FAULTY_POINTS = 5_000
"""After so many points of a grid with faults it is not searched for others."""


class Faults:
    """What is wrong with a spec, each fault once though it may be found at every point of the grid."""

    def __init__(self, document: SpecDocument) -> None:
        self._document = document
        self._told: dict[tuple[Any, ...], str] = {}
        self._faulty_points = 0

    @property
    def too_many(self) -> bool:
        """Whether it is time to stop looking."""
        return len(self._told) > MAX_FAULTS or self._faulty_points > MAX_FAULTY_POINTS

    @property
    def lines(self) -> list[str]:
        """One for each fault: place, field, rule, value got, way out."""
        more = [f"{self._document.locate(())}: and perhaps more; mend these first"] if self.too_many else []
        return [*list(self._told.values())[:MAX_FAULTS], *more]

    def tell(self, place: KeyPath, rule: str) -> None:
        """Add a fault of the value at a place."""
        self._told.setdefault((place, rule), f"{self._document.locate(place)}: {rule}")

    def add(
        self, error: ValidationError, model: type[BaseModel], prefix: KeyPath, indices: dict[str, int] | None = None
    ) -> None:
        """Add the faults of a model, at a point of the grid if it has indices along the axes."""
        self._faulty_points += 1
        for fault in error.errors(include_url=False):
            if self.too_many:
                return
            if fault["type"] == "default_factory_not_called":  # a consequence of another fault in the list
                continue
            # Tags of unions are not places in the file: specs write them "<tag>".
            names = tuple(part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("<")))
            place = source = (*prefix, *names)
            for path, index in (indices or {}).items():
                axis = ("trial", *path.split("."))
                if place == axis and fault["type"] == "extra_forbidden":
                    source = ("grid", path)
                elif place[: len(axis)] == axis:
                    source = ("grid", path, index, *place[len(axis) :])
                elif axis[: len(place)] == place and place not in self._document:  # a section that only the axis names
                    source = ("grid", path)
            key = (source, place, fault["type"], fault["msg"])
            if key not in self._told:
                where = ".".join(truncated(str(part)) for part in place)
                about = f" ({meaning})" if (meaning := _meaning(model, fault)) else ""
                self._told[key] = f"{self._document.locate(source)}: {where}: {_rule(fault, model)}{about}"


def _rule(fault: Any, model: type[BaseModel]) -> str:
    match fault["type"]:
        case "extra_forbidden":
            known = _fields_beside(model, fault["loc"])
            close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            return "unknown field; " + (f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}")
        case "missing":
            return "is required"
        case "raycap_rule":
            return fault["msg"]
        case "string_type":
            return f"should be text, got {shown(fault['input'])}; put it in quotes"
        case "enum" | "literal_error" | "union_tag_invalid":
            context = fault["ctx"]
            tags = context.get("expected", context.get("expected_tags", ""))
            # "<generate/bits>" is one of several forms of "generate", told apart by their fields.
            options = list(dict.fromkeys(option.strip("'<>").split("/")[0] for option in re.split(r", | or ", tags)))
            value = context["tag"].strip("<>") if "tag" in context else fault["input"]
            close = difflib.get_close_matches(str(value), options, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return f"must be one of {', '.join(options)}, got {shown(value)}{hint}"
        case _:
            message = fault["msg"].replace("Input should", "should")
            readable = re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", message)
            return f"{readable}, got {shown(fault['input'])}"


def _meaning(model: type[BaseModel], fault: Any) -> str:
    """What the field at fault is, in a sentence of its description; nothing for unknown fields, and whole specs."""
    names = [part for part in fault["loc"] if isinstance(part, str) and not part.startswith("<")]
    if not names or fault["type"] == "extra_forbidden":
        return ""
    fields = [node["properties"][names[-1]] for node in _nodes(model, names) if names[-1] in node.get("properties", {})]
    described = next((field["description"] for field in fields if "description" in field), "")
    return shorten(re.split(r"[.;]\s", described)[0].rstrip("."), MEANING_LENGTH, placeholder=" ...")


def _fields_beside(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Field names the model at `loc`'s parent knows."""
    return list(dict.fromkeys(name for node in _nodes(model, loc) for name in node.get("properties", {})))


def _nodes(model: type[BaseModel], loc: Sequence[Any]) -> list[dict[str, Any]]:
    """The models that may be at `loc`'s parent, found by walking the JSON schema that pydantic derives."""
    schema = _schema(model)
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        branches = node.get("oneOf", node.get("anyOf"))
        return [leaf for branch in branches for leaf in resolve(branch)] if branches else [node]

    nodes = [schema]
    for part in loc[:-1]:
        children = [c for n in nodes for c in resolve(n.get("properties", {}).get(part, {}))]
        nodes = [c for c in children if c] or nodes
    return nodes


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()
