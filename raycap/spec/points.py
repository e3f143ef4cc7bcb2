"""The points of a sweep: products of axes, lists of them, and exclusions. Points are counted before they are built."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycap.spec.forms import Forms, contains, merged, nested
from raycap.spec.trial import TrialSpec
from raycap.spec.yaml_reader import KeyPath

TRIAL_FORMS = Forms.of(TrialSpec)


@dataclass(frozen=True)
class Setting:
    """A value that a point sets."""

    path: str
    """Dotted path into the trial."""
    value: Any
    source: KeyPath
    """Path of the value in the spec file."""

    @property
    def axis(self) -> KeyPath:
        """Path of the axis in the spec file: of the value or list of values in `grid` or an entry of `points`."""
        return self.source[: self.source.index(self.path) + 1]


@dataclass(frozen=True)
class Product:
    """All combinations of the values of some axes: the grid, or an entry of `points` with the rest of the grid."""

    axes: Mapping[str, tuple[Setting, ...]]
    """Settings of each axis by dotted path."""
    source: KeyPath
    """Path of the grid or of the entry of `points` in the spec file."""

    @property
    def num_points(self) -> int:
        """Number of combinations."""
        return math.prod(map(len, self.axes.values()))

    def points(self) -> Iterator[tuple[Setting, ...]]:
        """Yield the settings of every combination in the order of the axes; values of the last axis change fastest."""
        return itertools.product(*self.axes.values())


def products(grid: Mapping[str, list[Any]], points: Sequence[Mapping[str, Any]]) -> tuple[Product, ...]:
    """Return the products whose points are those of a sweep: one per entry of `points`, or the grid if there is none.

    An entry adds axes to those of the grid or replaces them. A value of an entry that is a list lists several values.
    """
    by_grid = {
        path: tuple(Setting(path, value, ("grid", path, index)) for index, value in enumerate(values))
        for path, values in grid.items()
    }
    if not points:
        return (Product(by_grid, ("grid",)),)
    found = []
    for number, entry in enumerate(points):
        own = {path: settings_of(path, value, ("points", number, path)) for path, value in entry.items()}
        rest = {path: settings for path, settings in by_grid.items() if path not in own}
        found.append(Product(own | rest, ("points", number)))
    return tuple(found)


def settings_of(path: str, value: Any, source: KeyPath) -> tuple[Setting, ...]:
    """Return the settings of a path by a value or a list of values."""
    if not isinstance(value, list):
        return (Setting(path, value, source),)
    return tuple(Setting(path, each, (*source, index)) for index, each in enumerate(value))


def with_settings(trial: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """Return a trial with settings merged into it, sections before the fields in them; `trial` is not changed."""
    tree = trial
    for setting in in_order(settings):
        tree = merged(tree, nested(setting.path, setting.value), TRIAL_FORMS)
    return tree


def in_order(settings: Sequence[Setting]) -> list[Setting]:
    """Return settings in the order in which they are merged into a trial."""
    return sorted(settings, key=lambda setting: setting.path.count("."))


def displaced(tree: dict[str, Any], settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    """Yield the settings whose value a tree lacks after all were merged into it, each with the first that displaced it."""
    ordered = in_order(settings)
    for index, setting in enumerate(ordered):
        own = nested(setting.path, setting.value)
        if contains(tree, own):
            continue
        after = (
            later
            for later in ordered[index + 1 :]
            if not contains(merged(own, nested(later.path, later.value), TRIAL_FORMS), own)
        )
        yield setting, next(after, ordered[-1])


def is_excluded(tree: dict[str, Any], exclusion: Mapping[str, Any]) -> bool:
    """Return whether a point has one of the values of every path of an exclusion."""
    return bool(exclusion) and all(
        any(contains(tree, nested(path, one)) for one in (values if isinstance(values, list) else [values]))
        for path, values in exclusion.items()
    )
