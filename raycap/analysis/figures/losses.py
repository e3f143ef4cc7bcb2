"""Figures of final losses: by subject, by text, by held-out component, by dataset bits, and by learning rate."""

from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import TrialSeries, grouped, trial_series
from raycap.analysis.figures.points import describe_reading, final_points, loss_curves, trials, with_counts
from raycap.analysis.figures.style import (
    COLUMN_INCHES,
    GREY,
    INK,
    LOOKS,
    MAX_VECTORS,
    PAGE_INCHES,
    PALE,
    REFERENCE_BITS_PER_PARAM,
    CaptionedFigure,
    LineStyle,
    finish,
    level,
    log_ticks,
    panels,
    scatter,
    short,
    styled,
)
from raycap.analysis.wording import KIND_TEXTS
from raycap.results import HISTOGRAM_EDGES_BITS, Part
from raycap.spec import Kind, Split

COMPARABLE_AXES = {
    "training.optimizer.lr",
    "model.hidden_size",
    "model.num_params",
    "model.parametrization",
    "training.seed",
    "training.order_seed",
}
"""Losses are drawn against the learning rate only if the grid has no other axes than these."""
SPLIT_TEXTS = {
    Split.TRAIN: "none (trained)",
    Split.FIRST_PEOPLE: "first person",
    Split.PEOPLE: "first or second person",
    Split.RELATIONS: "relation",
    Split.FIRST_PAIRS: "first person and relation",
    Split.SECOND_PEOPLE: "second person",
    Split.SECOND_SUBJECTS: "second subject",
    Split.SECOND_PAIRS: "second person and subject",
    Split.TUPLES: "combination only",
    Split.SEVERAL: "several",
}
ROW_INCHES = 0.2
UNIFORM_LABEL = "uniform over the possible answers"


@styled
def subjects(analysis: Analysis) -> CaptionedFigure:
    """Draw the final loss per question of each subject next to the loss of a uniform guess among the possible answers.

    This figure is always drawn.
    """
    table = analysis.tables.subjects
    if len(table):
        table = table[(table["kind"] == str(analysis.kind)) & (table["population"] == 0)]
    names = list(dict.fromkeys(table["subject"])) if len(table) else []
    figure, ((axes,),) = panels(height=max(1.2, 0.5 + ROW_INCHES * len(names)))
    if names:
        rows = np.arange(len(names))
        uniform = table.groupby("subject")["uniform_bits"].max().reindex(names)  # the largest, where trials differ
        axes.barh(rows, uniform, color=PALE)
        series = trial_series(analysis, table["trial"])
        series.add_legend(axes)
        groups = series.series
        for number, group in enumerate(groups):
            of_size = table[group.members].groupby("subject")["loss_bits"].agg(["mean", "min", "max"]).reindex(names)
            height = rows + 0.6 * ((number + 0.5) / len(groups) - 0.5)
            axes.hlines(height, of_size["min"], of_size["max"], color=group.look.colour, linewidth=0.8)
            scatter(axes, of_size["mean"], height, group.look, s=10, label=group.label)
        axes.set_yticks(rows, [name.replace("_", " ") for name in names])
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
    else:
        axes.set_yticks([])
    axes.set(xlabel="loss per question (bits)")
    caption = (
        "Marks: mean loss at the end of training over the trials of one series; lines: minimum to maximum. Bars: loss "
    )
    caption += "of a uniform guess among the possible answers."
    return finish(figure, f"Final loss by subject, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption))


@styled
def loss_vs_content(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the final loss per question against dataset bits per parameter, or return None while no trial has finished."""
    points, losses = final_points(analysis), loss_curves(analysis)
    if points.empty or losses.empty:
        return None
    ends = losses[losses["final"].astype(bool)].set_index("trial")["loss_bits"]
    points = points.assign(loss=ends.reindex(points["trial"]).to_numpy(dtype=float)).dropna(subset=["loss"])
    if points.empty:
        return None
    figure, ((axes,),) = panels()
    series = trial_series(analysis, points["trial"])
    series.add_legend(axes)
    for group in series.series:
        members = points[group.members]
        demanded = members["dataset_bits"] / members["num_params"]
        scatter(axes, demanded, members["loss"], group.look, dense=len(points) > MAX_VECTORS, label=group.label)
    table = analysis.tables.subjects
    table = table[(table["kind"] == str(analysis.kind)) & (table["population"] == 0)]
    uniform = table.groupby("trial")["uniform_bits"].mean()
    level(axes, uniform.max(), UNIFORM_LABEL)
    if uniform.max() - uniform.min() > 1e-3:
        axes.axhspan(uniform.min(), uniform.max(), color=PALE, linewidth=0)
    axes.axvline(REFERENCE_BITS_PER_PARAM, color=INK, linestyle="--", linewidth=0.8)
    axes.set(xlabel="dataset bits per parameter", ylabel="loss per question (bits)")
    axes.set_ylim(bottom=min(0.0, points["loss"].min()) - 0.03 * axes.get_ylim()[1])
    log_ticks(axes.xaxis)
    caption = f"Each point is one trial at the end of training; dataset bits: {describe_reading(analysis.headline)}. "
    caption += "Vertical line: 2 bits per parameter."
    return finish(
        figure, f"Final loss against dataset bits, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption)
    )


@styled
def histograms(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the distribution of the final losses of trained texts: one line per size, one panel per kind of question.

    Returns None if the results have no histograms.
    """
    histograms = {kind: counts for kind, counts in sorted(analysis.tables.histograms.items()) if counts.any()}
    if not histograms:
        return None
    kinds = [kind for kind in Kind if kind in histograms]
    width = COLUMN_INCHES if len(kinds) == 1 else min(PAGE_INCHES, 0.6 + 2.3 * len(kinds))
    figure, (row,) = panels(1, len(kinds), width=width, height=2.0, sharey=True)
    edges = np.array([HISTOGRAM_EDGES_BITS[0] / 2**0.5, *HISTOGRAM_EDGES_BITS, HISTOGRAM_EDGES_BITS[-1] * 2**0.5])
    for axes, kind in zip(row, kinds, strict=True):
        counts = histograms[kind]
        series = trial_series(analysis, range(len(analysis.sweep.trials)))
        series.add_legend(axes)
        for group in series.series:
            total = counts[group.members].sum(0)
            if total.any():
                shares = 100 * total / total.sum()
                axes.stairs(
                    shares, edges, color=group.look.colour, linestyle=group.look.line, linewidth=1.0, label=group.label
                )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: short(bits) if bits >= 1 else f"1/{1 / bits:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="loss per text (bits)", xlim=(edges[0] / 1.2, edges[-1] * 1.2))
        axes.set_title(KIND_TEXTS[kind])
        axes.set_ylim(bottom=0)
    row[0].set_ylabel("trained texts (%)")
    caption = (
        "Each line is the histogram of the final losses of all trained texts over all trials of one size. The first "
    )
    caption += "and the last bin include everything beyond them."
    return finish(figure, "Losses of single texts", with_counts(analysis, caption))


@styled
def generalisation(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the mean final loss by the held-out component of a question and by kind, or return None if none is held out."""
    table = analysis.tables.splits
    if table.empty or table["split"].nunique() < 2:
        return None
    table = table[table["population"] == 0]
    chained = np.array([planned.spec.questions.chain_of_thought for planned in analysis.sweep.trials])
    table = table.assign(chained=chained[table["trial"].to_numpy(dtype=int)])
    single = table["kind"].isin([str(kind) for kind in Kind if kind.hops < 2])
    table.loc[single, "chained"] = False  # one-hop answers have no chain of thought
    splits = [split for split in Split if str(split) in set(table["split"])]
    arms = trial_series(analysis, table["trial"], by_size=False, drawn="questions.chain_of_thought")
    kinds = [kind for kind in Kind if str(kind) in set(table["kind"])]
    per_kind = bool(arms.entries)  # colours and markers are those of two axes, so each kind gets a panel
    series: dict[Kind, list[tuple[str, LineStyle, pd.DataFrame]]] = {kind: [] for kind in kinds}
    markers: dict[str, LineStyle] = {}
    for kind in kinds:
        for is_chained in (False, True):
            for part, suffix in ((Part.ANSWER, ", given the chain"), (Part.CHAIN, ", the chain itself")):
                chosen = (table["kind"] == str(kind)) & (table["part"] == str(part)) & (table["chained"] == is_chained)
                if not chosen.any():
                    continue
                text, look = KIND_TEXTS[kind] + suffix * is_chained, LOOKS[len(markers) % len(LOOKS)]
                if not per_kind:
                    markers[text] = look._replace(colour=GREY)
                if len(arms.series) == 1:
                    series[kind].append((text, look, table[chosen]))
                for arm in arms.series if len(arms.series) > 1 else []:
                    look = look._replace(colour=arm.look.colour, **({"marker": arm.look.marker} if per_kind else {}))
                    series[kind].append((f"_{text}, {arm.label}", look, table[chosen & arm.members]))
    shown = list(series.values()) if per_kind else [list(chain.from_iterable(series.values()))]
    height = 0.5 + (0.1 + 0.06 * max(map(len, shown))) * len(splits)
    width = PAGE_INCHES if len(shown) > 1 else COLUMN_INCHES
    figure, (row,) = panels(1, len(shown), width=width, height=height, sharey=True)
    if len(arms.series) > 1:
        colours = [(arm.label, LineStyle(arm.look.colour, "", "-")) for arm in arms.series]
        TrialSeries([], [*(arms.entries or colours), *markers.items()]).add_legend(row[0])
    for axes, of_panel in zip(row, shown, strict=True):
        for number, (label, look, rows) in enumerate(of_panel):
            bits = rows.groupby("split")["loss_bits"].agg(["mean", "min", "max"])
            bits = bits.reindex([str(split) for split in splits])
            at = np.arange(len(splits)) + 0.7 * ((number + 0.5) / len(of_panel) - 0.5)
            axes.hlines(at, bits["min"], bits["max"], color=look.colour, linewidth=0.8)
            scatter(axes, bits["mean"], at, look, s=16, label=label)
    table = analysis.tables.subjects
    uniform = table.groupby("kind")["uniform_bits"].mean()
    for axes, kind in zip(row, kinds if per_kind else [analysis.kind], strict=True):
        axes.axvline(uniform[str(kind)], color=GREY, linestyle=":")
        axes.set(xlabel="final loss per question (bits)", title=KIND_TEXTS[kind] if per_kind else "")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    row[0].set_yticks(range(len(splits)), [SPLIT_TEXTS[split] for split in splits])
    row[0].invert_yaxis()
    row[0].set_ylabel("held out")
    caption = "Marks: mean loss at the end of training over the trials of a series; lines: minimum to maximum. "
    caption += "Dotted: loss of a uniform guess among the possible answers."
    return finish(figure, "Final loss by held-out component", with_counts(analysis, caption))


@styled
def learning_rates(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the final loss against the learning rate: one line per width, one panel per parametrisation.

    Returns None unless the learning rate is varied and the grid has no axes but COMPARABLE_AXES.
    """
    table = analysis.tables.losses
    if table.empty or not analysis.sweep.trials[0].coordinates.keys() <= COMPARABLE_AXES:
        return None
    finals = table[table["final"].astype(bool) & (table["part"] == str(Part.ANSWER)) & (table["population"] == 0)]
    finals = finals.drop_duplicates("trial", keep="last").merge(
        trials(analysis), on="trial"
    )  # the last kind of each trial
    if finals["learning_rate"].nunique() < 2:
        return None
    kinds = sorted(finals["parametrization"].unique(), reverse=True)
    width = COLUMN_INCHES if len(kinds) == 1 else min(PAGE_INCHES, 0.6 + 2.4 * len(kinds))
    figure, (row,) = panels(1, len(kinds), width=width, height=2.3, sharey=True)
    rates = finals["learning_rate"]
    for group in grouped(finals["hidden_size"], "wide", 5):
        of_width = finals[group.members]
        for axes, kind in zip(row, kinds, strict=True):
            curve = of_width[of_width["parametrization"] == kind].groupby("learning_rate")["loss_bits"].mean()
            if curve.empty:
                continue
            look = group.look
            axes.plot(curve.index, curve, color=look.colour, marker=look.marker, linestyle=look.line, label=group.label)
            scatter(axes, [curve.idxmin()], [curve.min()], LineStyle(look.colour, "o", "-"), filled=False, s=60)
    for axes, kind in zip(row, kinds, strict=True):
        axes.set(xlabel="learning rate", title={"mup": "muP", "standard": "standard parametrisation"}.get(kind, kind))
        axes.set_xlim(rates.min() / 1.4, rates.max() * 1.4)
        log_ticks(axes.xaxis, rates)
    row[0].set_ylabel("final loss per question (bits)")
    caption = "Each point is the mean final loss over the seeds of one cell; a ring marks the best rate of each width."
    return finish(figure, f"Loss against learning rate, {KIND_TEXTS[analysis.kind]}", with_counts(analysis, caption))
