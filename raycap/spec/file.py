"""From a YAML file and overrides to a checked SweepSpec and its grid points; every error says file:line:column.

All errors of the whole grid are collected and raised together, before anything starts.
"""

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from raycap.spec import SweepSpec, TrialSpec

MAX_GRID_POINTS = 100_000
SWEEPS_FOLDER = Path("sweeps")

Place = tuple[str | int, ...]
Position = tuple[str, int, int]  # (file or "command line", line, column), the last two from 1


class SpecError(ValueError):
    """A spec that cannot be run. `problems` holds one line per fault, each with its place and the way out."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid: where it lies, and the trial there as validated but not yet resolved."""

    coordinates: dict[str, Any]
    trial: TrialSpec
    place: str
    """file:line:column of its profiles, which is what later checks are mostly about."""


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep file as read: the validated spec, every grid point, the question in its first comment, its own text."""

    spec: SweepSpec
    points: list[GridPoint]
    question: str
    text: str


def load_sweep(path_or_name: str, overrides: tuple[str, ...] = ()) -> LoadedSweep:
    """Read and check a sweep file, or one of that name under `sweeps/`.

    `overrides` are `key=value` pairs, the key a dotted path into the file (`trial.training.seed=3`,
    `grid.model.hidden_size=[8,16]`), the value YAML. Raises SpecError with every fault found.
    """
    path = _find(path_or_name)
    text = path.read_text(encoding="utf-8")
    document = _Document.parse(text, str(path))
    for override in overrides:
        document.override(override)
    if "name" not in document.tree:
        document.tree["name"] = path.stem

    problems: list[str] = []
    spec = None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(document.tree, default=str))
    except ValidationError as error:
        problems += _describe(error, SweepSpec, (), document)
    tree_trial, tree_grid = document.tree.get("trial", {}), document.tree.get("grid", {})
    points: list[GridPoint] = []
    if (
        isinstance(tree_trial, dict)
        and isinstance(tree_grid, dict)
        and all(isinstance(v, list) for v in tree_grid.values())
    ):
        points = _check_grid(tree_trial, tree_grid, document, problems)
    if problems or spec is None:
        raise SpecError(list(dict.fromkeys(problems)))
    first_line = text.lstrip().partition("\n")[0]
    return LoadedSweep(spec, points, first_line.lstrip("# ").strip() if first_line.startswith("#") else "", text)


def _find(path_or_name: str) -> Path:
    for candidate in (Path(path_or_name), SWEEPS_FOLDER / path_or_name):
        if candidate.is_file():
            return candidate
    known = sorted(str(p) for p in SWEEPS_FOLDER.glob("specs/*.yaml"))
    close = difflib.get_close_matches(str(SWEEPS_FOLDER / path_or_name), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}" if known else ""
    raise SpecError([f"{path_or_name}: no such spec file, neither as given nor under {SWEEPS_FOLDER}/{hint}"])


class _Document:
    """The YAML tree with the position of every node."""

    def __init__(self, tree: dict[str, Any], positions: dict[Place, Position]) -> None:
        self.tree = tree
        self._positions = positions

    @classmethod
    def parse(cls, text: str, source: str) -> "_Document":
        try:
            raw = YAML(typ="rt", pure=True).load(StringIO(text))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
            raise SpecError([f"{where}: not valid YAML: {error.problem or error.context}"]) from None
        if not isinstance(raw, CommentedMap):
            raise SpecError(
                [f"{source}:1:1: a sweep file is a mapping (name:, trial:, grid:, ...), got {type(raw).__name__}"]
            )
        positions: dict[Place, Position] = {(): (source, 1, 1)}
        _record_positions(raw, (), source, positions)
        return cls(_plain(raw), positions)

    def override(self, text: str) -> None:
        """Apply one key=value override; the longest existing grid axis or section wins for dotted grid keys."""
        key, equals, value = text.partition("=")
        source = f"override {text!r}"
        if not equals or not key:
            raise SpecError([f"{source}: must have the form key=value, such as trial.training.seed=3"])
        try:
            parsed = _plain(YAML(typ="rt", pure=True).load(StringIO(value)))
        except MarkedYAMLError as error:
            raise SpecError([f"{source}: the value is not valid YAML: {error.problem or error.context}"]) from None
        parts = key.split(".")
        if parts[0] == "grid" and len(parts) > 1:  # a grid axis is one key with dots in it
            parts = ["grid", ".".join(parts[1:])]
            parsed = parsed if isinstance(parsed, list) else [parsed]
        node = self.tree
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise SpecError([f"{source}: {part} is not a section"])
            node = child
        node[parts[-1]] = parsed
        place: Place = tuple(parts)
        for known in [p for p in self._positions if p[: len(place)] == place]:
            del self._positions[known]
        self._positions[place] = (source, 0, 0)

    def locate(self, place: Place) -> str:
        """`file:line:column` of the node at `place`, or of the nearest one above it."""
        while place not in self._positions:
            place = place[:-1]
        source, line, column = self._positions[place]
        return f"{source}:{line}:{column}" if line else source


def _record_positions(node: Any, place: Place, source: str, positions: dict[Place, Position]) -> None:
    if isinstance(node, CommentedMap):
        for key, child in node.items():
            line, column = node.lc.key(key)
            positions[(*place, key)] = (source, line + 1, column + 1)
            _record_positions(child, (*place, key), source, positions)
    elif isinstance(node, CommentedSeq):
        for index, child in enumerate(node):
            line, column = node.lc.item(index)
            positions[(*place, index)] = (source, line + 1, column + 1)
            _record_positions(child, (*place, index), source, positions)


def _plain(node: Any) -> Any:
    """The tree as dicts, lists and scalars, without the parser's own types."""
    if isinstance(node, dict):
        return {str(key): _plain(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_plain(child) for child in node]
    if isinstance(node, float) and node.is_integer() and abs(node) < 2**53:
        return int(node)  # 1e9 is how people write a whole number; fields for fractions take it too
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node if node is None else str(node)


def _check_grid(
    trial: dict[str, Any], grid: dict[str, list[Any]], document: _Document, problems: list[str]
) -> list[GridPoint]:
    num_points = math.prod(len(values) for values in grid.values())
    if num_points > MAX_GRID_POINTS:
        counts = " x ".join(str(len(values)) for values in grid.values())
        problems.append(
            f"{document.locate(('grid',))}: grid: {counts} = {num_points} points, more than {MAX_GRID_POINTS}"
        )
        return []
    points = []
    for raw, coordinates, indices in _grid_trees(trial, grid):
        try:
            checked = TrialSpec.model_validate_json(json.dumps(raw, default=str))
            points.append(GridPoint(coordinates, checked, document.locate(("trial", "profiles"))))
        except ValidationError as error:
            problems += _describe(error, TrialSpec, ("trial",), document, indices)
    return points


def _grid_trees(
    trial: dict[str, Any], grid: dict[str, list[Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Every point: the trial with the point's values set, its coordinates, and the index along each axis."""
    base = json.dumps(trial, default=str)
    for indices in itertools.product(*(range(len(values)) for values in grid.values())):
        raw = json.loads(base)
        coordinates = {}
        for (path, values), index in zip(grid.items(), indices, strict=True):
            *sections, leaf = path.split(".")
            node = raw
            for section in sections:
                child = node.setdefault(section, {})
                node = child if isinstance(child, dict) else node.__setitem__(section, {}) or node[section]
            node[leaf] = values[index]
            coordinates[path] = values[index]
        yield raw, coordinates, dict(zip(grid, indices, strict=True))


def _describe(
    error: ValidationError, model: Any, prefix: Place, document: _Document, indices: dict[str, int] | None = None
) -> list[str]:
    """One line per fault: place, field, rule, value got, way out."""
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "default_factory_not_called":  # a consequence of another fault in the list
            continue
        # Tags of unions are not places in the file: specs write them "<tag>".
        names = tuple(part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("<")))
        place = document_place = (*prefix, *names)
        for path, index in (indices or {}).items():
            axis = ("trial", *path.split("."))
            if place[: len(axis)] == axis:
                document_place = ("grid", path) if fault["type"] == "extra_forbidden" else ("grid", path, index)
        lines.append(f"{document.locate(document_place)}: {'.'.join(map(str, place))}: {_rule(fault, model)}")
    return lines


def _rule(fault: Any, model: Any) -> str:
    got = json.dumps(fault["input"], default=str)
    got = got if len(got) <= 80 else got[:77] + "..."
    match fault["type"]:
        case "extra_forbidden":
            known = _fields_beside(model, fault["loc"])
            close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            return "unknown field; " + (f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}")
        case "missing":
            return "is required"
        case "raycap_rule":
            return fault["msg"]
        case "enum" | "literal_error" | "union_tag_invalid":
            context = fault["ctx"]
            tags = context.get("expected", context.get("expected_tags", ""))
            # "<generate/bits>" is one of several forms of "generate", told apart by their fields.
            options = list(dict.fromkeys(option.strip("'<>").split("/")[0] for option in re.split(r", | or ", tags)))
            value = context["tag"].strip("<>") if "tag" in context else fault["input"]
            close = difflib.get_close_matches(str(value), options, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return f"must be one of {', '.join(options)}, got {json.dumps(value, default=str)}{hint}"
        case _:
            message = fault["msg"].replace("Input should", "should")
            return f"{message}, got {got}"


def _fields_beside(model: Any, loc: Place) -> list[str]:
    """Field names the model at `loc`'s parent knows, found by walking the JSON schema that pydantic derives."""
    schema = TypeAdapter(model).json_schema()
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
    return list(dict.fromkeys(name for node in nodes for name in node.get("properties", {})))
