"""From a YAML file and overrides to a checked SweepSpec and its grid points; every error says file:line:column.

All errors of the whole grid are collected and raised together, before anything starts.
"""

import difflib
import itertools
import json
import math
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.document import SpecDocument, SpecError, shown, truncated
from raycap.spec.faults import Faults
from raycap.spec.yaml_tree import MAX_BYTES, MAX_DEPTH, Tree, YamlError, read_yaml

MAX_GRID_POINTS = 100_000
MAX_QUESTION = 300
"""Characters of the question that a sweep asks."""
SWEEPS_FOLDER = Path("sweeps")


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
    document = SpecDocument(str(path), _contents(path))
    unread = []
    for override in overrides:
        try:
            document.override(override)
        except SpecError as error:
            unread += error.problems
    if "name" not in document.tree:
        document.tree["name"] = path.stem.encode("utf-8", "replace").decode()

    faults = Faults(document)
    spec = None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(document.tree))
    except ValidationError as error:
        faults.add(error, SweepSpec, ())
    first_line = document.text.lstrip().partition("\n")[0]
    question = first_line.lstrip("# ").strip() if first_line.startswith("#") else ""
    if len(question) > MAX_QUESTION:
        faults.tell(
            (), f"the first comment is the question, got {len(question):,} characters; ask it in {MAX_QUESTION}"
        )
    trial, grid = document.tree.get("trial", {}), document.tree.get("grid", {})
    points: list[GridPoint] = []
    if isinstance(trial, dict) and isinstance(grid, dict) and all(isinstance(values, list) for values in grid.values()):
        points = _check_grid(trial, grid, document, faults)
    if unread or faults.lines or spec is None:
        raise SpecError([*unread, *faults.lines])
    return LoadedSweep(spec, points, question, document.text)


def _find(path_or_name: str) -> Path:
    candidates = (Path(path_or_name), SWEEPS_FOLDER / path_or_name)
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike Path.is_file, False for names that no file can have
            return candidate
    for candidate in candidates:
        if os.path.exists(candidate):
            raise SpecError([f"{candidate}: a spec must be a file, not a folder, pipe or device; give its path"])
    known = sorted(str(p) for p in SWEEPS_FOLDER.glob("specs/*.yaml"))
    close = difflib.get_close_matches(str(SWEEPS_FOLDER / path_or_name), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}" if known else ""
    raise SpecError(
        [f"{truncated(path_or_name)}: no such spec file, neither as given nor under {SWEEPS_FOLDER}/{hint}"]
    )


def _contents(path: Path) -> Tree:
    """The file as a tree whose root is a mapping."""
    try:
        with path.open("rb") as file:
            read = read_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
    except YamlError as error:
        raise SpecError([f"{path}:{error.line}:{error.column}: {error}"]) from None
    if not isinstance(read.value, dict):
        got = "nothing" if read.value is None else shown(read.value)
        raise SpecError([f"{path}:1:1: a sweep file is a mapping (name:, trial:, grid:, ...), got {got}"])
    return read


def _check_grid(
    trial: dict[str, Any], grid: dict[str, list[Any]], document: SpecDocument, faults: Faults
) -> list[GridPoint]:
    num_points = math.prod(len(values) for values in grid.values())
    if num_points > MAX_GRID_POINTS:
        product = truncated(" x ".join(f"{len(values):,}" for values in grid.values()), 200)
        total = f"{num_points:,}" if num_points < 10**15 else f"about 10^{math.log10(num_points):.0f}"
        faults.tell(
            ("grid",),
            f"grid: {product} = {total} points, more than {MAX_GRID_POINTS:,}; take fewer values, or split the sweep",
        )
        return []
    if not _axes_fit_together(list(grid), faults):
        return []
    points, place = [], document.locate(("trial", "profiles"))
    for raw, coordinates, indices in _grid_trees(trial, grid, faults):
        try:
            points.append(GridPoint(coordinates, TrialSpec.model_validate_json(json.dumps(raw)), place))
        except ValidationError as error:
            faults.add(error, TrialSpec, ("trial",), indices)
        if faults.too_many:
            break
    return points


def _axes_fit_together(paths: list[str], faults: Faults) -> bool:
    """Whether each axis is a path, and none takes back what one before it has set."""
    order = {path: number for number, path in enumerate(paths)}
    fit = True
    for path, number in order.items():
        parts = path.split(".")
        if len(parts) > MAX_DEPTH:
            faults.tell(("grid", path), f"grid.{truncated(path)}: nested deeper than {MAX_DEPTH} levels; no field is")
            fit = False
            continue
        for depth in range(1, len(parts)):
            outer = ".".join(parts[:depth])
            if order.get(outer, number) > number:
                faults.tell(
                    ("grid", outer), f"grid.{outer}: would replace what grid.{path} has set; put it before that"
                )
                fit = False
    return fit


def _grid_trees(
    trial: dict[str, Any], grid: dict[str, list[Any]], faults: Faults
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Every point: the trial with the point's values set, its coordinates, and the index along each axis."""
    base = json.dumps(trial)
    for indices in itertools.product(*(range(len(values)) for values in grid.values())):
        raw = json.loads(base)
        coordinates = {path: values[index] for (path, values), index in zip(grid.items(), indices, strict=True)}
        for path, value in coordinates.items():
            *sections, leaf = path.split(".")
            node = raw
            for section in sections:
                child = {} if node.get(section) is None else node[section]
                if not isinstance(child, dict):
                    faults.tell(
                        ("grid", path), f"grid.{path}: {section} is not a section, but {shown(child)}; remove one"
                    )
                    child = {}
                node[section] = child
                node = child
            node[leaf] = deepcopy(value)  # other axes may set fields in it
        yield raw, coordinates, dict(zip(grid, indices, strict=True))
