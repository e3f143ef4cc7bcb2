"""The figure that compares the values of each axis of the grid at equal everything else."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from raycap.analysis.analyse import Analysis
from raycap.analysis.axes import Axis, Role, axes_of, format_value
from raycap.analysis.contrasts import Contrast, Effect, Outcome, compared_axes, compared_values, design_of, outcomes
from raycap.analysis.figures.points import describe_reading, with_counts
from raycap.analysis.figures.style import BLUE, GREY, INK, PAGE_INCHES, CaptionedFigure, finish, panels, short, styled
from raycap.analysis.wording import outcome_text
from raycap.spec import Split

COLUMNS = 4
MAX_ROWS = 3
PREFERRED_SPLITS = [Split.TUPLES, Split.TRAIN, Split.FIRST_PEOPLE, Split.SECOND_PEOPLE]
"""Splits that are drawn first; the others follow in the order of their definition."""
MAX_LABELLED = 6
"""Axes with more values than this are drawn with a numeric axis if their values are numbers."""
LABEL_LENGTH = 14


@styled
def contrasts(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the outcomes of every axis of the grid against its values, with lines that join equal settings.

    The axes that are no sizes have a row of panels each, up to MAX_ROWS; a single one has up to two rows. Returns None if
    nothing can be compared.
    """
    every = [axis for axis in compared_axes(axes_of(analysis.sweep)) if _shown(analysis, axis)]
    axes = [axis for axis in every if axis.role is not Role.SIZE][:MAX_ROWS] or every[:1]
    if not axes:
        return None
    shown = [_shown(analysis, axis)[: 2 * COLUMNS if len(axes) == 1 else COLUMNS] for axis in axes]
    columns = min(COLUMNS, max(map(len, shown)))
    cells = [[(axis, outcome) for outcome in found] for axis, found in zip(axes, shown, strict=True)]
    rows = [row for of_axis in cells for row in _rows(of_axis, columns)]
    width = max(3.5, PAGE_INCHES * columns / COLUMNS)
    figure, grid = panels(len(rows), columns, width=width, height=1.75 * len(rows))
    values = outcomes(analysis.tables, analysis.unexhausted_totals())
    for panels_of_row, cells_of_row in zip(grid, rows, strict=True):
        for panel in panels_of_row[len(cells_of_row) :]:
            panel.set_visible(False)
        for panel, (axis, outcome) in zip(panels_of_row, cells_of_row, strict=False):
            members = [one for one in analysis.contrasts if (one.axis, one.outcome) == (axis, outcome)]
            _panel(panel, analysis, members, values[outcome])
    caption = (
        "Small points: trials at the end of training; grey lines: means over seeds, joined where all other settings are "
        "equal. Large points: means over settings; bars: 95 % interval of the difference to the best mean (dashed), over "
        "seeds; filled: decided, open: undecided (corrected for the number of comparisons). Bits per parameter: "
        f"{describe_reading(analysis.headline)}, without trials that exhausted their data. Losses: bits per question, with "
        "a chain of thought of chain and answer."
    )
    if any(one.num_seeds == 1 for one in analysis.contrasts if one.axis in axes):
        caption += " Cells with one seed give no interval."
    return finish(figure, "Effects of what the grid varies, all else equal", with_counts(analysis, caption))


def _rows(cells: list[tuple[Axis, Outcome]], columns: int) -> list[list[tuple[Axis, Outcome]]]:
    return [cells[begin : begin + columns] for begin in range(0, len(cells), columns)]


def _shown(analysis: Analysis, axis: Axis) -> list[Outcome]:
    """Return the outcomes of an axis in the order in which they are drawn."""
    found = list(dict.fromkeys(one.outcome for one in analysis.contrasts if one.axis == axis))
    splits = [*PREFERRED_SPLITS, *(split for split in Split if split not in PREFERRED_SPLITS)]
    return sorted(found, key=lambda outcome: (outcome.is_loss, outcome.population, splits.index(outcome.split)))


def _panel(panel: Axes, analysis: Analysis, members: Sequence[Contrast], values: "pd.Series[float]") -> None:
    """Draw one outcome against the values of one axis."""
    axis, outcome = members[0].axis, members[0].outcome
    levels = [one.value for one in members]
    positions = _positions(panel, axis, levels)
    values = compared_values(axis, values, analysis.other_settings)
    table = design_of(axis, axes_of(analysis.sweep), analysis.sweep.trials).loc[values.index].assign(y=values)
    table = table[table["level"].isin(levels)]
    table = table.assign(x=table["level"].map(positions))
    panel.scatter(
        table["x"], table["y"], s=7, color=BLUE, alpha=0.5, linewidth=0, zorder=2, rasterized=len(table) > 500
    )
    means = table.groupby(["setting", "x"])["y"].mean().reset_index()
    for _, line in means.groupby("setting"):
        panel.plot(line["x"], line["y"], color=GREY, linewidth=0.5, alpha=0.7, zorder=1)
    best = next(one for one in members if one.value == one.best)
    panel.axhline(best.mean, color=INK, linewidth=0.6, linestyle="--", zorder=1)
    for one in members:
        x = positions[one.value]
        if np.isfinite(one.difference.low) and one is not best:
            ends = best.mean + np.array([one.difference.low, one.difference.high])
            panel.vlines(x, *ends, color=INK, linewidth=1.2, zorder=3)
        filled = one.effect is not Effect.UNDECIDED
        panel.scatter(
            [x],
            [one.mean],
            s=24,
            marker="D",
            zorder=4,
            linewidth=0.9,
            edgecolors=INK,
            facecolors=INK if filled else "white",
        )
    verdict = f"best: {_label(axis.values[best.value])}" if best.effect is Effect.BETTER else "undecided"
    panel.margins(y=0.15)
    lines = [*outcome_text(outcome).replace(")", "").split(" ("), verdict]
    panel.set_title("\n".join(lines))
    panel.set_xlabel(axis.label)
    panel.set_ylabel("loss (bits)" if outcome.is_loss else "bits/param")


def _positions(panel: Axes, axis: Axis, levels: list[int]) -> dict[int, float]:
    """Return the horizontal position of each value: numbers at their value if there are many, else one step apart."""
    values = [axis.values[level] for level in levels]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(levels) > MAX_LABELLED and len(numbers) == len(levels):
        if min(numbers) > 0 and max(numbers) / min(numbers) > 10:
            panel.set_xscale("log")
        return dict(zip(levels, numbers, strict=True))
    panel.xaxis.set_major_locator(FixedLocator(list(range(len(levels)))))
    panel.xaxis.set_minor_locator(NullLocator())
    names = [_label(value) for value in values]
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names[round(x)] if 0 <= round(x) < len(names) else ""))
    panel.set_xlim(-0.5, len(levels) - 0.5)
    return {level: float(place) for place, level in enumerate(levels)}


def _label(value: object) -> str:
    """Return a value as the label of a tick."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return short(value)
    text = format_value(value)
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…"
