"""Conversion of Pydantic validation errors to lines with position, field, rule, value and remedy."""

import re
from collections.abc import Sequence
from functools import cache
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, ValidationError

from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.document import SpecDocument, did_you_mean, format_value, truncated
from raycap.spec.forms import Forms, forms_of, has, tags_of
from raycap.spec.points import Setting
from raycap.spec.yaml_reader import KeyPath

MAX_FAULTS = 100
"""Largest number of faults that are reported together. More faults are usually repetitions of a few mistakes."""
MEANING_LENGTH = 110
"""Largest number of characters of a field's description in a fault."""
MAX_FAULTY_POINTS = 5_000
"""Number of faulty grid points after which the remaining points are not checked."""


class Faults:
    """The faults of a spec. A fault that occurs at several points of the grid is kept once."""

    def __init__(self, document: SpecDocument) -> None:
        self._document = document
        self._messages: dict[tuple[Any, ...], str] = {}
        self._faulty_points = 0

    @property
    def too_many(self) -> bool:
        """Whether the limit of reported faults is reached, so that checking can stop."""
        return len(self._messages) > MAX_FAULTS or self._faulty_points > MAX_FAULTY_POINTS

    @property
    def lines(self) -> list[str]:
        """One line per fault: position, field, rule, value and remedy."""
        more = [f"{self._document.locate(())}: there may be more faults; correct these first"] if self.too_many else []
        return [*list(self._messages.values())[:MAX_FAULTS], *more]

    def add(self, path: KeyPath, message: str) -> None:
        """Add a fault of the value at `path`."""
        self._messages.setdefault((path, message), f"{self._document.locate(path)}: {message}")

    def add_validation_error(
        self, error: ValidationError, model: type[BaseModel], prefix: KeyPath, settings: Sequence[Setting] = ()
    ) -> None:
        """Add the faults of a model.

        Args:
            error: The error that Pydantic raised.
            model: The model that was validated.
            prefix: Path of the model in the document.
            settings: Settings of the point. A fault of a value that one of them sets is reported at its position under
                `grid` or `points`.
        """
        self._faulty_points += 1
        for fault in error.errors(include_url=False):
            if self.too_many:
                return
            if fault["type"] == "default_factory_not_called":  # a consequence of another fault in the list
                continue
            # Pydantic adds union tags, which have the form "<tag>", to the location. They are not keys of the file.
            keys = tuple(part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("<")))
            path = source = (*prefix, *keys)
            for setting in settings:
                axis_path = ("trial", *setting.path.split("."))
                inner = path[len(axis_path) :]
                if path == axis_path and fault["type"] == "extra_forbidden":
                    source = setting.axis  # the name of the axis is wrong, not its values
                elif path[: len(axis_path)] == axis_path and (has(setting.value, inner) or path not in self._document):
                    source = (*setting.source, *inner)
                elif axis_path[: len(path)] == path and path not in self._document:
                    source = setting.axis  # the faulty section exists only because the axis sets a field in it
            key = (source, path, fault["type"], fault["msg"])
            if key not in self._messages:
                field = ".".join(truncated(str(part)) for part in path)
                meaning = f" ({summary})" if (summary := _summary(model, fault)) else ""
                self._messages[key] = f"{self._document.locate(source)}: {field}: {_rule(fault, model)}{meaning}"


def _rule(fault: Any, model: type[BaseModel]) -> str:
    """Return the rule that was broken, the value and the remedy."""
    match fault["type"]:
        case "extra_forbidden":
            if other := _other_form(model, fault["loc"]):
                return other
            known = _sibling_fields(model, fault["loc"])
            hint = _other_section(model, fault["loc"]) or did_you_mean(str(fault["loc"][-1]), known)
            return "unknown field" + (hint or f"; known are: {', '.join(known)}")
        case "missing":
            return "is required; add it"
        case "raycap_rule":
            return str(fault["msg"])
        case "string_type":
            return f"should be text, got {format_value(fault['input'])}; put it in quotes"
        case "enum" | "literal_error" | "union_tag_invalid":
            context = fault["ctx"]
            tags = context.get("expected", context.get("expected_tags", ""))
            # "<generate/bits>" tags one of several forms of "generate", which differ in their fields.
            options = list(dict.fromkeys(option.strip("'<>").split("/")[0] for option in re.split(r", | or ", tags)))
            value = context["tag"].strip("<>") if "tag" in context else fault["input"]
            hint = did_you_mean(str(value), options)
            return f"must be one of {', '.join(options)}, got {format_value(value)}{hint}"
        case _:
            message = fault["msg"].replace("Input should", "should")
            readable = re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", message)
            return f"{readable}, got {format_value(fault['input'])}"


def _other_form(model: type[BaseModel], loc: KeyPath) -> str:
    """Return the rule that is broken if an unknown field of a section is known in another form of it, or "".

    Pydantic adds the tag of the form that it has chosen to the location.
    """
    forms: Forms | None = Forms.of(model)
    form: type[BaseModel] | None = model
    for part in map(str, loc[:-1]):
        if forms and part in forms.models:
            form = forms.models[part]
        else:
            forms = forms_of(form, part) if form else None
            form = forms.models.get("") if forms else None
    name = loc[-1]
    if forms is None or form is None or name in form.model_fields:
        return ""
    others = [other for other in forms.models.values() if name in other.model_fields]
    alike = next((other for other in others if tags_of(other) == tags_of(form)), None)
    if alike:
        chosen_by = (key for key, field in form.model_fields.items() if field.is_required())
        alternatives = [key for key in chosen_by if key not in alike.model_fields]
        return f"excludes {' and '.join(alternatives)}; give one of them" if alternatives else ""
    kinds = [f"{key}: {value}" for other in others for key, values in tags_of(other).items() for value in values]
    got = [f"{key}: {value}" for key, values in tags_of(form).items() for value in values]
    return f"unknown field of {got[0]}; it is a field of {' or '.join(dict.fromkeys(kinds))}" if kinds and got else ""


def _other_section(model: type[BaseModel], loc: KeyPath) -> str:
    """Return a hint if an unknown field is one of the trial in the sweep, or one of the sweep in the trial."""
    name, is_outermost = str(loc[-1]), len(loc) == 1
    if is_outermost and model is SweepSpec and name in TrialSpec.model_fields:
        return f"; it is a field of trial: write trial.{name}, or grid.{name} to vary it"
    if is_outermost and model is TrialSpec and name == "trial":
        return "; paths of the grid start inside trial: remove 'trial.'"
    if is_outermost and model is TrialSpec and name in SweepSpec.model_fields:
        return f"; it is a field of the sweep, which all trials share: write {name} outside trial and grid"
    return ""


def _summary(model: type[BaseModel], fault: Any) -> str:
    """Return the first sentence of the field's description, or an empty text for unknown fields and whole specs."""
    names = [part for part in fault["loc"] if isinstance(part, str) and not part.startswith("<")]
    if not names or fault["type"] == "extra_forbidden":
        return ""
    fields = [node["properties"][names[-1]] for node in _nodes(model, names) if names[-1] in node.get("properties", {})]
    described = next((field["description"] for field in fields if "description" in field), "")
    return shorten(re.split(r"[.;]\s", described)[0].rstrip("."), MEANING_LENGTH, placeholder=" ...")


def _sibling_fields(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Return the field names of the models that contain the field at `loc`."""
    return list(dict.fromkeys(name for node in _nodes(model, loc) for name in node.get("properties", {})))


def _nodes(model: type[BaseModel], loc: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the JSON schemas of the models that may contain the field at `loc`; a union has one for each member."""
    schema = _schema(model)
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        branches = node.get("oneOf", node.get("anyOf"))
        return [leaf for branch in branches for leaf in resolve(branch)] if branches else [node]

    nodes = [schema]
    for part in loc[:-1]:
        # The values of a mapping share one schema, `additionalProperties`; for a model this is false.
        values = [n.get("properties", {}).get(part, n.get("additionalProperties")) for n in nodes]
        children = [c for value in values if isinstance(value, dict) for c in resolve(value)]
        nodes = [c for c in children if c] or nodes
    return nodes


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()
