"""Figures of losses of trained and held-out questions over training, and of what is left of their gap."""

import pandas as pd
from matplotlib.axes import Axes

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import trial_series
from raycap.analysis.figures.points import loss_curves, with_counts
from raycap.analysis.figures.style import (
    COLUMN_INCHES,
    GREY,
    MAX_VECTORS,
    PAGE_INCHES,
    CaptionedFigure,
    LineStyle,
    curves,
    finish,
    log_ticks,
    panels,
    scatter,
    styled,
)
from raycap.analysis.wording import KIND_TEXTS, SPLIT_TEXTS
from raycap.results import Part, is_trained
from raycap.spec import Kind, Split

MAX_SPLITS = 3
"""Most held-out splits that are drawn; those with most questions come first in `Split`."""


@styled
def loss_by_kind(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the loss over training in a panel per kind of question and part of its text, trained and held out.

    Returns None while no trial has finished.
    """
    table = analysis.tables.losses
    if table.empty:
        return None
    table = table[table["population"] == 0]
    shown = [
        (kind, part)
        for kind in Kind
        for part in Part
        if ((table["kind"] == str(kind)) & (table["part"] == str(part))).any()
    ]
    width = COLUMN_INCHES if len(shown) == 1 else min(PAGE_INCHES, 0.6 + 2.2 * len(shown))
    figure, (row,) = panels(1, len(shown), width=width, height=2.2, sharex=True)
    dense = len(table) > MAX_VECTORS
    held_out = table["held_out_bits"].notna().any()
    for axes, (kind, part) in zip(row, shown, strict=True):
        rows = table[(table["kind"] == str(kind)) & (table["part"] == str(part))]
        series = trial_series(analysis, rows["trial"])
        series.add_legend(row[0])
        for group in series.series:
            members = rows[group.members]
            trial, seen, trained = (members[name] for name in ("trial", "exposures", "loss_bits"))
            curves(axes, trial, seen, trained, group.look, label=group.label, dense=dense)
            new = members.dropna(subset=["held_out_bits"])
            if len(new):
                look = LineStyle(group.look.colour, "", (0, (1, 1.5)))
                curves(axes, new["trial"], new["exposures"], new["held_out_bits"], look, label="_held out", dense=dense)
        axes.autoscale_view()
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set(xlabel="exposures per fact", title=KIND_TEXTS[kind] + (", chain" if part is Part.CHAIN else ""))
        log_ticks(axes.xaxis)
    row[0].set_ylabel("loss per question (bits)")
    caption = "Each line is one trial; points are evaluations. Losses are means over trained questions"
    caption += "; dotted lines without points: held-out questions." if held_out else "."
    if (Kind.TWO_HOP, Part.CHAIN) in shown or (Kind.THREE_HOP, Part.CHAIN) in shown:
        caption += " With a chain of thought, the loss of the answer is the one given the chain."
    return finish(figure, "Loss by kind of question", with_counts(analysis, caption))


@styled
def held_out_vs_learned(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the loss of held-out questions against the share of the trained answers' entropy that is learned.

    Returns None if no questions are held out.
    """
    table = loss_curves(analysis).dropna(subset=["held_out_bits"])
    if table.empty:
        return None
    evaluations = analysis.tables.evaluations[["trial", "step", "lost_share"]]
    table = table.merge(evaluations, on=["trial", "step"])
    table = table.assign(learned=100 * (1 - table["lost_share"].astype(float)))
    table = table[table["learned"] > -5]
    if table.empty:
        return None
    figure, ((axes,),) = panels()
    dense = len(table) > MAX_VECTORS
    series = trial_series(analysis, table["trial"])
    series.add_legend(axes)
    for group in series.series:
        members, look = table[group.members], group.look
        learned, loss = members["learned"], members["held_out_bits"]
        curves(axes, members["trial"], learned, loss, look, label=group.label, dense=dense)
        ends = members["final"].to_numpy(dtype=bool)
        scatter(axes, learned[ends], loss[ends], look, dense=dense, s=20)
    axes.autoscale_view()
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set(
        xlabel="learned share of the trained answers' entropy (%)",
        ylabel="loss of held-out questions\n(bits per question)",
    )
    caption = (
        "Each line is one trial; points are evaluations, the large one is the end of training. Evaluations that are "
    )
    caption += "worse than chance by more than 5 % of the entropy are not drawn."
    return finish(figure, f"Generalisation, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption))


@styled
def gap_vs_size(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the generalisation gap of each split against the model size: its maximum over training and its end.

    Returns None if no questions are held out.
    """
    gaps = split_gaps(analysis)
    if gaps.empty:
        return None
    splits = [split for split in Split if str(split) in set(gaps["split"])][:MAX_SPLITS]
    columns = {"largest": "largest over training", "end": "end of training"}
    height = 0.5 + 1.4 * len(splits)
    figure, grid = panels(len(splits), len(columns), width=PAGE_INCHES, height=height, sharex=True, sharey=True)
    arms = trial_series(analysis, gaps["trial"], by_size=False)
    arms.add_legend(grid[0, 0])
    for split, row in zip(splits, grid, strict=True):
        for axes, (column, moment) in zip(row, columns.items(), strict=True):
            for arm in arms.series:
                points = gaps[arm.members & (gaps["split"] == str(split)).to_numpy(dtype=bool)]
                _points_and_means(axes, points["num_params"], points[column], arm.look, arm.label)
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_title(f"{SPLIT_TEXTS[split]}, {moment}")
            log_ticks(axes.xaxis, gaps["num_params"])
    for axes in grid[-1]:
        axes.set_xlabel("parameters, embeddings included")
    grid[len(splits) // 2, 0].set_ylabel("held-out loss − training loss\n(bits per question)")
    caption = "Each point is one trial; lines join means over seeds."
    left_out = gaps["split"].nunique() - len(splits)
    caption += f" {left_out} more splits are not drawn." if left_out else ""
    return finish(figure, f"Gap by held-out component, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption))


def split_gaps(analysis: Analysis) -> pd.DataFrame:
    """Return the largest and the last gap to the trained loss of each trial and held-out split of the headline kind.

    Columns: trial, split, largest, end, num_params. The losses are those of answers of the first population.
    """
    table = analysis.tables.split_losses
    if table.empty or is_trained(analysis.kind, Split.TUPLES):
        return pd.DataFrame()
    chosen = (table["kind"] == str(analysis.kind)) & (table["part"] == str(Part.ANSWER)) & (table["population"] == 0)
    wide = table[chosen].pivot(index=["trial", "step"], columns="split", values="loss_bits")
    if str(Split.TRAIN) not in wide or wide.shape[1] < 2:
        return pd.DataFrame()
    gaps = wide.drop(columns=str(Split.TRAIN)).sub(wide[str(Split.TRAIN)], axis=0)
    by_trial = gaps.groupby("trial")
    found = pd.concat({"largest": by_trial.max().stack(), "end": by_trial.last().stack()}, axis=1).reset_index()
    sizes = analysis.tables.trials["num_params"].to_numpy()[found["trial"].to_numpy(dtype=int)]
    return found.assign(num_params=sizes)


@styled
def steps_to_minimum(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the step at which the loss of held-out questions is smallest against the model size.

    Returns None if no questions are held out.
    """
    table = loss_curves(analysis).dropna(subset=["held_out_bits"])
    if table.empty:
        return None
    best = table.loc[table.groupby("trial")["held_out_bits"].idxmin()]
    figure, ((axes,),) = panels()
    dense = len(best) > MAX_VECTORS
    series = trial_series(analysis, best["trial"], by_size=False)
    series.add_legend(axes)
    for group in series.series:
        members = best[group.members]
        at_end = members["final"].to_numpy(dtype=bool)
        for filled, rows in ((True, members[~at_end]), (False, members[at_end])):
            labelled = {"label": group.label} if filled or at_end.all() else {}
            scatter(axes, rows["num_params"], rows["step"], group.look, filled=filled, dense=dense, s=20, **labelled)
    axes.set(xlabel="parameters, embeddings included", ylabel="step of the smallest\nheld-out loss")
    axes.margins(y=0.15)
    log_ticks(axes.xaxis, best["num_params"])
    log_ticks(axes.yaxis)
    caption = (
        "Each point is one trial: the evaluation at which the mean loss of held-out questions is smallest. Open: it "
    )
    caption += "is the last evaluation, so the minimum may be later."
    return finish(figure, f"Steps to the minimum, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption))


def _points_and_means(axes: Axes, x: "pd.Series[float]", y: "pd.Series[float]", look: LineStyle, label: str) -> None:
    """Draw points, and a line through their means at equal x."""
    scatter(axes, x, y, look, s=9, alpha=0.6)
    means = y.groupby(x.to_numpy()).mean()
    axes.plot(means.index, means, color=look.colour, linestyle=look.line, marker=look.marker, markersize=3, label=label)
