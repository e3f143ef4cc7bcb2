"""Figures of final learned bits against parameters, dataset size, encoding scheme, parameter norm, and hops."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import grouped
from raycap.analysis.figures.points import (
    describe_reading,
    exclusions,
    final_points,
    points_sentence,
    totals_of,
    with_counts,
)
from raycap.analysis.figures.style import (
    BLUE,
    GREY,
    INK,
    MAX_VECTORS,
    PAGE_INCHES,
    REFERENCE_BITS_PER_PARAM,
    SELECTION_LOOKS,
    Floats,
    LineStyle,
    finish,
    log_ticks,
    panels,
    scatter,
    short,
    styled,
)
from raycap.analysis.laws import Law
from raycap.analysis.readings import Reading
from raycap.analysis.wording import KIND_TEXTS
from raycap.spec import EncodingScheme, Kind

MAX_PANELS = 6


@styled
def capacity(analysis: Analysis) -> Figure:
    """Draw learned bits against parameters: the headline reading with its law, and the other selections fainter.

    This figure is always drawn, also before the first trial has finished.
    """
    scheme, selection = analysis.headline
    figure, ((axes,),) = panels()
    span = _span(analysis)
    hidden = 0
    selections = analysis.sweep.spec.analysis.selections
    for other in sorted(selections, key=lambda other: other is not selection):
        is_headline = other is selection
        points = final_points(analysis, Reading(scheme, other))
        label = f"{other} names" if is_headline else f"{other}"
        without_bits = draw_points(axes, points, SELECTION_LOOKS[other], label=label, faint=not is_headline)
        hidden = without_bits if is_headline else hidden
    draw_law(axes, analysis.law, span, SELECTION_LOOKS[selection].colour)
    axes.plot(span, REFERENCE_BITS_PER_PARAM * span, color=INK, linestyle="--", linewidth=0.8, label="2 bits/param")
    _levels(axes, final_points(analysis))
    axes.set(xlabel="parameters, embeddings included", ylabel="learned bits", xlim=span)
    axes.set_yscale("log")
    log_ticks(axes.xaxis, analysis.tables.trials["num_params"])
    log_ticks(axes.yaxis)
    caption = f"{points_sentence(analysis)}."
    if len(selections) > 1:
        caption += " Faint points: the same losses under the other selections."
    caption = with_counts(analysis, _joined(caption, _law_sentence(analysis.law)))
    return finish(
        figure, f"Capacity, {scheme} encoding", _joined(caption, exclusions(analysis), _hidden_sentence(hidden))
    )


@styled
def capacity_by_profiles(analysis: Analysis) -> Figure | None:
    """Draw learned bits against parameters with one panel per number of people, or return None if it is not varied."""
    points = final_points(analysis)
    numbers = np.unique(points["num_profiles"])
    if len(numbers) < 2:
        return None
    shown = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(MAX_PANELS, len(numbers))).round().astype(int))]
    figure, grid = _small_multiples(len(shown))
    dense = len(points) > MAX_VECTORS
    span, look = _span(analysis), SELECTION_LOOKS[analysis.headline.selection]
    for axes, number in zip(grid, shown, strict=True):
        members = points[points["num_profiles"] == number]
        draw_points(axes, members, look, label=str(analysis.headline), dense=dense)
        draw_law(axes, analysis.law, span, look.colour)
        for bits in np.unique(members["dataset_bits"])[:1]:
            axes.axhline(bits, color=GREY, linestyle=":", label="all data")
        axes.set(title=f"N = {number:,.0f}", xlim=span)
    _finish_small_multiples(grid, analysis)
    dropped = f"{len(shown)} of the {len(numbers)} values of N are shown." if len(shown) < len(numbers) else ""
    caption = f"{points_sentence(analysis)}."
    caption = with_counts(analysis, _joined(caption, _law_sentence(analysis.law, ", the same in all panels")))
    return finish(
        figure,
        "Capacity, by number of people or strings N",
        _joined(caption, dropped, exclusions(analysis), _level_note(points)),
    )


@styled
def capacity_by_scheme(analysis: Analysis) -> Figure | None:
    """Draw learned bits against parameters with one panel per encoding scheme, or return None if only one is declared."""
    schemes: tuple[EncodingScheme, ...] = tuple(analysis.sweep.spec.analysis.schemes)
    if len(schemes) < 2 or not analysis.measured:
        return None
    figure, grid = _small_multiples(len(schemes))
    span = _span(analysis)
    hidden = 0
    for axes, scheme in zip(grid, schemes, strict=True):
        for selection in analysis.sweep.spec.analysis.selections:
            reading, look = Reading(scheme, selection), SELECTION_LOOKS[selection]
            hidden += draw_points(axes, final_points(analysis, reading), look, label=f"{selection} names")
            estimate = analysis.laws[reading].alpha.estimate
            if np.isfinite(estimate):
                axes.plot(span, estimate * span, color=look.colour, linestyle=look.line, linewidth=0.7)
        axes.plot(span, REFERENCE_BITS_PER_PARAM * span, color=INK, linestyle=(0, (1, 1)), label="2 bits/param")
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
def capacity_vs_profiles(analysis: Analysis) -> Figure | None:
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
    for group in grouped(points["num_params"], "params"):
        members = points[group.members]
        means = members.groupby("num_profiles")["learned_bits"].mean()
        axes.plot(means.index, means, color=group.look.colour, linestyle=group.look.line)
        _open_and_filled(axes, members, "num_profiles", "learned_bits", group.look, group.label, dense)
    data = points.groupby("num_profiles")["dataset_bits"].mean()
    axes.plot(data.index, data, color=INK, linestyle=":", linewidth=1.2, label="all data")
    axes.set(xlabel="number of people or strings N", ylabel="learned bits")
    axes.set_yscale("log")
    log_ticks(axes.xaxis, points["num_profiles"])
    log_ticks(axes.yaxis)
    caption = f"{points_sentence(analysis)}; lines: means per size."
    return finish(
        figure, "Capacity against the amount of data", _joined(with_counts(analysis, caption), exclusions(analysis))
    )


@styled
def capacity_vs_norm(analysis: Analysis) -> Figure | None:
    """Draw learned bits against the L2 norm of all parameters, or return None if all norms are equal."""
    points = final_points(analysis)
    norms = analysis.tables.trials.get("parameter_norm", pd.Series(dtype=float))
    points = points.assign(norm=norms.reindex(points["trial"]).to_numpy())
    points = points[(points["learned_bits"] > 0) & (points["norm"] > 0)]
    if points["norm"].nunique() < 2:
        return None
    figure, ((axes,),) = panels()
    for group in grouped(points["num_params"], "params"):
        members = points[group.members]
        _open_and_filled(
            axes, members, "norm", "learned_bits", group.look, group.label, dense=len(points) > MAX_VECTORS
        )
    axes.set(xlabel="L2 norm of all parameters", ylabel="learned bits")
    axes.set_yscale("log")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    caption = f"{points_sentence(analysis)}."
    return finish(
        figure, "Capacity against parameter norm", _joined(with_counts(analysis, caption), exclusions(analysis))
    )


@styled
def hops(analysis: Analysis) -> Figure | None:
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
    for group in grouped(points["num_params"], "params"):
        members = points[group.members]
        dense = len(points) > MAX_VECTORS
        scatter(axes, members["two"], members["one"], group.look, dense=dense, label=group.label, alpha=0.85)
    ends = np.array([min(0.0, points["two"].min()), max(REFERENCE_BITS_PER_PARAM, points["two"].max())])
    axes.plot(ends, REFERENCE_BITS_PER_PARAM - ends, color=INK, linestyle="--", label="sum of 2 bits/param")
    axes.set(
        xlabel=f"bits per parameter, {KIND_TEXTS[Kind.TWO_HOP]}",
        ylabel=f"bits per parameter,\n{KIND_TEXTS[Kind.ONE_HOP]}",
    )
    caption = f"{points_sentence(analysis)}. The bits of each "
    caption += "kind of question are computed separately; both include the names."
    return finish(figure, "One-hop and two-hop capacity", with_counts(analysis, caption))


def draw_points(
    axes: Axes, points: pd.DataFrame, look: LineStyle, *, label: str, faint: bool = False, dense: bool = False
) -> int:
    """Draw trials, with open markers if they are not in the law; return how many are not drawn for want of learned bits.

    Trials with learned bits <= 0 cannot be drawn on a logarithmic axis.
    """
    known = points[points["learned_bits"] > 0]
    options: dict[str, Any] = {"alpha": 0.4, "s": 9} if faint else {"s": 16, "zorder": 4}
    _open_and_filled(
        axes, known, "num_params", "learned_bits", look, label, len(points) > MAX_VECTORS or dense, **options
    )
    return len(points) - len(known)


def _open_and_filled(
    axes: Axes, points: pd.DataFrame, x: str, y: str, look: LineStyle, label: str, dense: bool, **options: Any
) -> None:
    """Draw trials of the law with filled and all others with open markers, under one label in the legend."""
    in_law = (points["excluded"] == "").to_numpy(dtype=bool)
    for filled, chosen in ((True, points[in_law]), (False, points[~in_law])):
        labelled = options | ({"label": label} if filled or not in_law.any() else {})
        scatter(axes, chosen[x], chosen[y], look, dense=dense, filled=filled, **labelled)


def draw_law(axes: Axes, law: Law, span: Floats, colour: str = BLUE) -> None:
    """Draw learned bits = alpha P with its 95 % band; omit the band without an interval, and the line without a fit."""
    estimate, low, high = law.alpha
    if not np.isfinite(estimate):
        return
    label = f"law: {estimate:.2f} bits/param"
    if np.isfinite(low):
        label += f" [{low:.2f}, {high:.2f}]"
        axes.fill_between(span, low * span, high * span, color=colour, alpha=0.18, linewidth=0)
    axes.plot(span, estimate * span, color=colour, linewidth=1.2, label=label)


def _law_sentence(law: Law, remark: str = "") -> str:
    """Return the caption's sentence on the line and the band of the law; "" if there is no law."""
    if not np.isfinite(law.alpha.estimate):
        return ""
    return f"Line: fitted law α P{remark}{'; band: its 95 % interval' if np.isfinite(law.alpha.low) else ''}."


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
        axes.axhline(data[0], color=GREY, linestyle=":", label=f"all data: {short(data[0])} bits")
    if len(data) == 1 and len(names) == 1 and 0 < names[0] < 0.999 * data[0]:
        axes.axhline(names[0], color=GREY, linestyle="-.", label=f"names alone: {short(names[0])} bits")


def _level_note(points: pd.DataFrame) -> str:
    several = points.groupby("num_profiles")["dataset_bits"].nunique().max() > 1
    return "Where the trials of a panel differ in dataset bits, the smallest value is drawn." if several else ""


def _small_multiples(number: int) -> tuple[Figure, list[Axes]]:
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
