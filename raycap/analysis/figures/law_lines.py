"""Lines and bands of proportional laws in figures of learned bits against parameters."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import MAX_ENTRIES, TrialSeries, series_with
from raycap.analysis.figures.style import BLUE, DIRECT, INK, LOOKS, SELECTION_LOOKS, Floats
from raycap.analysis.headline import Claim, arms_or_whole, claim_of
from raycap.analysis.laws import Law
from raycap.analysis.readings import Reading


def draw_laws(
    axes: Axes,
    analysis: Analysis,
    points: pd.DataFrame,
    series: TrialSeries | None,
    span: Floats,
    reading: Reading | None = None,
    *,
    named: bool = True,
) -> str:
    """Draw the law of each arm that some points belong to, or the law of the sweep; return the caption's sentence on them.

    Args:
        axes: axes of learned bits against parameters.
        analysis: the analysis.
        points: the trials that are drawn.
        series: their series, or None if there is one.
        span: first and last number of parameters of the lines.
        reading: reading of the laws, by default the headline reading.
        named: whether the legend has an entry for the law of the sweep.
    """
    reading = reading or analysis.headline
    if not analysis.arms:
        law = analysis.laws[reading]
        named = named and (series is None or len(series.entries) < MAX_ENTRIES)
        (whole,) = arms_or_whole(analysis)
        claim = claim_of(analysis, whole, reading)
        colour = INK if series else SELECTION_LOOKS[reading.selection].colour
        draw_law(axes, law, span, colour, claim=claim, named=named)
        return _law_sentence(law, claim)
    drawn = []
    for arm in analysis.arms:
        alpha = arm.laws[reading].alpha.estimate
        members = points["trial"].isin(arm.trials).to_numpy(dtype=bool)
        if np.isfinite(alpha) and members.any():
            look = series_with(series, members).look if series else LOOKS[0]
            axes.plot(span, alpha * span, color=look.colour, linestyle=look.line, linewidth=0.9)
            drawn.append(claim_of(analysis, arm, reading))
    bound = ", a lower bound because trials were still learning" if Claim.BOUND in drawn else ""
    return f"Lines: fitted law α P of each compared value{bound}." if drawn else ""


def draw_law(
    axes: Axes, law: Law, span: Floats, colour: str = BLUE, *, claim: Claim = Claim.ESTIMATE, named: bool = True
) -> None:
    """Draw learned bits = alpha P with its 95 % band; omit the band without an interval, and the line without a fit.

    The legend has an entry for both if `named`.
    """
    gid = None if named else DIRECT
    estimate, low, high = law.alpha
    if not np.isfinite(estimate):
        return
    label = f"law: {'at least ' * (claim is Claim.BOUND)}{estimate:.2f} bits/param"
    if np.isfinite(low):
        label += f", 95 % interval [{low:.2f}, {high:.2f}]"
        axes.fill_between(span, low * span, high * span, color=colour, alpha=0.18, linewidth=0, label=label, gid=gid)
    axes.plot(span, estimate * span, color=colour, linewidth=1.2, label=label, gid=gid)


def _law_sentence(law: Law, claim: Claim) -> str:
    """Return the caption's sentence on the line and the band of the law; "" if there is no law."""
    if not np.isfinite(law.alpha.estimate):
        return ""
    band = "; band: its 95 % interval" if np.isfinite(law.alpha.low) else ""
    bound = ", a lower bound because trials were still learning" if claim is Claim.BOUND else ""
    return f"Line: fitted law α P with α = {law.alpha.estimate:.2f}{bound}{band}."
