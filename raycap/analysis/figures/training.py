"""What trials had learned when: bits, how fast losses fell, and what was new to them."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raycap.analysis.analyse import Analysis
from raycap.analysis.curves import derivative
from raycap.analysis.figures.groups import grouped
from raycap.analysis.figures.points import about, loss_curves
from raycap.analysis.figures.style import (
    GREY,
    INK,
    KIND_TEXTS,
    MAX_LINES,
    MAX_VECTORS,
    REFERENCE_BITS_PER_PARAM,
    curves,
    finish,
    log_ticks,
    panels,
    scatter,
    styled,
)

MIN_SHOWN = -0.5
"""Bits per parameter at which learning curves are cut off below."""


@styled
def exposures(analysis: Analysis) -> Figure:
    """Learned bits per parameter over training, a line per trial: whether trials had arrived, and where each was heading.
    Drawn always.
    """
    totals = analysis.totals()
    if totals.empty:
        totals = pd.DataFrame(columns=["trial", "exposures", "bits_per_param", "num_params"], dtype=float)
    figure, ((axes,),) = panels()
    dense = len(totals) > MAX_VECTORS
    ends = _asymptotes(analysis)
    beyond = 1.35 * totals["exposures"].max()
    for group in grouped(totals["num_params"], "params"):
        of_group = totals[group.members]
        trial, seen, bits = (of_group[name] for name in ("trial", "exposures", "bits_per_param"))
        curves(axes, trial, seen, bits, group.look, label=group.label, dense=dense)
        marked = ends[ends["trial"].isin(of_group["trial"])]
        if len(marked):
            look = group.look._replace(marker=5)  # a triangle that points to the right
            scatter(axes, np.full(len(marked), beyond), marked["asymptote"], look, dense=dense, s=12, alpha=0.7)
    axes.axhline(REFERENCE_BITS_PER_PARAM, color=INK, linestyle="--", linewidth=0.8, label="2 bits/param")
    axes.set(xlabel="exposures per fact", ylabel="learned bits per parameter")
    notes = [_lines(dense)]
    if len(ends):
        notes.append(f"Triangles at the right: asymptotes, of {len(ends)} trials.")
    refused = len(analysis.training) - len(ends)
    if refused:
        notes.append(f"No asymptote for {refused}.")
    if len(totals):
        shown = totals["bits_per_param"]
        floor = max(shown.min(), min(MIN_SHOWN, shown.max()))
        top = max(shown.max(), REFERENCE_BITS_PER_PARAM)
        top = max(top, min(ends["asymptote"].max(), 1.4 * top)) if len(ends) else top
        margin = 0.05 * (top - floor)
        axes.set_ylim(floor - margin, top + margin)
        axes.set_xlim(totals["exposures"][shown >= floor].min() / 1.3, 1.1 * beyond)
        outside = int((~ends["asymptote"].between(floor - margin, top + margin)).sum())
        if outside:
            notes[-1] += f" {outside} asymptote{'s lie' if outside > 1 else ' lies'} beyond the axes."
        if shown.min() < floor:
            notes.append("Earlier evaluations are not shown: models then lost more than one that knows just the names.")
    else:
        axes.set(xlim=(1, 1000), ylim=(0, 1.1 * REFERENCE_BITS_PER_PARAM))
    log_ticks(axes.xaxis)
    return finish(figure, f"Learning, {analysis.headline}", about(analysis, " ".join(notes)))


def _asymptotes(analysis: Analysis) -> pd.DataFrame:
    """Bits per parameter that trials tend to, of those that are not refused."""
    table = analysis.training
    table = table[table["refused"] == ""] if len(table) else table
    sizes = analysis.tables.trials["num_params"].to_numpy()[table["trial"].to_numpy(dtype=int)]
    asymptote = table["asymptote_bits"].to_numpy(dtype=float) / sizes
    return pd.DataFrame({"trial": table["trial"].to_numpy(), "asymptote": asymptote})


@styled
def loss_derivatives(analysis: Analysis) -> Figure | None:
    """Bits of loss that a doubling of exposures takes away, over training: when things are learned, and whether more
    would be. None where no trial was evaluated twice.
    """
    table = loss_curves(analysis)
    if len(table) < 2:
        return None
    trial, seen = table["trial"].to_numpy(), table["exposures"].to_numpy(dtype=float)
    inside = (trial[1:] == trial[:-1]) & (seen[1:] > seen[:-1])
    if not inside.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # from a trial to the next, which is not drawn
        falls = derivative(seen, table["loss_bits"].to_numpy(dtype=float))[inside]
    middles = np.sqrt(seen[1:] * seen[:-1])[inside]
    owner, sizes = trial[1:][inside], table["num_params"].to_numpy()[1:][inside]
    figure, ((axes,),) = panels()
    dense = len(falls) > MAX_VECTORS
    for group in grouped(sizes, "params"):
        rows = group.members
        curves(axes, owner[rows], middles[rows], falls[rows], group.look, label=group.label, dense=dense)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.autoscale_view()
    axes.set(xlabel="exposures per fact", ylabel="bits of loss per doubling\nof exposures")
    log_ticks(axes.xaxis)
    notes = about(analysis, f"{_lines(dense)} Between one evaluation and the next; above 0 the loss falls.")
    return finish(figure, f"How fast losses fall, {KIND_TEXTS[analysis.kind]}", notes)


@styled
def generalisation_gap(analysis: Analysis) -> Figure | None:
    """Loss of questions held out less that of those trained, over training: whether generalisation comes, and when. None
    where nothing is held out.
    """
    table = loss_curves(analysis)
    table = table.assign(gap=(table["held_out_bits"] - table["loss_bits"]).astype(float)).dropna(subset=["gap"])
    if table.empty:
        return None
    figure, ((axes,),) = panels()
    dense = len(table) > MAX_VECTORS
    largest = table.loc[table.groupby("trial")["gap"].idxmax()]
    for group in grouped(table["num_params"], "params"):
        members, look = table[group.members], group.look
        curves(axes, members["trial"], members["exposures"], members["gap"], look, label=group.label, dense=dense)
        ends = members[members["final"].astype(bool)]
        scatter(axes, ends["exposures"], ends["gap"], look, dense=dense, s=18)
        peaks = largest[largest["trial"].isin(members["trial"])]
        ring = look._replace(marker="o")
        scatter(axes, peaks["exposures"], peaks["gap"], ring, dense=dense, filled=False, s=42)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.autoscale_view()
    axes.set(xlabel="exposures per fact", ylabel="loss held out − loss trained\n(bits per question)")
    log_ticks(axes.xaxis)
    mean_end = table.loc[table["final"].astype(bool), "gap"].mean()
    notes = f"{_lines(dense)} Ringed: its largest gap (mean {largest['gap'].mean():.2f} bits); "
    notes += f"large mark: its end ({mean_end:.2f})."
    return finish(figure, f"What was new, {KIND_TEXTS[analysis.kind]}", about(analysis, notes))


def _lines(dense: bool) -> str:
    return f"A line a trial, at most {MAX_LINES} a size; medians of all on top." if dense else "A line a trial."
