"""The power law with its residuals, and where the trap of too few one-hop questions begins."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raycap.analysis.analyse import Analysis, ExclusionReason
from raycap.analysis.figures.groups import grouped
from raycap.analysis.figures.points import about, exclusions, final_points, lost_shares, totals_of, trials
from raycap.analysis.figures.style import (
    COLUMN_INCHES,
    GREY,
    INK,
    MAX_VECTORS,
    PAGE_INCHES,
    finish,
    log_ticks,
    panels,
    scatter,
    styled,
)
from raycap.analysis.laws import FitStatus
from raycap.spec import Kind

MAX_DATA_SIZES = 4
MAX_PANELS = 3
MIN_PERCENT = 1.0
"""Shown around the law at least: what is left over of a perfect one is rounding."""
NOTICEABLE = 0.01
"""Of the entropy of answers; less is noise."""


@styled
def law(analysis: Analysis) -> Figure | None:
    """Learned bits with smooth-min(C P^gamma, H), a line for each amount of data H, and what is left over below: how well
    one law describes all trials. None where there is no power law.
    """
    power = analysis.law.power
    points = final_points(analysis)
    points = points[points["learned_bits"] > 0]
    if points.empty or not np.isfinite(power.theta).all():
        return None
    figure, grid = panels(2, 1, height=3.0, sharex=True, height_ratios=[2.4, 1])
    above, below = grid[:, 0]
    sizes = points["num_params"].to_numpy(dtype=float)
    span = np.geomspace(sizes.min() / 1.15, sizes.max() * 1.15, 80)
    # Exhausted trials are in this law: data bend it.
    left_out = ~points["excluded"].isin(["", str(ExclusionReason.EXHAUSTED)]).to_numpy(dtype=bool)
    off = 100 * np.expm1(np.array([power.residuals.get(trial_id, np.nan) for trial_id in points["trial_id"]]))
    dense = len(points) > MAX_VECTORS
    groups = grouped(points["dataset_bits"], "bits of data", most=MAX_DATA_SIZES)
    several = any(np.ptp(points["dataset_bits"][group.members]) > 0 for group in groups)
    for group in groups:
        look = group.look
        above.plot(span, power.learned_bits(span, group.middle), color=look.colour, linestyle=look.line)
        if power.resamples:
            low, high = power.band(span, group.middle)
            above.fill_between(span, low, high, color=look.colour, alpha=0.15, linewidth=0)
        enters, others = group.members & ~left_out, group.members & left_out
        scatter(above, sizes[enters], points["learned_bits"][enters], look, dense=dense, label=group.label)
        scatter(above, sizes[others], points["learned_bits"][others], look, dense=dense, filled=False)
        scatter(below, sizes[enters], off[enters], look, dense=dense, s=9)
    below.axhline(0, color=GREY, linewidth=0.8)
    above.set(ylabel="learned bits")
    below.set(xlabel="parameters, embeddings included", ylabel="off the\nlaw (%)")
    above.set_yscale("log")
    above.set_xlim(span[0], span[-1])
    log_ticks(below.xaxis, sizes)
    log_ticks(above.yaxis)
    low, high = below.get_ylim()
    below.set_ylim(min(low, -MIN_PERCENT), max(high, MIN_PERCENT))
    below.yaxis.set_major_locator(MaxNLocator(4))
    drawn = "line and band: power law bent by the data, 95 %" if power.resamples else "line: power law bent by the data"
    caption = about(analysis, f"A point a trial; {drawn}; {analysis.headline}.")
    reasons = exclusions(analysis, but=ExclusionReason.EXHAUSTED)
    bent = int((points["excluded"] == str(ExclusionReason.EXHAUSTED)).sum())
    bends = f"Exhausted trials ({bent}) are in this law." if bent else ""
    if several:
        bends = f"Lines are at the middle of each group. {bends}".strip()
    return finish(figure, f"Law: {_gamma(analysis)}", " ".join(filter(None, (caption, bends, reasons))))


def _gamma(analysis: Analysis) -> str:
    power = analysis.law.power
    estimate, low, high = power.gamma
    if power.status is FitStatus.OK and np.isfinite(low):
        return f"bits ~ P^{estimate:.2f} [{low:.2f}, {high:.2f}]"
    return f"bits ~ P^{estimate:.2f} ({power.status})"


@styled
def phase_map(analysis: Analysis) -> Figure | None:
    """Share of one-hop questions against parameters per bit of the facts, coloured by how much more of the facts is lost
    when they are asked for in one hop than in two: where models memorise answers. The line is the share 1 / (1 + R) at
    which the trap is predicted to end. None unless the share is varied and both kinds are evaluated.
    """
    totals, lost = totals_of(analysis, Kind.ONE_HOP), lost_shares(analysis)
    if totals.empty or not {str(Kind.ONE_HOP), str(Kind.TWO_HOP)} <= set(lost.columns):
        return None
    excess = (lost[str(Kind.ONE_HOP)] - lost[str(Kind.TWO_HOP)]).rename("excess").reset_index()
    points = totals[["trial", "num_params", "dataset_bits"]].merge(excess.dropna(), on="trial")
    points = points.merge(trials(analysis), on="trial")
    points = points.assign(room=points["num_params"] / points["dataset_bits"])
    if points["one_hop_share"].nunique() < 2:
        return None
    columns = ["num_relations", "one_hop_share", "num_params", "room"]
    cells = points.groupby(["cell"])[[*columns, "excess"]].mean()
    relations = sorted(cells["num_relations"].unique())[:MAX_PANELS]
    width = COLUMN_INCHES if len(relations) == 1 else min(PAGE_INCHES, 1.0 + 2.3 * len(relations))
    figure, (row,) = panels(1, len(relations), width=width, height=2.2, sharex=True, sharey=True)
    reach = max(0.1, float(cells["excess"].abs().max()))
    scale = matplotlib.colors.Normalize(-reach, reach)
    for axes, number in zip(row, relations, strict=True):
        of_number = cells[cells["num_relations"] == number]
        for marker, label, chosen in (
            ("^", "more is lost in one hop", of_number[of_number["excess"] > NOTICEABLE]),
            ("v", "no more is lost in one hop", of_number[of_number["excess"] <= NOTICEABLE]),
        ):
            if len(chosen):
                axes.scatter(
                    chosen["room"],
                    chosen["one_hop_share"],
                    c=chosen["excess"],
                    cmap="PuOr_r",
                    norm=scale,
                    marker=marker,
                    s=34,
                    edgecolors=INK,
                    linewidth=0.4,
                    zorder=3,
                    label=label,
                    rasterized=len(cells) > MAX_VECTORS,
                )
        axes.axhline(1 / (1 + number), color=INK, linestyle="--", label="predicted end, 1 / (1 + R)")
        axes.set(xlabel="parameters per bit of the facts", title=f"R = {number:.0f}, predicted {1 / (1 + number):.3f}")
        axes.set_yscale("log")
        axes.margins(x=0.15)
        log_ticks(axes.xaxis)
        log_ticks(axes.yaxis, cells["one_hop_share"])
    row[0].set_ylabel("share of one-hop questions")
    mappable = matplotlib.cm.ScalarMappable(scale, "PuOr_r")
    bar = figure.colorbar(mappable, ax=list(row), aspect=25, pad=0.02)
    bar.set_label("share of entropy lost,\none hop − two hops")
    bar.outline.set_linewidth(0.4)
    caption = about(analysis, "A mark a cell, the mean over its seeds.")
    return finish(figure, "Where the two-hop trap lies", caption)
