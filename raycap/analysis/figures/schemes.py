"""The figure that compares readings: predictive scores, stacking weights, and exponents of bits per parameter."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.points import with_counts
from raycap.analysis.figures.style import (
    BLUE,
    GREY,
    INK,
    LOOKS,
    PAGE_INCHES,
    PALE,
    CaptionedFigure,
    finish,
    panels,
    scatter,
    styled,
)
from raycap.analysis.intervals import Interval
from raycap.analysis.readings import Reading
from raycap.analysis.selection import MARGIN, Comparison, Constancy, Verdict, in_order

ROW_INCHES = 0.13
WIDE_BITS = 20.0
"""Score differences beyond this are drawn on a logarithmic axis."""


@styled
def schemes(analysis: Analysis) -> CaptionedFigure | None:
    """Draw, for each reading, the predictive score, the stacking weight, and the exponents of its bits per parameter.

    Returns None if fewer than two readings have a score. The method is in `docs/science.md#comparison`.
    """
    comparison = analysis.comparison
    order = in_order(comparison)
    if len(comparison.readings) < 2 or len(order) < 2:
        return None
    quantities = list(dict.fromkeys(trend.quantity for trend in comparison.trends))
    row = ROW_INCHES * max(2, len(quantities))
    ratios = [2.0, 0.8, 1.9] if quantities else [2.0, 0.9]
    figure, (grid,) = panels(
        1, len(ratios), width=PAGE_INCHES, height=0.75 + row * len(order), sharey=True, width_ratios=ratios
    )
    _scores(grid[0], comparison, order)
    weights = [comparison.weights.get(reading, 0.0) for reading in order]
    grid[1].barh(range(len(order)), weights, height=0.5, color=BLUE)
    grid[1].set(xlabel="stacking\nweight", xlim=(0, 1.05), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    if quantities:
        _trends(grid[2], comparison, order, quantities)
    grid[0].set_yticks(range(len(order)), [str(reading) for reading in order])
    grid[0].set_ylim(len(order) - 0.4, -0.6)
    for axes in grid:
        axes.grid(axis="y", visible=False)
    verdict = f"{comparison.best} is best" if comparison.best else "undecided"
    notes = [
        f"Left: leave-one-cell-out log score over {comparison.num_cells} cells of {comparison.num_sizes} sizes, minus that "
        "of the leading reading; lines: 95 % interval of the paired bootstrap; filled: significant at 5 % after Holm's "
        "correction. Middle: weight in the mixture that predicts best."
    ]
    if quantities:
        notes.append(
            f"Right: exponents with 95 % intervals; shaded: margin of ±{MARGIN} within which bits per parameter count as "
            "constant; open: undecided."
        )
        if len({trend.reading for trend in comparison.trends}) < len(order):
            notes.append("“No exponent”: too few cells, or learned bits of 0 or less.")
    same = len(comparison.same)
    if same:
        notes.append(f"{same} reading{'s' * (same > 1)} not shown: equal to an earlier one on these data.")
    caption = with_counts(analysis, " ".join(notes))
    caption += f" {comparison.num_trials:,} of them are compared; exhausted and diverged trials and those that learned "
    caption += "nothing are not."
    return finish(figure, f"Comparison of readings: {verdict}", caption)


def _scores(axes: Axes, comparison: Comparison, order: Sequence[Reading]) -> None:
    """Draw the score of each reading minus that of the leading reading, which is at 0."""
    ahead = order[0]
    axes.axvline(0, color=GREY, linewidth=0.8)
    scatter(axes, [0.0], [0], LOOKS[0], s=13)
    _row_label(axes, 0, "leading")
    for row, reading in enumerate(order[1:], start=1):
        difference, verdict = against(comparison, reading, ahead)
        axes.hlines(row, difference.low, difference.high, color=INK, linewidth=1.0)
        scatter(axes, [difference.estimate], [row], LOOKS[0], s=13, filled=verdict is not Verdict.UNDECIDED)
        _row_label(axes, row, str(verdict))
    lowest = min(against(comparison, reading, ahead)[0].low for reading in order[1:])
    if lowest < -WIDE_BITS:
        step = 1 if lowest > -100 else 2 if lowest > -10_000 else 3  # every step-th power of ten, so that labels fit
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}".replace("-", "−")))
        axes.xaxis.set_major_locator(FixedLocator([-(10.0**power) for power in range(0, 12, step)] + [0.0]))
        axes.set_xlim(3 * lowest, 2.0)
    axes.set_xlabel("score minus that of the\nleading reading (bits per cell)")


def against(comparison: Comparison, reading: Reading, other: Reading) -> tuple[Interval, Verdict]:
    """Return the score of one reading minus that of another, and the verdict on the first."""
    reversed_verdicts = {
        Verdict.BETTER: Verdict.WORSE,
        Verdict.WORSE: Verdict.BETTER,
        Verdict.UNDECIDED: Verdict.UNDECIDED,
    }
    for pair in comparison.pairs:
        if (pair.one, pair.other) == (reading, other):
            return pair.difference_bits, pair.verdict
        if (pair.other, pair.one) == (reading, other):
            estimate, low, high = pair.difference_bits
            return Interval(-estimate, -high, -low), reversed_verdicts[pair.verdict]
    raise AssertionError(f"{reading} and {other} were not compared")


def _trends(axes: Axes, comparison: Comparison, order: Sequence[Reading], quantities: list[str]) -> None:
    axes.axvspan(-MARGIN, MARGIN, color=PALE, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for number, quantity in enumerate(quantities):
        look = LOOKS[number % len(LOOKS)]
        axes.plot([], [], color=look.colour, marker=look.marker, linestyle="", label=f"exponent in {quantity}")
    for trend in comparison.trends:
        number = quantities.index(trend.quantity)
        look = LOOKS[number % len(LOOKS)]
        row = order.index(trend.reading) + 0.75 * ((number + 0.5) / len(quantities) - 0.5)
        axes.hlines(row, trend.exponent.low, trend.exponent.high, color=look.colour, linewidth=1.0)
        filled = trend.constancy is not Constancy.UNDECIDED
        scatter(axes, [trend.exponent.estimate], [row], look, s=11, filled=filled)
        _row_label(axes, row, f"{trend.quantity}: {trend.constancy}")
    shown = {trend.reading for trend in comparison.trends}
    for row, reading in enumerate(order):
        if reading not in shown:
            _row_label(axes, row, "no exponent")
    axes.set_xscale("symlog", linthresh=MARGIN)  # linear within the margin, logarithmic beyond
    axes.xaxis.set_major_locator(FixedLocator([-10.0, -1.0, -MARGIN, 0.0, MARGIN, 1.0, 10.0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda exponent, _: f"{exponent:g}".replace("-", "−")))
    axes.xaxis.set_minor_locator(NullLocator())
    reach = max(abs(end) for trend in comparison.trends for end in trend.exponent[1:])
    axes.set_xlim(-max(3 * MARGIN, 1.3 * reach), max(3 * MARGIN, 1.3 * reach))
    axes.set_xlabel("exponent of bits\nper parameter")


def _row_label(axes: Axes, row: float, text: str) -> None:
    """Write a text to the right of a panel at the height of a row."""
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), fontsize=6.5, va="center", color=INK)
