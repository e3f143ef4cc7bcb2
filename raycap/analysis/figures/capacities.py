"""Learned bits at the end of training against parameters, people, norms, and hops."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import grouped
from raycap.analysis.figures.points import about, exclusions, final_points, totals_of
from raycap.analysis.figures.style import (
    BLUE,
    GREY,
    INK,
    KIND_TEXTS,
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
from raycap.spec import EncodingScheme, Kind

MAX_PANELS = 6


@styled
def capacity(analysis: Analysis) -> Figure:
    """Learned bits against parameters: how many bits a parameter holds. The headline reading with its law, other
    selections fainter. Drawn always.
    """
    scheme, selection = analysis.headline
    figure, ((axes,),) = panels()
    span = _span(analysis)
    hidden = 0
    for other in sorted(analysis.sweep.spec.analysis.selections, key=lambda other: other is not selection):
        first = other is selection
        points = final_points(analysis, Reading(scheme, other))
        label = f"{other} names" if first else f"{other}"
        unseen = draw_points(axes, points, SELECTION_LOOKS[other], label=label, faint=not first)
        hidden = unseen if first else hidden
    draw_law(axes, analysis.law, span, SELECTION_LOOKS[selection].colour)
    axes.plot(span, REFERENCE_BITS_PER_PARAM * span, color=INK, linestyle="--", linewidth=0.8, label="2 bits/param")
    _levels(axes, final_points(analysis))
    axes.set(xlabel="parameters, embeddings included", ylabel="learned bits", xlim=span)
    axes.set_yscale("log")
    log_ticks(axes.xaxis, analysis.tables.trials["num_params"])
    log_ticks(axes.yaxis)
    caption = f"A point a trial; line: the law{_band(analysis.law)}."
    unseen_text = f"Not on the axes: {hidden} with no bits learned." if hidden else ""
    return finish(
        figure, f"Capacity, {scheme} encoding", _joined(about(analysis, caption), exclusions(analysis), unseen_text)
    )


@styled
def capacity_by_profiles(analysis: Analysis) -> Figure | None:
    """Learned bits against parameters, a panel per number of people: where data run out. None if it is not varied."""
    points = final_points(analysis)
    numbers = np.unique(points["num_profiles"])
    if len(numbers) < 2:
        return None
    shown = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(MAX_PANELS, len(numbers))).round().astype(int))]
    figure, grid = _small_multiples(len(shown))
    dense = len(points) > MAX_VECTORS
    span, look = _span(analysis), SELECTION_LOOKS[analysis.headline.selection]
    for axes, number in zip(grid, shown, strict=True):
        of_number = points[points["num_profiles"] == number]
        draw_points(axes, of_number, look, label=str(analysis.headline), dense=dense)
        draw_law(axes, analysis.law, span, look.colour)
        for bits in np.unique(of_number["dataset_bits"])[:1]:
            axes.axhline(bits, color=GREY, linestyle=":", label="all data")
        axes.set(title=f"N = {number:,.0f}", xlim=span)
    _finish_small_multiples(grid, analysis)
    dropped = f"{len(shown)} of {len(numbers)} values of N." if len(shown) < len(numbers) else ""
    caption = about(analysis, f"A point a trial; the law is the same in all panels{_band(analysis.law)}.")
    return finish(
        figure,
        "Capacity, by number of people or strings N",
        _joined(caption, dropped, exclusions(analysis), _level_note(points)),
    )


@styled
def capacity_by_scheme(analysis: Analysis) -> Figure | None:
    """Learned bits against parameters, a panel per encoding scheme: under which they are in proportion. None for one."""
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
    caption = about(analysis, "A point a trial; lines: the law of each reading.")
    unseen = f"Not on the axes: {hidden} with no bits learned." if hidden else ""
    return finish(figure, "Capacity, by encoding scheme", _joined(caption, exclusions(analysis), unseen))


@styled
def capacity_vs_profiles(analysis: Analysis) -> Figure | None:
    """Learned bits against the number of people, a line per size, with all the data's: models follow the data until they
    are full. None if it is not varied.
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
    caption = about(analysis, f"A point a trial, lines through means; {analysis.headline}.")
    return finish(figure, "Capacity against the amount of data", _joined(caption, exclusions(analysis)))


@styled
def capacity_vs_norm(analysis: Analysis) -> Figure | None:
    """Learned bits against the norm of all parameters: whether what is known shows in it. None if norms are all alike."""
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
    axes.set(xlabel="norm of all parameters (root of summed squares)", ylabel="learned bits")
    axes.set_yscale("log")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    caption = about(analysis, f"A point a trial, at the end of training; {analysis.headline}.")
    return finish(figure, "Capacity against parameter norm", _joined(caption, exclusions(analysis)))


@styled
def hops(analysis: Analysis) -> Figure | None:
    """One-hop against two-hop bits per parameter: whether the two share 2 bits. None unless both were evaluated."""
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
    axes.plot(ends, REFERENCE_BITS_PER_PARAM - ends, color=INK, linestyle="--", label="together 2 bits/param")
    axes.set(
        xlabel=f"bits per parameter, {KIND_TEXTS[Kind.TWO_HOP]}",
        ylabel=f"bits per parameter,\n{KIND_TEXTS[Kind.ONE_HOP]}",
    )
    caption = f"A point a trial; each kind of question read by itself, names included; {analysis.headline}."
    return finish(figure, "One hop and two hops", about(analysis, caption))


def draw_points(
    axes: Axes, points: pd.DataFrame, look: LineStyle, *, label: str, faint: bool = False, dense: bool = False
) -> int:
    """Trials, those in no law open; how many cannot be drawn because they learned no bits."""
    known = points[points["learned_bits"] > 0]
    options: dict[str, Any] = {"alpha": 0.4, "s": 9} if faint else {"s": 16, "zorder": 4}
    _open_and_filled(
        axes, known, "num_params", "learned_bits", look, label, len(points) > MAX_VECTORS or dense, **options
    )
    return len(points) - len(known)


def _open_and_filled(
    axes: Axes, points: pd.DataFrame, x: str, y: str, look: LineStyle, label: str, dense: bool, **options: Any
) -> None:
    """Filled where a law has them, open otherwise; one label for both."""
    enters = (points["excluded"] == "").to_numpy(dtype=bool)
    for filled, chosen in ((True, points[enters]), (False, points[~enters])):
        own = options | ({"label": label} if filled or not enters.any() else {})
        scatter(axes, chosen[x], chosen[y], look, dense=dense, filled=filled, **own)


def draw_law(axes: Axes, law: Law, span: Floats, colour: str = BLUE) -> None:
    """learned bits = alpha P with its 95 % band, as far as there are numbers."""
    estimate, low, high = law.alpha
    if not np.isfinite(estimate):
        return
    label = f"law: {estimate:.2f} bits/param"
    if np.isfinite(low):
        label += f" [{low:.2f}, {high:.2f}]"
        axes.fill_between(span, low * span, high * span, color=colour, alpha=0.18, linewidth=0)
    axes.plot(span, estimate * span, color=colour, linewidth=1.2, label=label)


def _band(law: Law) -> str:
    return "; band: its 95 % interval" if np.isfinite(law.alpha.low) else ""


def _span(analysis: Analysis) -> Floats:
    """A little beyond all sizes that are planned."""
    sizes = analysis.tables.trials["num_params"]
    return np.array([sizes.min() / 1.2, sizes.max() * 1.2])


def _levels(axes: Axes, points: pd.DataFrame) -> None:
    """What there is to learn, and what knowing the names alone is worth, where it is the same for all trials."""
    data, names = np.unique(points["dataset_bits"]), np.unique(points["baseline_bits"])
    if len(data) == 1:
        axes.axhline(data[0], color=GREY, linestyle=":", label=f"all data: {short(data[0])} bits")
    if len(data) == 1 and len(names) == 1 and 0 < names[0] < 0.999 * data[0]:
        axes.axhline(names[0], color=GREY, linestyle="-.", label=f"names alone: {short(names[0])} bits")


def _level_note(points: pd.DataFrame) -> str:
    several = points.groupby("num_profiles")["dataset_bits"].nunique().max() > 1
    return "Of several amounts of data in a panel the smallest is drawn." if several else ""


def _small_multiples(number: int) -> tuple[Figure, list[Axes]]:
    """At most three panels in a row, on the same axes."""
    columns = min(number, 3)
    rows = -(-number // columns)
    figure, grid = panels(
        rows, columns, width=min(PAGE_INCHES, 0.4 + 2.2 * columns), height=1.9 * rows, sharex=True, sharey=True
    )
    every = list(grid.flat)
    for axes in every[number:]:
        axes.remove()
    for place, axes in enumerate(every[:number]):
        axes.set_ylabel("learned bits" if place % columns == 0 else "")
        lowest = place + columns >= number
        axes.set_xlabel("parameters" if lowest else "")
        axes.tick_params(labelbottom=lowest)  # also where the row below ends earlier
    return figure, every[:number]


def _finish_small_multiples(grid: list[Axes], analysis: Analysis) -> None:
    for axes in grid:
        axes.set_yscale("log")
        log_ticks(axes.xaxis, analysis.tables.trials["num_params"])
        log_ticks(axes.yaxis)


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
