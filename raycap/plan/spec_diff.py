"""Differences between the trials of an edited spec and those of the previous run, field by field."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from raycap.results import PlannedTrial

MAX_FIELDS_SHOWN = 3
VALUE_LENGTH = 40
"""Maximum number of characters shown of a value."""


class PreviousTrial(BaseModel):
    """A trial as an earlier run planned it. Other fields are ignored and `spec` is not validated: versions may differ."""

    trial_id: str
    label: str
    coordinates: dict[str, Any]
    spec: dict[str, Any]


def changes(new: Iterable[PlannedTrial], before: Sequence[PreviousTrial]) -> dict[str, str]:
    """Return the fields that differ between new trials and those of the previous run, by trial_id.

    An entry reads, for example, "model.num_layers 2 -> 4". A trial is compared with the previous trial at the same grid
    coordinates or, if the grid now has other axes, with the one that differs in the fewest fields. There is no entry for
    trials that were already planned, nor for points that an extended grid has added.
    """
    if not before:
        return {}
    known = {trial.trial_id for trial in before}
    spec_at = {_point(trial.coordinates): trial.spec for trial in before}
    axes = {frozenset(trial.coordinates) for trial in before}
    nearest: _Nearest | None = None
    descriptions = {}
    for trial in new:
        counterpart = spec_at.get(_point(trial.coordinates))
        if trial.trial_id in known or (counterpart is None and frozenset(trial.coordinates) in axes):
            continue
        fields = _leaves(trial.spec.model_dump(mode="json"))
        if counterpart:
            previous = _leaves(counterpart)
        else:
            nearest = nearest or _Nearest(before)
            previous = nearest.to(fields)
        changed = [field for field in {**fields, **previous} if fields.get(field) != previous.get(field)]
        # A trial that differs from its nearest only along the axes of the grid is a new grid point, not an edit.
        if counterpart or not all(_is_on_axis(field, trial.coordinates) for field in changed):
            descriptions[trial.trial_id] = _describe_changes(changed, previous, fields)
    return descriptions


class _Nearest:
    """Search for the trial that differs in the fewest fields; the first of several.

    Each field that varies among the trials becomes a column of integer codes, so that one comparison of arrays covers
    all trials. Fields with one value in all trials add the same distance to each, and are left out.
    """

    def __init__(self, trials: Sequence[PreviousTrial]) -> None:
        import numpy as np

        self._leaves = [_leaves(trial.spec) for trial in trials]
        fields = dict.fromkeys(field for leaves in self._leaves for field in leaves)
        values = {field: dict.fromkeys(leaves.get(field) for leaves in self._leaves) for field in fields}
        self._codes = {
            field: {value: code for code, value in enumerate(distinct)}
            for field, distinct in values.items()
            if len(distinct) > 1
        }
        rows = [[codes[leaves.get(field)] for field, codes in self._codes.items()] for leaves in self._leaves]
        self._table = np.array(rows)

    def to(self, leaves: Mapping[str, str]) -> dict[str, str]:
        """Return the leaves of the trial nearest to these leaves."""
        row = [codes.get(leaves.get(field), -1) for field, codes in self._codes.items()]
        return self._leaves[int((self._table != row).sum(axis=1).argmin())]


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return the values of a spec as text, by dotted path."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{path}{key}.")
        else:
            found[path + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _point(coordinates: Mapping[str, Any]) -> str:
    return json.dumps(coordinates, sort_keys=True)


def _is_on_axis(field: str, axes: Iterable[str]) -> bool:
    """Whether a field is set by an axis of the grid, or is part of a section that is."""
    return any(f"{field}.".startswith(f"{axis}.") for axis in axes)


def _describe_changes(changed: list[str], old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return the changed fields as "field old -> new", at most MAX_FIELDS_SHOWN of them."""

    def value(tree: Mapping[str, str], field: str) -> str:
        return shorten_value(tree.get(field, "none"), VALUE_LENGTH)

    shown = [f"{field} {value(old, field)} -> {value(new, field)}" for field in changed[:MAX_FIELDS_SHOWN]]
    more = f" and {len(changed) - MAX_FIELDS_SHOWN} more" if len(changed) > MAX_FIELDS_SHOWN else ""
    return ", ".join(shown) + more


def shorten_value(text: str, length: int) -> str:
    """Return the text as one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
