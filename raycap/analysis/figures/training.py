"""Figures of quantities over training: learned bits, slope of the loss, and generalisation gap."""

import numpy as np
import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.curves import derivative
from raycap.analysis.figures.groups import trial_series
from raycap.analysis.figures.points import describe_reading, loss_curves, with_counts
from raycap.analysis.figures.style import (
    GREY,
    MAX_LINES,
    MAX_VECTORS,
    REFERENCE_BITS_PER_PARAM,
    CaptionedFigure,
    curves,
    finish,
    level,
    log_ticks,
    panels,
    scatter,
    styled,
)
from raycap.analysis.wording import KIND_TEXTS

MIN_SHOWN = -0.5
"""Lower end of the vertical axis of learning curves, in bits per parameter, if evaluations lie below it."""


@styled
def exposures(analysis: Analysis) -> CaptionedFigure:
    """Draw learned bits per parameter over training, one line per trial, with the asymptotes of the curves.

    This figure is always drawn.
    """
    totals = analysis.totals()
    if totals.empty:
        totals = pd.DataFrame(columns=["trial", "exposures", "bits_per_param", "num_params"], dtype=float)
    figure, ((axes,),) = panels()
    dense = len(totals) > MAX_VECTORS
    ends = _asymptotes(analysis)
    x_asymptotes = 1.35 * totals["exposures"].max()
    series = trial_series(analysis, totals["trial"])
    series.add_legend(axes)
    for group in series.series:
        members = totals[group.members]
        trial, seen, bits = (members[name] for name in ("trial", "exposures", "bits_per_param"))
        curves(axes, trial, seen, bits, group.look, label=group.label, dense=dense)
        marked = ends[ends["trial"].isin(members["trial"])]
        if len(marked):
            look = group.look._replace(marker=5)  # a triangle that points to the right
            scatter(axes, np.full(len(marked), x_asymptotes), marked["asymptote"], look, dense=dense, s=12, alpha=0.7)
    level(axes, REFERENCE_BITS_PER_PARAM, "2 bits/param", line="--")
    axes.set(xlabel="exposures per fact", ylabel="learned bits per parameter")
    notes = [_lines_sentence(dense, "Points are evaluations.")]
    if len(ends):
        notes.append(f"Triangles at the right edge: asymptotes of {len(ends)} trial{'s' * (len(ends) > 1)}.")
    refused = len(analysis.training) - len(ends)
    if refused:
        notes.append(f"The asymptote of {refused} trial{'s' * (refused > 1)} cannot be estimated.")
    if len(totals):
        shown = totals["bits_per_param"]
        floor = max(shown.min(), min(MIN_SHOWN, shown.max()))
        top = max(shown.max(), REFERENCE_BITS_PER_PARAM)
        top = max(top, min(ends["asymptote"].max(), 1.4 * top)) if len(ends) else top
        margin = 0.05 * (top - floor)
        axes.set_ylim(floor - margin, top + margin)
        axes.set_xlim(totals["exposures"][shown >= floor].min() / 1.3, 1.1 * x_asymptotes)
        outside = int((~ends["asymptote"].between(floor - margin, top + margin)).sum())
        if outside:
            notes.append(f"{outside} asymptote{'s are' if outside > 1 else ' is'} outside the axes.")
        if shown.min() < floor:
            notes.append(
                f"Evaluations below {floor:g} bits per parameter are not shown; negative values are losses above those of "
                "a model that knows only the names."
            )
    else:
        axes.set(xlim=(1, 1000), ylim=(0, 1.1 * REFERENCE_BITS_PER_PARAM))
    log_ticks(axes.xaxis)
    return finish(
        figure, f"Learning curves, {describe_reading(analysis.headline)}", with_counts(analysis, " ".join(notes))
    )


def _asymptotes(analysis: Analysis) -> pd.DataFrame:
    """Return the asymptote of each trial in bits per parameter, without trials whose estimate is refused."""
    table = analysis.training
    table = table[table["refused"] == ""] if len(table) else table
    sizes = analysis.tables.trials["num_params"].to_numpy()[table["trial"].to_numpy(dtype=int)]
    asymptote = table["asymptote_bits"].to_numpy(dtype=float) / sizes
    return pd.DataFrame({"trial": table["trial"].to_numpy(), "asymptote": asymptote})


@styled
def loss_derivatives(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the decrease of the loss per doubling of exposures over training.

    Returns None if no trial was evaluated twice.
    """
    table = loss_curves(analysis)
    if len(table) < 2:
        return None
    trial, seen = table["trial"].to_numpy(), table["exposures"].to_numpy(dtype=float)
    inside = (trial[1:] == trial[:-1]) & (seen[1:] > seen[:-1])
    if not inside.any():
        return None
    # Differences between the last row of a trial and the first of the next are computed too and dropped by the mask.
    with np.errstate(divide="ignore", invalid="ignore"):
        falls = derivative(seen, table["loss_bits"].to_numpy(dtype=float))[inside]
    middles = np.sqrt(seen[1:] * seen[:-1])[inside]
    trial_of = trial[1:][inside]
    figure, ((axes,),) = panels()
    dense = len(falls) > MAX_VECTORS
    series = trial_series(analysis, trial_of)
    series.add_legend(axes)
    for group in series.series:
        rows = group.members
        curves(axes, trial_of[rows], middles[rows], falls[rows], group.look, label=group.label, dense=dense)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.autoscale_view()
    axes.set(xlabel="exposures per fact", ylabel="decrease of loss per doubling\nof exposures (bits per question)")
    log_ticks(axes.xaxis)
    notes = _lines_sentence(
        dense, "Points are differences between consecutive evaluations; above 0 the loss decreases."
    )
    return finish(figure, f"Slope of the loss, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, notes))


@styled
def generalisation_gap(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the mean loss of held-out questions minus that of trained questions over training.

    Returns None if no questions are held out.
    """
    table = loss_curves(analysis)
    table = table.assign(gap=(table["held_out_bits"] - table["loss_bits"]).astype(float)).dropna(subset=["gap"])
    if table.empty:
        return None
    figure, ((axes,),) = panels()
    dense = len(table) > MAX_VECTORS
    largest = table.loc[table.groupby("trial")["gap"].idxmax()]
    series = trial_series(analysis, table["trial"])
    series.add_legend(axes)
    for group in series.series:
        members, look = table[group.members], group.look
        curves(axes, members["trial"], members["exposures"], members["gap"], look, label=group.label, dense=dense)
        ends = members[members["final"].astype(bool)]
        scatter(axes, ends["exposures"], ends["gap"], look, dense=dense, s=18)
        peaks = largest[largest["trial"].isin(members["trial"])]
        ring = look._replace(marker="o")
        scatter(axes, peaks["exposures"], peaks["gap"], ring, dense=dense, filled=False, s=42)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.autoscale_view()
    axes.set(xlabel="exposures per fact", ylabel="held-out loss − training loss\n(bits per question)")
    log_ticks(axes.xaxis)
    mean_end = table.loc[table["final"].astype(bool), "gap"].mean()
    notes = _lines_sentence(dense, "Points are evaluations.")
    notes += f" Ring: largest gap of the trial (mean {largest['gap'].mean():.2f} bits); large mark: gap at the end of "
    notes += f"training (mean {mean_end:.2f} bits)."
    return finish(figure, f"Generalisation gap, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, notes))


def _lines_sentence(dense: bool, points: str) -> str:
    """Return the caption's sentences on lines and points; the points of dense figures are medians instead."""
    if dense:
        return f"Each line is one trial, at most {MAX_LINES} per size; thick lines with points are medians over all trials."
    return f"Each line is one trial. {points}"
