"""Grouping of values, such as model sizes, into a few series, each with its own colour, marker and line style."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np

from raycap.analysis.figures.style import Bools, Floats, LineStyle, short

NEAR = (1.03, 1.06, 1.12, 1.25)
"""Values within such a ratio are drawn as one group; the first ratio that gives few enough groups is used."""
MARKERS = "osD^vP"
LINES: list[Any] = ["-", (0, (5, 1.5)), "-.", (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1))]


class Series(NamedTuple):
    """The points of one group: `members` is a mask over the grouped values, `middle` the geometric mean of the group."""

    label: str
    look: LineStyle
    members: Bools
    middle: float


def grouped(values: Any, unit: str, most: int = 6) -> list[Series]:
    """Return at most `most` groups of neighbouring values; groups of smaller values get darker colours."""
    values = np.asarray(values, dtype=float)
    parts = _parts(np.unique(values), most)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, len(parts)))
    exact = len({short(part[0]) for part in parts}) < len(parts)  # three digits would give equal labels

    def format_value(value: float) -> str:
        return f"{value:,.0f}" if exact else short(value)

    groups = []
    for index, (part, shade) in enumerate(zip(parts, shades, strict=True)):
        first, last = format_value(part[0]), format_value(part[-1])
        label = first if first == last else f"{first}–{last}"
        look = LineStyle(matplotlib.colors.to_hex(shade), MARKERS[index % 6], LINES[index % 6])
        members = (values >= part[0]) & (values <= part[-1])
        groups.append(Series(f"{label} {unit}", look, members, float(np.exp(np.log(np.maximum(part, 1)).mean()))))
    return groups


def _parts(distinct: Floats, most: int) -> list[Floats]:
    """Split sorted values into groups of nearly equal values, or into `most` groups of equal length if those are more."""
    for ratio in NEAR:
        parts: list[list[float]] = []
        for value in distinct.tolist():
            if parts and value <= ratio * parts[-1][0]:
                parts[-1].append(value)
            else:
                parts.append([value])
        if len(parts) <= most:
            return [np.array(part) for part in parts]
    return np.array_split(distinct, most)
