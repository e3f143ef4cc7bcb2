"""Figures of the power law with its residuals, and of the two-hop trap."""

from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from raycap.analysis.analyse import Analysis
from raycap.analysis.exclusions import ExclusionReason
from raycap.analysis.figures.groups import grouped, series_with, trial_series
from raycap.analysis.figures.points import (
    describe_reading,
    exclusions,
    final_points,
    lost_shares,
    points_sentence,
    totals_of,
    trials,
    with_counts,
)
from raycap.analysis.figures.style import (
    COLUMN_INCHES,
    GREY,
    INK,
    MAX_VECTORS,
    PAGE_INCHES,
    Bools,
    CaptionedFigure,
    LineStyle,
    finish,
    log_ticks,
    panels,
    scatter,
    styled,
)
from raycap.analysis.laws import FitStatus, PowerLaw
from raycap.spec import Kind

MAX_DATA_SIZES = 4
MAX_PANELS = 3
MIN_PERCENT = 1.0
"""The residual axis spans at least this on both sides, so that rounding errors of a perfect fit stay invisible."""
NOTICEABLE = 0.01
"""Share of the answer entropy below which a difference of losses is drawn as noise."""


@styled
def law(analysis: Analysis) -> CaptionedFigure | None:
    """Draw learned bits with the fitted smooth-min(C P^gamma, H), one line per amount of data H, and the residuals below.

    Returns None if there is no power law. The law is defined in `docs/science.md#two-laws`.
    """
    points = final_points(analysis)
    points = points[points["learned_bits"] > 0]
    curves = _curves(analysis, points) if len(points) else []
    if not curves:
        return None
    figure, grid = panels(2, 1, height=3.0, sharex=True, height_ratios=[2.4, 1])
    above, below = grid[:, 0]
    sizes = points["num_params"].to_numpy(dtype=float)
    span = np.geomspace(sizes.min() / 1.15, sizes.max() * 1.15, 80)
    # Exhausted trials are in this law, because it saturates at the bits of the data.
    left_out = ~points["excluded"].isin(["", str(ExclusionReason.EXHAUSTED)]).to_numpy(dtype=bool)
    dense = len(points) > MAX_VECTORS
    several = any(np.ptp(points["dataset_bits"][curve.members]) > 0 for curve in curves)
    series = trial_series(analysis, points["trial"], by_size=False)
    with_bands = len(curves) <= MAX_DATA_SIZES and any(curve.power.resamples for curve in curves)
    if analysis.arms:
        series.add_legend(above)
    for curve in curves:
        look, power = curve.look, curve.power
        above.plot(span, power.learned_bits(span, curve.dataset_bits), color=look.colour, linestyle=look.line)
        if power.resamples and with_bands:
            low, high = power.band(span, curve.dataset_bits)
            label = {} if analysis.arms else {"label": "95 % intervals"}
            above.fill_between(span, low, high, color=look.colour, alpha=0.15, linewidth=0, **label)
        percent = 100 * np.expm1(np.array([power.residuals.get(trial_id, np.nan) for trial_id in points["trial_id"]]))
        # With one amount of data the points are free to show what else the grid varies.
        parts = series.series if len(curves) == 1 and len(series.series) > 1 else [curve]
        for part in parts:
            in_law = curve.members & part.members & ~left_out
            others = curve.members & part.members & left_out
            for filled, chosen in ((True, in_law), (False, others)):
                label = {"label": part.label} if filled or not in_law.any() else {}
                bits = points["learned_bits"][chosen]
                scatter(above, sizes[chosen], bits, part.look, dense=dense, filled=filled, **label)
            scatter(below, sizes[in_law], percent[in_law], part.look, dense=dense, s=9)
    without_law = ~np.any([curve.members for curve in curves], axis=0)
    for part in series.series:
        rows = points[part.members & without_law]
        scatter(above, rows["num_params"], rows["learned_bits"], part.look, dense=dense, filled=False)
    below.axhline(0, color=GREY, linewidth=0.8)
    above.set(ylabel="learned bits")
    below.set(xlabel="parameters, embeddings included", ylabel="residual\n(%)")
    above.set_yscale("log")
    above.set_xlim(span[0], span[-1])
    log_ticks(below.xaxis, sizes)
    log_ticks(above.yaxis)
    low, high = below.get_ylim()
    below.set_ylim(min(low, -MIN_PERCENT), max(high, MIN_PERCENT))
    below.yaxis.set_major_locator(MaxNLocator(4))
    band = "; bands: 95 % intervals" if with_bands else ""
    caption = f"{points_sentence(analysis)}. Lines: fitted power law, "
    caption += f"{'one per compared value, ' if analysis.arms else ''}saturating at the bits of the data{band}."
    if several:
        caption += " Each line is at the geometric mean of the data of its group."
    num_exhausted = int((points["excluded"] == str(ExclusionReason.EXHAUSTED)).sum())
    exhausted = f"Trials with an exhausted dataset ({num_exhausted}) are in this law." if num_exhausted else ""
    reasons = exclusions(analysis, ignored=ExclusionReason.EXHAUSTED)
    return finish(
        figure, f"Law: {_gamma(curves)}", " ".join(filter(None, (with_counts(analysis, caption), exhausted, reasons)))
    )


class _Curve(NamedTuple):
    """A fitted power law at one amount of data, with the points that are drawn in its look."""

    label: str
    look: LineStyle
    members: Bools
    power: PowerLaw
    dataset_bits: float


def _curves(analysis: Analysis, points: pd.DataFrame) -> list[_Curve]:
    """Return the curves of the figure: one per arm that has a power law, or one per amount of data without arms."""
    if not analysis.arms:
        power = analysis.law.power
        groups = grouped(points["dataset_bits"], "bits of data", most=MAX_DATA_SIZES)
        curves = [_Curve(group.label, group.look, group.members, power, group.middle) for group in groups]
    else:
        series, curves = trial_series(analysis, points["trial"], by_size=False), []
        for arm in analysis.arms:
            members = points["trial"].isin(arm.trials).to_numpy(dtype=bool)
            if members.any():
                data = float(np.exp(np.log(points["dataset_bits"][members]).mean()))
                power = arm.laws[analysis.headline].power
                drawn_as = series_with(series, members)
                curves.append(_Curve(drawn_as.label, drawn_as.look, members, power, data))
    return [curve for curve in curves if np.isfinite(curve.power.theta).all()]


def _gamma(curves: list[_Curve]) -> str:
    """Return the exponent, or the range of the exponents, with the symbol of the law."""
    symbol = "bits ∝ $\\mathbf{P^{γ}}$"
    gammas = {curve.power.gamma.estimate for curve in curves}
    if len(gammas) > 1:
        return f"{symbol}, γ = {min(gammas):.2f} to {max(gammas):.2f}"
    power = curves[0].power
    estimate, low, high = power.gamma
    if power.status is FitStatus.OK and np.isfinite(low):
        return f"{symbol}, γ = {estimate:.2f} [{low:.2f}, {high:.2f}]"
    return f"{symbol}, γ = {estimate:.2f} ({power.status})"


@styled
def phase_map(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the share of one-hop questions against parameters per bit of the facts, coloured by the excess one-hop loss.

    The excess is the share of the answer entropy lost in one-hop questions minus that lost in two-hop questions. It is
    positive where models memorise two-hop answers instead of facts (the two-hop trap); the dashed line is the share
    1 / (1 + R) at which the trap is predicted to end. Returns None unless the share is varied and both kinds are
    evaluated.
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
        members = cells[cells["num_relations"] == number]
        for marker, label, chosen in (
            ("^", "larger loss in one hop", members[members["excess"] > NOTICEABLE]),
            ("v", "no larger loss in one hop", members[members["excess"] <= NOTICEABLE]),
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
        axes.axhline(1 / (1 + number), color=INK, linestyle="--", label="predicted end: 1 / (1 + R)")
        axes.set(
            xlabel="parameters per bit of the facts", title=f"R = {number:.0f}, predicted end {1 / (1 + number):.3f}"
        )
        axes.set_yscale("log")
        axes.margins(x=0.15)
        log_ticks(axes.xaxis)
        log_ticks(axes.yaxis, cells["one_hop_share"])
    row[0].set_ylabel("share of one-hop questions")
    mappable = matplotlib.cm.ScalarMappable(scale, "PuOr_r")
    bar = figure.colorbar(mappable, ax=list(row), aspect=25, pad=0.02)
    bar.set_label("share of answer entropy lost,\none hop − two hops")
    bar.outline.set_linewidth(0.4)
    caption = "Each mark is one cell at the end of training: the mean over its seeds. Dashed line: share of one-hop "
    caption += "questions at which the two-hop trap is predicted to end. Bits of the "
    caption += f"facts: {describe_reading(analysis.headline)}."
    return finish(figure, "Two-hop trap", with_counts(analysis, caption))
