"""Values in a few groups, each with a look of its own."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np

from raycap.analysis.figures.style import Bools, Floats, LineStyle, short

NEAR = (1.03, 1.06, 1.12, 1.25)
"""Ratios of values that are drawn as one group, the first that makes the groups few enough."""
MARKERS = "osD^vP"
LINES: list[Any] = ["-", (0, (5, 1.5)), "-.", (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1))]


class Series(NamedTuple):
    """Things of about one size."""

    label: str
    look: LineStyle
    members: Bools
    middle: float


def grouped(values: Any, unit: str, most: int = 6) -> list[Series]:
    """At most `most` groups of neighbouring values, the shade darker where they are smaller."""
    values = np.asarray(values, dtype=float)
    parts = _parts(np.unique(values), most)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, len(parts)))
    exact = len({short(part[0]) for part in parts}) < len(parts)

    def format_value(value: float) -> str:
        return f"{value:,.0f}" if exact else short(value)

    groups = []
    for place, (part, shade) in enumerate(zip(parts, shades, strict=True)):
        first, last = format_value(part[0]), format_value(part[-1])
        label = first if first == last else f"{first}–{last}"
        look = LineStyle(matplotlib.colors.to_hex(shade), MARKERS[place % 6], LINES[place % 6])
        members = (values >= part[0]) & (values <= part[-1])
        groups.append(Series(f"{label} {unit}", look, members, float(np.exp(np.log(np.maximum(part, 1)).mean()))))
    return groups


def _parts(distinct: Floats, most: int) -> list[Floats]:
    """Sorted values that are nearly the same together; those further apart too if there are more than `most` groups."""
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
