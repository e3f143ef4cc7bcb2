"""Grouping of values, such as model sizes, and of trials into a few series, each with its own look."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from raycap.analysis.analyse import Analysis
from raycap.analysis.axes import Axis, Role, axes_of
from raycap.analysis.contrasts import compared_axes
from raycap.analysis.figures.style import GREY, LOOKS, Bools, Floats, LineStyle, short

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


MAX_ENTRIES = 5
"""Number of entries up to which a legend is easy to read."""
MAX_SHADES = 3
"""Number of shades up to which each has an entry in the legend."""
MAX_TEXT = 28


class TrialSeries(NamedTuple):
    """Series of trials, and the entries of their legend."""

    series: list[Series]
    """Their labels are for legends where there is only one kind of entry; else they begin with "_", which hides them."""
    entries: list[tuple[str, LineStyle]]
    """Entries of the legend besides the labels of the series: colours of one axis, then markers of the other."""

    def add_legend(self, axes: Axes) -> None:
        """Add the entries to the legend of a figure through its axes."""
        for label, look in self.entries:
            line = "" if look.colour == GREY else "-"
            axes.plot(
                [], [], color=look.colour, marker=look.marker, linestyle=line or look.line, markersize=3, label=label
            )


def trial_series(analysis: Analysis, trials: Any, *, by_size: bool = True, drawn: str = "") -> TrialSeries:
    """Return the series of trials: colour is the first axis of the grid that is no size, marker and line the second.

    Values of these axes are never merged. Where the grid varies no such axis, or only one, the size of the models takes the
    place that is left, in groups of similar sizes.

    Args:
        analysis: the analysis.
        trials: indices of trials in the plan, one per point.
        by_size: whether series differ by size; false where the size is an axis of the figure.
        drawn: axis of the grid that is an axis of the figure or has a panel per value.
    """
    trials = np.asarray(trials, dtype=int)
    sizes = analysis.tables.trials["num_params"].to_numpy(dtype=float)
    every = compared_axes(axes_of(analysis.sweep))
    varied = [axis for axis in every if axis.role is not Role.SIZE and axis.path != drawn]
    if not varied:
        if not by_size:
            return TrialSeries([Series("trials", LOOKS[0], np.ones(len(trials), dtype=bool), float("nan"))], [])
        return TrialSeries(_among(grouped(sizes, "params", MAX_ENTRIES), trials), [])
    colours = _by_value(analysis, varied[0], trials)
    if len(varied) > 1:
        markers = _by_value(analysis, varied[1], trials)
    elif by_size:
        markers = _among(grouped(sizes, "params", max(2, MAX_ENTRIES - len(_named(colours)))), trials)
    else:
        markers = []
    if len(markers) < 2:
        named = _named(colours)
        hidden = [one if one in named else one._replace(label=f"_{one.label}") for one in colours]
        return TrialSeries(hidden, [])
    series = []
    for colour in colours:
        for index, marker in enumerate(markers):
            members = colour.members & marker.members
            if members.any():
                look = LineStyle(colour.look.colour, MARKERS[index % 6], LINES[index % 6])
                series.append(Series(f"_{colour.label}, {marker.label}", look, members, marker.middle))
    entries = [(colour.label, LineStyle(colour.look.colour, "", "-")) for colour in _named(colours)]
    entries += [(marker.label, LineStyle(GREY, MARKERS[i % 6], LINES[i % 6])) for i, marker in enumerate(markers)]
    return TrialSeries(series, entries)


def series_with(series: TrialSeries, members: Bools) -> Series:
    """Return the series that most of some points belong to; `members` is a mask over the points."""
    return max(series.series, key=lambda one: int((one.members & members).sum()))


def _among(groups: list[Series], trials: Any) -> list[Series]:
    """Return groups of all planned trials as series of some of them, so that the looks of sizes are those of the sweep."""
    series = [group._replace(members=group.members[trials]) for group in groups]
    return [one for one in series if one.members.any()]


def _named(series: list[Series]) -> list[Series]:
    """Return the series that the legend names: all, or the first, middle and last shade of an axis with many numbers."""
    many = len(series) > MAX_SHADES and series[0].look.colour not in [look.colour for look in LOOKS]
    return [series[0], series[len(series) // 2], series[-1]] if many else series


def _by_value(analysis: Analysis, axis: Axis, trials: Any) -> list[Series]:
    """Return a series per value of an axis, in the order of the grid: shades for more than two numbers, else hues."""
    values = axis.values
    numeric = len(values) > 2 and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(values)))
    of_trials = np.array([axis.index(trial) for trial in analysis.sweep.trials])[trials]
    series = []
    for index in range(len(values)):
        colour = matplotlib.colors.to_hex(shades[index]) if numeric else LOOKS[index % len(LOOKS)].colour
        look = LineStyle(colour, MARKERS[index % 6], LINES[index % 6])
        text = axis.describe(index).replace("_", " ")
        text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
        series.append(Series(text, look, of_trials == index, float("nan")))
    return [one for one in series if one.members.any()]


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
