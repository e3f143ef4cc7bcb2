"""Axes of a sweep: the fields that its points vary, and what the analysis does with each (docs/science.md#axes)."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import AnalysisSpec
from raycap.spec.scaling import last_part

SIZES = (
    "model",
    "model.hidden_size",
    "model.num_params",
    "model.config.hidden_size",
    "model.config.n_embd",
    "model.config.d_model",
    "adapter.r",
)
LAYERS = ("model.num_layers", "model.config.num_hidden_layers", "model.config.n_layer")
"""The number of layers counts as a size where the grid varies no other size."""
NUISANCES = (
    "adapter.alpha",
    "training.optimizer",
    "training.length",
    "training.batch_size",
    "training.precision",
    "training.packing",
    "training.stop",
    "training.num_evaluations",
    "training.evaluate_at",
    "training.evaluation_sample",
)
"""Fields and sections that decide how well a model is trained, and not what it is or learns."""


class Role(StrEnum):
    """Use that the analysis makes of an axis of the grid."""

    SIZE = "size"
    """It changes the number of parameters P, or follows such a field: laws are functions of P."""
    SEED = "seed"
    """It repeats a trial: trials that differ only in seeds form a cell."""
    NUISANCE = "best value"
    """It is a setting of training, of which the best value by learned bits matters."""
    TREATMENT = "compared"
    """Its values are compared."""


@dataclass(frozen=True)
class Axis:
    """A field that has several values in the grid."""

    path: str
    """Dotted path in the trial's spec."""
    values: tuple[Any, ...]
    """Values in the order of the grid."""
    label: str
    """Last part of the path, or the whole path where two axes end in the same part."""
    role: Role

    def index(self, trial: PlannedTrial) -> int:
        """Return the index in `values` of a trial's value."""
        key = _key(trial.coordinates.get(self.path))
        return next(index for index, value in enumerate(self.values) if _key(value) == key)

    def describe(self, index: int) -> str:
        """Return a value with the label of the axis, such as "lr 0.01"; of a section with a kind, only its values."""
        value = self.values[index]
        if isinstance(value, dict):
            fields = ", ".join(
                str(inner) if name == "kind" else f"{name} {format_value(inner)}" for name, inner in value.items()
            )
            return fields if "kind" in value else f"{self.label} {fields or 'default'}"
        return f"{self.label} {format_value(value)}"


def axes(trials: Sequence[PlannedTrial], analysis: AnalysisSpec) -> tuple[Axis, ...]:
    """Return the axes of a plan that have several values, in the order of the grid.

    The role of an axis is that of its path in `analysis.nuisance` or `analysis.compare`, or else of a default rule.
    """
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for path, value in trial.coordinates.items():
            found.setdefault(path, {}).setdefault(_key(value), value)
    varied = {path: tuple(values.values()) for path, values in found.items() if len(values) > 1}
    roles = {path: _role(path, varied, analysis) for path in varied}
    sizes = [path for path, role in roles.items() if role is Role.SIZE]
    for path, role in roles.items():
        if role is Role.TREATMENT and path not in analysis.compare and _follows_size(path, sizes, trials):
            roles[path] = Role.SIZE
    leaves = Counter(map(last_part, varied))
    return tuple(
        Axis(path, values, leaf if leaves[leaf := last_part(path)] == 1 else path, roles[path])
        for path, values in varied.items()
    )


def axes_of(sweep: SweepRecord) -> tuple[Axis, ...]:
    """Return the axes of a sweep; see `axes`."""
    return axes(sweep.trials, sweep.spec.analysis)


def with_role(found: Sequence[Axis], role: Role) -> tuple[Axis, ...]:
    """Return the axes that have a role."""
    return tuple(axis for axis in found if axis.role is role)


def describe_axes(found: Sequence[Axis]) -> list[str]:
    """Return one line of text per role that some axis has, with the axes and their numbers of values."""
    texts = {
        Role.SIZE: "Sizes, which laws are functions of",
        Role.TREATMENT: "Compared values",
        Role.NUISANCE: "Settings of training, of which the best value matters",
        Role.SEED: "Seeds, which repeat each cell",
    }
    lines = []
    for role, text in texts.items():
        if chosen := with_role(found, role):
            lines.append(f"{text}: {', '.join(f'{axis.path} ({len(axis.values)} values)' for axis in chosen)}")
    return lines


def format_value(value: Any) -> str:
    """Return a value of the grid as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)


def _role(path: str, varied: dict[str, tuple[Any, ...]], analysis: AnalysisSpec) -> Role:
    if path in analysis.nuisance:
        return Role.NUISANCE
    if path in analysis.compare:
        return Role.TREATMENT
    if path.endswith("seed"):
        return Role.SEED
    if path in SIZES or (path in LAYERS and not any(size in varied for size in SIZES)):
        return Role.SIZE
    if any(path == field or path.startswith(f"{field}.") for field in NUISANCES):
        return Role.NUISANCE
    return Role.TREATMENT


def _follows_size(path: str, sizes: Sequence[str], trials: Sequence[PlannedTrial]) -> bool:
    """Return whether every size has one value of a field and every value one size, as where N grows with P.

    Such values cannot be compared: no two trials of the same size differ in them, and none has a law of its own.
    """
    pairs = {
        (tuple(_key(trial.coordinates.get(other)) for other in sizes), _key(trial.coordinates.get(path)))
        for trial in trials
    }
    return bool(sizes) and len(pairs) == len({size for size, _ in pairs}) == len({value for _, value in pairs})


def _key(value: Any) -> str:
    """Return a hashable key of a value that equal values share."""
    return json.dumps(value, sort_keys=True)
