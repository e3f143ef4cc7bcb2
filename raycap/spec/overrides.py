"""Check that overrides of the command line take effect at every point of a sweep."""

import json
import shlex
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from raycap.spec.document import Override, SpecDocument, truncated
from raycap.spec.faults import Faults
from raycap.spec.forms import contains, has, nested
from raycap.spec.points import Product, Setting, with_settings

MAX_CHANGES_SHOWN = 3


def check_overrides(products: Sequence[Product], document: SpecDocument, faults: Faults) -> None:
    """Add a fault for every override of `trial` that a value of the grid or of a point replaces.

    A whole new section `trial` may hold such values, as in a file, and an earlier override may be replaced by a later one.
    """
    trial = document.tree.get("trial")
    for override in document.overrides:
        keys = ".".join(map(str, override.path[1:]))
        if override.path[0] != "trial" or not keys or not isinstance(trial, dict):
            continue
        own = nested(keys, override.value)
        if not contains(trial, own):
            continue
        changes: dict[str, dict[str, None]] = {}
        for settings in _axes(products):
            if any(not contains(with_settings(trial, [setting]), own) for setting in settings):
                changes.setdefault(settings[0].path, {})[_instead(override, keys, settings)] = None
        for axis, texts in changes.items():
            shown = " ".join(map(shlex.quote, list(texts)[:MAX_CHANGES_SHOWN]))
            more = " and so on" if len(texts) > MAX_CHANGES_SHOWN else ""
            faults.add(
                override.path, f"trial.{keys}: has no effect, because the sweep varies {axis}; use {shown}{more}"
            )


def _axes(products: Sequence[Product]) -> Iterator[tuple[Setting, ...]]:
    """Yield the settings of every axis of grid and points once."""
    seen = set()
    for product in products:
        for settings in product.axes.values():
            if settings and settings[0].axis not in seen:
                seen.add(settings[0].axis)
                yield settings


def _instead(override: Override, keys: str, settings: Sequence[Setting]) -> str:
    """Return the override of an axis that sets what an override of the trial would set."""
    axis = settings[0].path
    place = ".".join(map(str, settings[0].axis[:-1]))
    path, parts = keys.split("."), axis.split(".")
    if parts == path[: len(parts)]:
        inner = path[len(parts) :]
        return f"{place}.{axis}=[{''.join(f'{{{key}: ' for key in inner)}{override.text}{'}' * len(inner)}]"
    value: Any = override.value
    outer = parts[len(path) :]
    if path == parts[: len(path)] and has(value, outer):
        return f"{place}.{axis}=[{json.dumps(reduce(getitem, outer, value))}]"
    if place == "grid":
        return "grid={}" if value is None else f"grid.{keys}=[{truncated(override.text)}]"
    return f"{place}={{}}"
