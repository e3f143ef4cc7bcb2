"""Building and validation of the points of a sweep; every fault gets the position of the value that caused it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raycap.spec.document import SpecDocument, format_value, truncated
from raycap.spec.faults import Faults
from raycap.spec.forms import merged, nested, tags_of
from raycap.spec.points import (
    TRIAL_FORMS,
    Product,
    Setting,
    displaced,
    is_excluded,
    products,
    with_settings,
)
from raycap.spec.scaling import Scaling, find_scalings
from raycap.spec.trial import TrialSpec
from raycap.spec.user_code import IMPORTS
from raycap.spec.yaml_tree import MAX_DEPTH

MAX_POINTS = 100_000
_MISSING = object()
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True)
class GridPoint:
    """One point of a sweep, with its validated but unresolved trial."""

    coordinates: dict[str, Any]
    """Value of each axis of the sweep, by the axis' dotted path. If the point does not set it, it is that of its trial."""
    trial: TrialSpec
    position: str
    """Position of the entry of `points`, or of the trial's profiles, for errors that are found when the trial is resolved
    (`file:line:column`)."""
    scalings: dict[str, Scaling] = field(default_factory=dict)
    """Numbers of the training that follow a size, by dotted path. `trial` has their values at the size `at`."""


def products_of(document: SpecDocument, faults: Faults) -> tuple[Product, ...]:
    """Return the products of grid and points of a document; none if they are malformed, which the model of the sweep
    reports, or if they have too many points."""
    trial, grid = document.tree.get("trial", {}), document.tree.get("grid", {})
    points, exclude = document.tree.get("points", []), document.tree.get("exclude", [])
    if not (isinstance(points, list) and isinstance(exclude, list)):
        return ()
    if not all(isinstance(section, dict) for section in (trial, grid, *points, *exclude)):
        return ()
    if not all(isinstance(values, list) for values in grid.values()):
        return ()
    found = products(grid, points)
    return found if _are_possible(found, grid, points, exclude, faults) else ()


def _are_possible(
    found: Sequence[Product],
    grid: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
    faults: Faults,
) -> bool:
    """Check the number of points, and the depth and the number of values of every axis, without building a point."""
    entries = [(("grid",), grid), *((("points", number), entry) for number, entry in enumerate(points))]
    entries += [(("exclude", number), entry) for number, entry in enumerate(exclude)]
    possible = True
    for source, entry in entries:
        for path, values in entry.items():
            name = f"{'.'.join(map(str, source))}.{truncated(path)}"
            if path.count(".") >= MAX_DEPTH:
                faults.add(
                    (*source, path), f"{name}: must be at most {MAX_DEPTH} levels deep; no field of a spec is deeper"
                )
                possible = False
            elif values == [] and source != ("grid",):
                faults.add(
                    (*source, path), f"{name}: must have at least one value; for an empty list as value, use [[]]"
                )
                possible = False
    for path in grid if points and possible else ():
        if all(path in entry for entry in points):
            faults.add(
                ("grid", path),
                f"grid.{path}: has no effect, because every entry of points sets {path}; remove it, or set "
                f"points.0.{path} and those of the other entries",
            )
            possible = False
    numbers = [product.num_points for product in found]
    if sum(numbers) > MAX_POINTS:
        sizes = [len(settings) for product in found for settings in product.axes.values()]
        text = " x ".join(f"{size:,}" for size in sizes) if len(found) == 1 else " + ".join(map(_number, numbers))
        source = found[0].source if len(found) == 1 else ("points",)
        faults.add(
            source,
            f"{source[0]}: {truncated(text, 200)} = {_number(sum(numbers))} points, more than {MAX_POINTS:,}; remove values "
            "or split the sweep",
        )
        possible = False
    return possible


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**15 else f"about 10^{math.log10(value):.0f}"


def build_points(found: Sequence[Product], document: SpecDocument, faults: Faults) -> list[GridPoint]:
    """Return the valid points of some products that are not excluded; faults of the others are added to `faults`."""
    if not found:
        return []
    base, exclude = document.tree.get("trial", {}), document.tree.get("exclude", [])
    axes = list(dict.fromkeys(path for product in found for path in product.axes))
    unused = dict.fromkeys(range(len(exclude)))
    points, has_points = [], False
    for product in found:
        position = document.locate(product.source if product.source[0] == "points" else ("trial", "profiles"))
        for settings in product.points():
            if not _fit(base, settings, faults):
                continue
            tree = with_settings(base, settings)
            excluded = [number for number, entry in enumerate(exclude) if is_excluded(tree, entry)]
            for number in excluded:
                unused.pop(number, None)
            if excluded:
                continue
            has_points = True
            _check_effects(tree, settings, faults)
            if point := _validated(tree, settings, axes, position, faults):
                points.append(point)
            if faults.too_many:
                return points
    for number in unused if not faults.lines else ():
        faults.add(
            ("exclude", number), f"exclude.{number}: excludes no point; correct or remove it, for example exclude=[]"
        )
    if exclude and not has_points:
        faults.add(("exclude",), "exclude: excludes all points; remove an entry")
    return points


def _fit(base: dict[str, Any], settings: Sequence[Setting], faults: Faults) -> bool:
    """Check that no setting is inside of a value that is not a section."""
    fit = True
    for setting in settings:
        node: Any = base
        for key in setting.path.split(".")[:-1]:
            node = node.get(key)
            if node is None:
                break
            if not isinstance(node, dict):
                name = ".".join(map(str, setting.source))
                faults.add(
                    setting.source,
                    f"{name}: {key} must be a section, got {format_value(node)}; remove one of the two",
                )
                fit = False
                break
    return fit


def _check_effects(tree: dict[str, Any], settings: Sequence[Setting], faults: Faults) -> None:
    """Add faults of settings that have no effect, because another one of the same point replaces them."""
    for setting, other in displaced(tree, settings):
        name, other_name = (".".join(map(str, each.axis)) for each in (setting, other))
        faults.add(setting.source, f"{name}: has no effect, because {other_name} replaces it; give one of them")


def _validated(
    tree: dict[str, Any], settings: Sequence[Setting], axes: Sequence[str], position: str, faults: Faults
) -> GridPoint | None:
    """Return the point of a trial, or None and add its faults."""
    scalings: dict[str, Scaling] = {}
    numbers, training = tree, tree.get("training")
    stated = find_scalings(training, "training") if isinstance(training, dict) else {}
    for path, scaling in stated.items():
        try:
            scalings[path] = Scaling.model_validate_json(json.dumps(scaling))
            numbers = merged(numbers, nested(path, scaling["value"]), TRIAL_FORMS)
        except ValidationError as error:
            faults.add_validation_error(error, Scaling, ("trial", *path.split(".")), settings)
    if len(scalings) < len(stated):
        return None
    try:
        trial = TrialSpec.model_validate_json(json.dumps(numbers), context=IMPORTS)
    except ValidationError as error:
        faults.add_validation_error(error, TrialSpec, ("trial",), settings)
        return None
    own = {setting.path: setting.value for setting in settings}
    coordinates = {path: own[path] if path in own else _value_at(path, tree, trial) for path in axes}
    return GridPoint(coordinates, trial, position, scalings)


def _value_at(path: str, tree: Any, trial: BaseModel) -> Any:
    """Return the value at a dotted path of a trial: as the spec states it, or else the default, or None if there is none.

    Of a section by default only the fields that are no defaults and those that choose its form are returned.
    """
    keys = path.split(".")
    for key in keys:
        tree = tree.get(key, _MISSING) if isinstance(tree, dict) else _MISSING
    if tree is not _MISSING:
        return tree
    value: Any = trial
    for key in keys:
        value = getattr(value, key, None)
    if isinstance(value, BaseModel):
        chosen = value.model_dump(mode="json", include=set(tags_of(type(value))))
        return chosen | value.model_dump(mode="json", exclude_defaults=True)
    return _JSON.dump_python(value, mode="json")
