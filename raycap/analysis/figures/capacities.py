"""Figures of final learned bits against parameters, dataset size, encoding scheme, parameter norm, and hops."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import TrialSeries, trial_series
from raycap.analysis.figures.law_lines import draw_laws
from raycap.analysis.figures.points import (
    describe_reading,
    exclusions,
    final_points,
    points_sentence,
    totals_of,
    with_counts,
)
from raycap.analysis.figures.style import (
    DIRECT,
    INK,
    MAX_VECTORS,
    PAGE_INCHES,
    REFERENCE_BITS_PER_PARAM,
    SELECTION_LOOKS,
    CaptionedFigure,
    Floats,
    LineStyle,
    curves,
    finish,
    level,
    log_ticks,
    panels,
    proportional,
    scatter,
    short,
    styled,
)
from raycap.analysis.readings import Reading
from raycap.analysis.wording import KIND_TEXTS
from raycap.spec import EncodingScheme, Kind

MAX_PANELS = 6


@styled
def capacity(analysis: Analysis) -> CaptionedFigure:
    """Draw learned bits against parameters: the headline reading with its law, and the other selections fainter.

    This figure is always drawn, also before the first trial has finished.
    """
    scheme, selection = analysis.headline
    figure, ((axes,),) = panels()
    span = _span(analysis)
    hidden = 0
    arms = _arms(analysis, final_points(analysis))
    selections = analysis.sweep.spec.analysis.selections if not arms else (selection,)
    for other in sorted(selections, key=lambda other: other is not selection):
        is_headline = other is selection
        points = final_points(analysis, Reading(scheme, other))
        label = f"{other} names" if is_headline else f"{other}"
        look = SELECTION_LOOKS[other]
        without_bits = draw_points(axes, points, look, label=label, faint=not is_headline, arms=arms)
        hidden = without_bits if is_headline else hidden
    lines = draw_laws(axes, analysis, final_points(analysis), arms, span)
    proportional(axes, span)
    _levels(axes, final_points(analysis))
    axes.set(xlabel="parameters, embeddings included", ylabel="learned bits", xlim=span)
    axes.set_yscale("log")
    log_ticks(axes.xaxis, analysis.tables.trials["num_params"])
    log_ticks(axes.yaxis)
    caption = f"{points_sentence(analysis)}."
    if len(selections) > 1:
        caption += " Faint points: the same losses under the other selections."
    caption = with_counts(analysis, _joined(caption, lines))
    return finish(
        figure, f"Capacity, {scheme} encoding", _joined(caption, exclusions(analysis), _hidden_sentence(hidden))
    )


@styled
def capacity_by_profiles(analysis: Analysis) -> CaptionedFigure | None:
    """Draw learned bits against parameters with one panel per number of people, or return None if it is not varied."""
    points = final_points(analysis)
    numbers = np.unique(points["num_profiles"])
    if len(numbers) < 2:
        return None
    shown = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(MAX_PANELS, len(numbers))).round().astype(int))]
    figure, grid = _small_multiples(len(shown))
    dense = len(points) > MAX_VECTORS
    span, look, lines = _span(analysis), SELECTION_LOOKS[analysis.headline.selection], ""
    for axes, number in zip(grid, shown, strict=True):
        members = points[points["num_profiles"] == number]
        arms = _arms(analysis, members, "profiles.num_profiles")
        draw_points(axes, members, look, label="trials", dense=dense, arms=arms)
        lines = draw_laws(axes, analysis, members, arms, span) or lines
        for column, text, line in (("dataset_bits", "all data", ":"), ("baseline_bits", "names alone", "-.")):
            bits = members[column].min()
            if bits > 0:
                level(axes, bits, text, line=line)
        axes.set(title=f"N = {number:,.0f}", xlim=span)
    _finish_small_multiples(grid, analysis)
    dropped = f"{len(shown)} of the {len(numbers)} values of N are shown." if len(shown) < len(numbers) else ""
    caption = f"{points_sentence(analysis)}."
    caption = with_counts(analysis, _joined(caption, lines))
    return finish(
        figure,
        "Capacity, by number of people or strings N",
        _joined(caption, dropped, exclusions(analysis), _level_note(points)),
    )


@styled
def capacity_by_scheme(analysis: Analysis) -> CaptionedFigure | None:
    """Draw learned bits against parameters with one panel per encoding scheme, or return None if only one is declared."""
    schemes: tuple[EncodingScheme, ...] = tuple(analysis.sweep.spec.analysis.schemes)
    if len(schemes) < 2 or not analysis.measured:
        return None
    figure, grid = _small_multiples(len(schemes))
    span = _span(analysis)
    hidden = 0
    for axes, scheme in zip(grid, schemes, strict=True):
        arms = _arms(analysis, final_points(analysis))
        shown = (analysis.headline.selection,) if arms else analysis.sweep.spec.analysis.selections
        for selection in shown:
            reading, look = Reading(scheme, selection), SELECTION_LOOKS[selection]
            points = final_points(analysis, reading)
            hidden += draw_points(axes, points, look, label=f"{selection} names", arms=arms)
            draw_laws(axes, analysis, points, arms, span, reading, named=False)
        proportional(axes, span)
        axes.set(title=str(scheme), xlim=span)
    _finish_small_multiples(grid, analysis)
    caption = "Each point is one trial at the end of training under one reading; lines: fitted law α P of each reading."
    left_out = exclusions(analysis, f"the law of their reading (counts: {describe_reading(analysis.headline)})")
    return finish(
        figure,
        "Capacity, by encoding scheme",
        _joined(with_counts(analysis, caption), left_out, _hidden_sentence(hidden)),
    )


@styled
def capacity_vs_profiles(analysis: Analysis) -> CaptionedFigure | None:
    """Draw learned bits against the number of people with one line per model size, or return None if it is not varied.

    Small datasets are learned completely, so their points follow the bits of the data; beyond that a size stays at its
    capacity.
    """
    points = final_points(analysis)
    points = points[points["learned_bits"] > 0]
    if points["num_profiles"].nunique() < 2:
        return None
    figure, ((axes,),) = panels()
    dense = len(points) > MAX_VECTORS
    series = trial_series(analysis, points["trial"], drawn="profiles.num_profiles")
    series.add_legend(axes)
    for group in series.series:
        members = points[group.members]
        means = members.groupby("num_profiles")["learned_bits"].mean()
        axes.plot(means.index, means, color=group.look.colour, linestyle=group.look.line)
        _open_and_filled(axes, members, "num_profiles", "learned_bits", group.look, group.label, dense)
    data = points.groupby("num_profiles")["dataset_bits"].mean()
    axes.plot(data.index, data, color=INK, linestyle=":", linewidth=1.2, label="all data", gid=DIRECT)
    axes.set(xlabel="number of people or strings N", ylabel="learned bits")
    axes.set_yscale("log")
    log_ticks(axes.xaxis, points["num_profiles"])
    log_ticks(axes.yaxis)
    caption = f"{points_sentence(analysis)}; lines: means over the trials of a series; dotted: all data."
    return finish(
        figure, "Capacity against the amount of data", _joined(with_counts(analysis, caption), exclusions(analysis))
    )


@styled
def capacity_vs_norm(analysis: Analysis) -> CaptionedFigure | None:
    """Draw learned bits against the L2 norm of all parameters at every evaluation, or return None if all norms are equal."""
    totals = analysis.totals()
    if totals.empty:
        return None
    norms = analysis.tables.evaluations[["trial", "step", "parameter_norm"]]
    points = totals.merge(norms.astype({"trial": int, "step": int}), on=["trial", "step"])
    points = points[(points["learned_bits"] > 0) & (points["parameter_norm"] > 0)]
    if points["parameter_norm"].nunique() < 2:
        return None
    figure, ((axes,),) = panels()
    series = trial_series(analysis, points["trial"])
    series.add_legend(axes)
    dense = len(points) > MAX_VECTORS
    for group in series.series:
        members, look = points[group.members], group.look
        norm, bits = members["parameter_norm"], members["learned_bits"]
        curves(axes, members["trial"], norm, bits, look, label=group.label, dense=dense)
        ends = members["final"].to_numpy(dtype=bool)
        scatter(axes, norm[ends], bits[ends], look, dense=dense, s=20)
    axes.set(xlabel="L2 norm of all parameters", ylabel="learned bits")
    axes.set_yscale("log")
    axes.autoscale_view()
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    caption = "Each line is one trial; points are evaluations, the large one is the end of training. Bits: "
    caption += f"{describe_reading(analysis.headline)}. Evaluations with no learned bits are not drawn."
    return finish(figure, "Capacity against parameter norm", with_counts(analysis, caption))


@styled
def hops(analysis: Analysis) -> CaptionedFigure | None:
    """Draw one-hop against two-hop bits per parameter, or return None unless both kinds were evaluated.

    The dashed line is a total of 2 bits per parameter over both kinds.
    """
    tables = [totals_of(analysis, kind) for kind in (Kind.ONE_HOP, Kind.TWO_HOP)]
    if any(table.empty for table in tables):
        return None
    columns = [table.set_index("trial")["bits_per_param"] for table in tables]
    points = pd.concat(columns, axis=1, join="inner", keys=["one", "two"]).reset_index()
    if points.empty:
        return None
    points["num_params"] = analysis.tables.trials["num_params"].to_numpy()[points["trial"].to_numpy(dtype=int)]
    figure, ((axes,),) = panels()
    series = trial_series(analysis, points["trial"])
    series.add_legend(axes)
    for group in series.series:
        members = points[group.members]
        dense = len(points) > MAX_VECTORS
        scatter(axes, members["two"], members["one"], group.look, dense=dense, label=group.label, alpha=0.85)
    ends = np.array([min(0.0, points["two"].min()), max(REFERENCE_BITS_PER_PARAM, points["two"].max())])
    axes.plot(ends, REFERENCE_BITS_PER_PARAM - ends, color=INK, linestyle="--", label="sum of 2 bits/param", gid=DIRECT)
    axes.set(
        xlabel=f"bits per parameter, {KIND_TEXTS[Kind.TWO_HOP]}",
        ylabel=f"bits per parameter,\n{KIND_TEXTS[Kind.ONE_HOP]}",
    )
    caption = f"{points_sentence(analysis)}. The bits of each "
    caption += (
        "kind of question are computed separately; both include the names. Dashed: a sum of 2 bits per parameter."
    )
    return finish(figure, "One-hop and two-hop capacity", with_counts(analysis, caption))


def draw_points(
    axes: Axes,
    points: pd.DataFrame,
    look: LineStyle,
    *,
    label: str,
    faint: bool = False,
    dense: bool = False,
    arms: TrialSeries | None = None,
) -> int:
    """Draw trials, with open markers if they are not in the law; return how many are not drawn for want of learned bits.

    Trials with learned bits <= 0 cannot be drawn on a logarithmic axis. `arms` are series of the trials, which replace the
    look and the label.
    """
    dense = len(points) > MAX_VECTORS or dense
    known = (points["learned_bits"] > 0).to_numpy(dtype=bool)
    options: dict[str, Any] = {"alpha": 0.4, "s": 9} if faint else {"s": 16, "zorder": 4}
    if arms:
        arms.add_legend(axes)
        for group in arms.series:
            rows = points[known & group.members]
            _open_and_filled(axes, rows, "num_params", "learned_bits", group.look, group.label, dense, **options)
    else:
        _open_and_filled(axes, points[known], "num_params", "learned_bits", look, label, dense, **options)
    return int((~known).sum())


def _arms(analysis: Analysis, points: pd.DataFrame, drawn: str = "") -> TrialSeries | None:
    """Return the series of some trials if the grid varies something besides sizes, seeds and the axis `drawn`."""
    series = trial_series(analysis, points["trial"], by_size=False, drawn=drawn)
    return series if len(series.series) > 1 else None


def _open_and_filled(
    axes: Axes, points: pd.DataFrame, x: str, y: str, look: LineStyle, label: str, dense: bool, **options: Any
) -> None:
    """Draw trials of the law with filled and all others with open markers, under one label in the legend."""
    in_law = (points["excluded"] == "").to_numpy(dtype=bool)
    for filled, chosen in ((True, points[in_law]), (False, points[~in_law])):
        labelled = options | ({"label": label} if filled or not in_law.any() else {})
        scatter(axes, chosen[x], chosen[y], look, dense=dense, filled=filled, **labelled)


def _hidden_sentence(hidden: int) -> str:
    return f"Not drawn: points with no learned bits ({hidden})." if hidden else ""


def _span(analysis: Analysis) -> Floats:
    """Return the range of planned model sizes with a margin of 20 %."""
    sizes = analysis.tables.trials["num_params"]
    return np.array([sizes.min() / 1.2, sizes.max() * 1.2])


def _levels(axes: Axes, points: pd.DataFrame) -> None:
    """Draw the bits of the data and the bits of the names alone, where they are the same for all trials."""
    data, names = np.unique(points["dataset_bits"]), np.unique(points["baseline_bits"])
    if len(data) == 1:
        level(axes, data[0], f"all data: {short(data[0])} bits")
    if len(data) == 1 and len(names) == 1 and 0 < names[0] < 0.999 * data[0]:
        level(axes, names[0], f"names alone: {short(names[0])} bits", line="-.")


def _level_note(points: pd.DataFrame) -> str:
    several = points.groupby("num_profiles")["dataset_bits"].nunique().max() > 1
    return "Where the trials of a panel differ in dataset bits, the smallest value is drawn." if several else ""


def _small_multiples(number: int) -> tuple[CaptionedFigure, list[Axes]]:
    """Return a figure of `number` panels with shared axes, at most three in a row."""
    columns = min(number, 3)
    rows = -(-number // columns)
    figure, grid = panels(
        rows, columns, width=min(PAGE_INCHES, 0.4 + 2.2 * columns), height=1.9 * rows, sharex=True, sharey=True
    )
    all_axes = list(grid.flat)
    for axes in all_axes[number:]:
        axes.remove()
    for index, axes in enumerate(all_axes[:number]):
        axes.set_ylabel("learned bits" if index % columns == 0 else "")
        # The last panel of a column has the labels, also if that column ends a row earlier than others.
        lowest = index + columns >= number
        axes.set_xlabel("parameters" if lowest else "")
        axes.tick_params(labelbottom=lowest)
    return figure, all_axes[:number]


def _finish_small_multiples(grid: list[Axes], analysis: Analysis) -> None:
    for axes in grid:
        axes.set_yscale("log")
        log_ticks(axes.xaxis, analysis.tables.trials["num_params"])
        log_ticks(axes.yaxis)


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
