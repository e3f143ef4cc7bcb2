"""Loading of sweep files: YAML and overrides to a validated SweepSpec and the points of its grid.

The errors of the whole grid are collected and raised together, each with file, line and column.
"""

import itertools
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import reduce
from io import StringIO
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.document import SpecDocument, SpecError, did_you_mean, format_value, truncated
from raycap.spec.faults import Faults
from raycap.spec.locations import LocationError, refuse_shell_syntax
from raycap.spec.user_code import IMPORTS
from raycap.spec.yaml_tree import MAX_BYTES, MAX_DEPTH, YamlError, YamlTree, read_yaml

MAX_GRID_POINTS = 100_000
MAX_QUESTION = 300
"""Largest number of characters of a sweep's question."""
SWEEPS_FOLDER = Path("sweeps")
PYTHON_SOURCE = "sweep"
"""Source in the errors of a sweep that is given as Python values."""


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid, with its validated but unresolved trial."""

    coordinates: dict[str, Any]
    """Value of each axis, by the axis' dotted path."""
    trial: TrialSpec
    position: str
    """Position of the trial's profiles (`file:line:column`), for errors that are found when the trial is resolved."""


@dataclass(frozen=True)
class LoadedSweep:
    """A validated sweep file."""

    spec: SweepSpec
    points: list[GridPoint]
    question: str
    """The first comment of the file, empty if it does not begin with one."""
    text: str
    """The text of the file."""


def load_sweep(path_or_name: str, overrides: tuple[str, ...] = ()) -> LoadedSweep:
    """Read and validate a sweep file.

    Args:
        path_or_name: Path of the file, from the working directory or from `sweeps/`.
        overrides: Texts of the form key=value. The key is a dotted path into the file (`trial.training.batch_size=64`,
            `grid.model.hidden_size=[8,16]`), the value is YAML.

    Raises:
        SpecError: The file, an override or a point of the grid is invalid; the error lists all faults.
    """
    path = _find(path_or_name)
    document = SpecDocument(str(path), _contents(path))
    document.tree.setdefault("name", path.stem.encode("utf-8", "replace").decode())
    return _load(document, overrides)


def load_tree(tree: Mapping[str, Any] | SweepSpec, question: str = "", overrides: tuple[str, ...] = ()) -> LoadedSweep:
    """Validate a sweep that is given as Python values: a spec or the contents of a file, with arrays and specs in it.

    `question` takes the place of the file's first comment, and `overrides` are those of `load_sweep`.

    Raises:
        SpecError: A value is none that YAML has, or the sweep is invalid; the error lists all faults.
    """
    try:
        plain = TypeAdapter(Any).dump_python(tree, mode="json", exclude_unset=True, fallback=_as_list)
    except (TypeError, ValueError) as error:
        raise SpecError([f"{PYTHON_SOURCE}: must consist of numbers, texts, lists, dicts and specs: {error}"]) from None
    stream = StringIO()
    YAML().dump(plain, stream)
    comment = "".join(f"# {line}\n" for line in question.splitlines())
    try:
        contents = read_yaml(f"{comment}{stream.getvalue()}".encode())
    except YamlError as error:
        raise SpecError([f"{PYTHON_SOURCE}: {error}"]) from None
    # The text was generated, so positions in it would mean nothing to the user.
    return _load(SpecDocument(PYTHON_SOURCE, replace(contents, value=plain, positions={})), overrides)


def _as_list(values: Any) -> Any:
    """Return an array, a range or another iterable as a list, and a number of NumPy as a number. Raises TypeError."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _load(document: SpecDocument, overrides: tuple[str, ...]) -> LoadedSweep:
    """Validate a document after its overrides. Raises SpecError."""
    bad_overrides = []
    for override in overrides:
        try:
            document.override(override)
        except SpecError as error:
            bad_overrides += error.problems
    faults = Faults(document)
    spec = None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(document.tree))
    except ValidationError as error:
        faults.add_validation_error(error, SweepSpec, ())
    if spec is not None:
        _check_locations(spec, faults)
        if spec.pool is None:  # the axes of a pool are known only when its sweeps are read
            _check_roles(spec, faults)
    first_line = document.text.lstrip().partition("\n")[0]
    question = first_line.lstrip("# ").strip() if first_line.startswith("#") else ""
    if len(question) > MAX_QUESTION:
        faults.add(
            (),
            f"the first comment is the sweep's question and must have at most {MAX_QUESTION} characters, "
            f"got {len(question):,}; shorten it",
        )
    trial, grid = document.tree.get("trial", {}), document.tree.get("grid", {})
    points: list[GridPoint] = []
    if isinstance(trial, dict) and isinstance(grid, dict) and all(isinstance(values, list) for values in grid.values()):
        _check_overrides(grid, document, faults)
        points = _check_grid(trial, grid, document, faults)
    if bad_overrides or faults.lines or spec is None:
        raise SpecError([*bad_overrides, *faults.lines])
    return LoadedSweep(spec, [] if spec.pool else points, question, document.text)


def _check_locations(spec: SweepSpec, faults: Faults) -> None:
    """Add faults of the paths and URIs that the sweep writes to.

    SweepSpec does not check them, because stored records contain absolute paths that raycap derived.
    """
    sweeps = spec.pool.sweeps if spec.pool else ()
    of_pool = [(("pool", "sweeps", index), location) for index, location in enumerate(sweeps)]
    for path, location in (("storage",), spec.storage), (("tracking", "uri"), spec.tracking.uri), *of_pool:
        try:
            refuse_shell_syntax(location or "")
        except LocationError as error:
            faults.add(path, f"{'.'.join(map(str, path))}: {error}")


def _check_roles(spec: SweepSpec, faults: Faults) -> None:
    """Add faults of paths in `analysis.nuisance` and `analysis.compare` that are no axes of the grid."""
    for field in ("nuisance", "compare"):
        for index, path in enumerate(getattr(spec.analysis, field)):
            if path not in spec.grid:
                axes = [axis for axis in spec.grid if not axis.endswith("seed")]
                hint = did_you_mean(path, axes) or (f"; the axes are: {', '.join(axes)}" if axes else "; remove it")
                message = f"analysis.{field}: must be an axis of the grid, got {format_value(path)}{hint}"
                faults.add(("analysis", field, index), message)


def _find(path_or_name: str) -> Path:
    candidates = (Path(path_or_name), SWEEPS_FOLDER / path_or_name)
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike Path.is_file, returns False for invalid names
            return candidate
    for candidate in candidates:
        if os.path.exists(candidate):
            raise SpecError(
                [f"{candidate}: a spec must be a file, not a folder, pipe or device; pass the path of a file"]
            )
    known = sorted(str(p) for p in SWEEPS_FOLDER.glob("specs/*.yaml"))
    hint = did_you_mean(str(SWEEPS_FOLDER / path_or_name), known)
    hint = hint or (f"; known are: {', '.join(known)}" if known else "; give the path of a YAML file")
    raise SpecError(
        [f"{truncated(path_or_name)}: no such spec file, neither as given nor under {SWEEPS_FOLDER}/{hint}"]
    )


def _contents(path: Path) -> YamlTree:
    """Read a file whose root is a mapping. Raises SpecError."""
    try:
        with path.open("rb") as file:
            read = read_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}; make the file readable"]) from None
    except YamlError as error:
        raise SpecError([f"{path}:{error.line}:{error.column}: {error}"]) from None
    if not isinstance(read.value, dict):
        got = "nothing" if read.value is None else format_value(read.value)
        raise SpecError([f"{path}:1:1: a sweep file must be a mapping (name:, trial:, grid:, ...), got {got}"])
    return read


def _check_overrides(grid: dict[str, list[Any]], document: SpecDocument, faults: Faults) -> None:
    """Add a fault for every override of a value that the grid sets at every point, so that it would have no effect.

    A whole new section `trial` may hold such values, as in a file. An empty section sets nothing.
    """
    for path, text, value in document.overrides:
        keys = tuple(map(str, path[1:]))
        for axis in grid if path[0] == "trial" and keys and value != {} else ():
            parts = tuple(axis.split("."))
            inner, outer = keys[len(parts) :], parts[len(keys) :]
            if parts == keys[: len(parts)]:
                if any(_contains(each, inner) for each in grid[axis]):  # replace the values of the axis
                    change = f"grid.{axis}=[{''.join(f'{{{key}: ' for key in inner)}{text}{'}' * len(inner)}]"
                else:  # set the field in each of its values
                    change = f"grid.{'.'.join(keys)}=[{text}]"
            elif keys == parts[: len(keys)] and (value is None or _contains(value, outer)):
                change = "grid={}" if value is None else f"grid.{axis}=[{json.dumps(reduce(getitem, outer, value))}]"
            else:
                continue
            key = ".".join(map(str, path))
            faults.add(path, f"{key}: has no effect, because the grid varies {axis}; use {shlex.quote(change)}")


def _contains(value: Any, keys: tuple[str, ...]) -> bool:
    """Whether nested mappings have a value at a path of keys."""
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _check_grid(
    trial: dict[str, Any], grid: dict[str, list[Any]], document: SpecDocument, faults: Faults
) -> list[GridPoint]:
    """Validate the trial at every point of the grid and return the valid points; faults are added to `faults`."""
    num_points = math.prod(len(values) for values in grid.values())
    if num_points > MAX_GRID_POINTS:
        product = truncated(" x ".join(f"{len(values):,}" for values in grid.values()), 200)
        total = f"{num_points:,}" if num_points < 10**15 else f"about 10^{math.log10(num_points):.0f}"
        faults.add(
            ("grid",),
            f"grid: {product} = {total} points, more than {MAX_GRID_POINTS:,}; remove values or split the sweep",
        )
        return []
    if not _axes_are_compatible(list(grid), faults):
        return []
    points, position = [], document.locate(("trial", "profiles"))
    for raw, coordinates, indices in _grid_trees(trial, grid, faults):
        try:
            points.append(
                GridPoint(coordinates, TrialSpec.model_validate_json(json.dumps(raw), context=IMPORTS), position)
            )
        except ValidationError as error:
            faults.add_validation_error(error, TrialSpec, ("trial",), indices)
        if faults.too_many:
            break
    return points


def _axes_are_compatible(paths: list[str], faults: Faults) -> bool:
    """Check the depth of the axes, and that no axis replaces a section in which an earlier axis sets a field."""
    order = {path: number for number, path in enumerate(paths)}
    compatible = True
    for path, number in order.items():
        parts = path.split(".")
        if len(parts) > MAX_DEPTH:
            faults.add(
                ("grid", path),
                f"grid.{truncated(path)}: must be at most {MAX_DEPTH} levels deep; no field of a spec is deeper",
            )
            compatible = False
            continue
        for depth in range(1, len(parts)):
            outer = ".".join(parts[:depth])
            if order.get(outer, number) > number:
                faults.add(
                    ("grid", outer),
                    f"grid.{outer}: would replace the values of grid.{path}; move it before grid.{path}",
                )
                compatible = False
    return compatible


def _grid_trees(
    trial: dict[str, Any], grid: dict[str, list[Any]], faults: Faults
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Yield for every point of the grid the unvalidated trial, the coordinates and the index along each axis."""
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
                    faults.add(
                        ("grid", path),
                        f"grid.{path}: {section} must be a section, got {format_value(child)}; remove one of the two",
                    )
                    child = {}
                node[section] = child
                node = child
            node[leaf] = deepcopy(value)  # later axes may set fields inside the value
        yield raw, coordinates, dict(zip(grid, indices, strict=True))
