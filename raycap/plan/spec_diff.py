"""What an edit of a spec changed: trials set beside those of the run before, field by field."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from raycap.results import PlannedTrial

MAX_FIELDS_SHOWN = 3
VALUE_LENGTH = 40
"""Characters of a value that are told."""


class PreviousTrial(BaseModel):
    """A trial as an earlier run planned it. Whatever else its raycap noted, and how it spelt its spec, may differ."""

    trial_id: str
    label: str
    coordinates: dict[str, Any]
    spec: dict[str, Any]


def changes(new: Iterable[PlannedTrial], before: Sequence[PreviousTrial]) -> dict[str, str]:
    """Which fields make new trials others than those of the run before, by trial_id, such as "model.num_layers 2 -> 4".

    A trial is set beside the one at its coordinates; where the grid has other axes now, beside the one that differs in
    the fewest fields. Nothing is said of trials that were there before, and of points that only the grid has added.
    """
    if not before:
        return {}
    known = {trial.trial_id for trial in before}
    at = {_point(trial.coordinates): trial.spec for trial in before}
    axes = {frozenset(trial.coordinates) for trial in before}
    nearest: _Nearest | None = None
    told = {}
    for trial in new:
        there = at.get(_point(trial.coordinates))
        if trial.trial_id in known or (there is None and frozenset(trial.coordinates) in axes):
            continue
        fields = _leaves(trial.spec.model_dump(mode="json"))
        if there:
            theirs = _leaves(there)
        else:
            nearest = nearest or _Nearest(before)
            theirs = nearest.to(fields)
        changed = [field for field in {**fields, **theirs} if fields.get(field) != theirs.get(field)]
        if there or not all(_lies_on(field, trial.coordinates) for field in changed):
            told[trial.trial_id] = _describe_changes(changed, theirs, fields)
    return told


class _Nearest:
    """Finds the trial that differs in the fewest fields; the first of several. Only fields in which they vary can tell."""

    def __init__(self, trials: Sequence[PreviousTrial]) -> None:
        import numpy as np

        self._leaves = [_leaves(trial.spec) for trial in trials]
        fields = dict.fromkeys(field for leaves in self._leaves for field in leaves)
        values = {field: dict.fromkeys(leaves.get(field) for leaves in self._leaves) for field in fields}
        self._numbers = {
            field: {value: number for number, value in enumerate(found)}
            for field, found in values.items()
            if len(found) > 1
        }
        rows = [[numbers[leaves.get(field)] for field, numbers in self._numbers.items()] for leaves in self._leaves]
        self._table = np.array(rows)

    def to(self, leaves: Mapping[str, str]) -> dict[str, str]:
        """The leaves of the nearest trial."""
        row = [numbers.get(leaves.get(field), -1) for field, numbers in self._numbers.items()]
        return self._leaves[int((self._table != row).sum(axis=1).argmin())]


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Every value of a spec as text, by its dotted path."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{path}{key}.")
        else:
            found[path + key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _point(coordinates: Mapping[str, Any]) -> str:
    return json.dumps(coordinates, sort_keys=True)


def _lies_on(field: str, axes: Iterable[str]) -> bool:
    """Whether a field is what an axis of the grid sets, or a part of that."""
    return any(f"{field}.".startswith(f"{axis}.") for axis in axes)


def _describe_changes(changed: list[str], here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The changed fields as "field here -> there", at most MAX_FIELDS_SHOWN of them."""

    def value(tree: Mapping[str, str], field: str) -> str:
        return shorten_value(tree.get(field, "none"), VALUE_LENGTH)

    shown = [f"{field} {value(here, field)} -> {value(there, field)}" for field in changed[:MAX_FIELDS_SHOWN]]
    more = f" and {len(changed) - MAX_FIELDS_SHOWN} more" if len(changed) > MAX_FIELDS_SHOWN else ""
    return ", ".join(shown) + more


def shorten_value(text: str, length: int) -> str:
    """The text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
