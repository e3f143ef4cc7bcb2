"""Records -> Figure. Nothing is saved here, and no global style is touched."""

import io
import math
from collections.abc import Callable
from functools import wraps
from textwrap import fill
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from raycap.analysis.laws import FitStatus
from raycap.analysis.summary import Analysis
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import answer_bits, name_set_bits
from raycap.spec import Kind, SelectionScheme

STYLE: Any = {
    "figure.figsize": (6.4, 4.6),
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "raycap",
}
INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#0072b2", "#d55e00", "#009e73", "#8a8a8a"  # Okabe-Ito: colour-blind safe
SELECTION_LOOKS = {
    SelectionScheme.SET: (GREEN, "s"),
    SelectionScheme.ENUMERATE: (BLUE, "o"),
    SelectionScheme.INDEPENDENT: (ORANGE, "^"),
}
REFERENCE_BITS_PER_PARAM = 2.0
KIND_TEXTS = {
    Kind.NAME: "names",
    Kind.BIOGRAPHY: "biographies",
    Kind.ONE_HOP: "one-hop questions",
    Kind.TWO_HOP: "two-hop questions",
    Kind.THREE_HOP: "three-hop questions",
}
LOWEST_SHOWN = -0.5
"""Bits per parameter at which learning curves are cut off below."""


DrawnFigure = TypeVar("DrawnFigure", Figure, Figure | None)


def styled(draw: Callable[[Analysis], DrawnFigure]) -> Callable[[Analysis], DrawnFigure]:
    """A drawing in the house style."""

    @wraps(draw)
    def in_style(analysis: Analysis) -> DrawnFigure:
        with matplotlib.rc_context(STYLE):
            return draw(analysis)

    return in_style


@styled
def capacity_vs_params(analysis: Analysis) -> Figure:
    """Learned bits against parameters under every selection, with the law, the 2 bits/param line and the baseline."""
    scheme, headline = analysis.headline
    figure = Figure()
    axes = figure.subplots()
    excluded_count = 0
    sizes = [result.parameters.total for result in analysis.results.values()]
    span = np.array([min(sizes, default=1) / 1.25, max(sizes, default=10) * 1.25])
    for selection in analysis.sweep.spec.analysis.selections:
        colour, marker = SELECTION_LOOKS[selection]
        totals = analysis.totals(scheme, selection)
        finals = totals[totals["final"]] if len(totals) else totals
        law = analysis.laws[scheme, selection]
        kept = finals[~finals["trial_id"].isin(law.excluded)] if len(finals) else finals
        left_out = finals[finals["trial_id"].isin(law.excluded)] if len(finals) else finals
        excluded_count = max(excluded_count, len(left_out))
        first = selection is headline
        if len(kept):
            axes.scatter(
                kept["num_params"],
                kept["learned_bits"],
                color=colour,
                marker=marker,
                s=34 if first else 20,
                zorder=3,
                label=f"{selection}",
            )
        if len(left_out):
            axes.scatter(
                left_out["num_params"],
                left_out["learned_bits"],
                facecolors="none",
                edgecolors=colour,
                marker=marker,
                zorder=3,
            )
        if first and law.num_trials:
            label = f"law: {law.alpha:.2f} bits/param"
            if law.status is FitStatus.OK:
                label += f" [{law.low:.2f}, {law.high:.2f}]"
                axes.fill_between(span, law.low * span, law.high * span, color=colour, alpha=0.18, linewidth=0)
            axes.plot(span, law.learned_bits(span), color=colour, linewidth=1.6, label=label)
    axes.plot(span, REFERENCE_BITS_PER_PARAM * span, color=INK, linestyle="--", linewidth=1, label="2 bits/param")
    _draw_levels(axes, analysis)
    axes.set(xscale="log", yscale="log", xlabel="parameters (embeddings included)", ylabel="learned bits")
    _plain_ticks(axes, sizes)
    axes.set_title(f"Capacity of {len(analysis.results)} trials, {scheme} encoding")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    if excluded_count:
        _caption(figure, "Open markers are left out of the law: " + _reasons(analysis))
    return figure


def _draw_levels(axes: Axes, analysis: Analysis) -> None:
    """What there is to learn, and what knowing the names alone is worth, where all trials share one population."""
    everything = {planned.spec.model_dump_json(include={"profiles", "questions"}) for planned in analysis.sweep.trials}
    if len(everything) != 1:
        return
    planned = analysis.sweep.trials[0]
    _, selection = analysis.headline
    bits = planned.dataset_bits[str(selection)]
    baseline = sum(name_set_bits(population, selection) for population in planned.populations)
    axes.axhline(bits, color=GREY, linestyle=":", linewidth=1, label=f"all of the data ({selection}): {bits:,.0f} bits")
    if analysis.kind is Kind.ONE_HOP and baseline > 0:
        axes.axhline(baseline, color=GREY, linestyle="-.", linewidth=1, label=f"names alone: {baseline:,.0f} bits")


@styled
def bits_vs_exposures(analysis: Analysis) -> Figure:
    """Learned bits per parameter over training, one line per trial, coloured by size."""
    scheme, selection = analysis.headline
    totals = analysis.totals(scheme, selection)
    figure = Figure()
    axes = figure.subplots()
    sizes = sorted({result.parameters.total for result in analysis.results.values()})
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, max(len(sizes), 1)))
    labelled = set()
    for trial_id, result in analysis.results.items():
        curve = totals[totals["trial_id"] == trial_id]
        size = result.parameters.total
        label = f"{size:,} parameters" if size not in labelled else None
        labelled.add(size)
        axes.plot(curve["exposures"], curve["bits_per_param"], marker=".", color=shades[sizes.index(size)], label=label)
    axes.axhline(REFERENCE_BITS_PER_PARAM, color=INK, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="exposures per fact", ylabel=f"learned bits per parameter ({selection})")
    if len(totals):
        shown = totals["bits_per_param"]
        floor = max(shown.min(), min(LOWEST_SHOWN, shown.max()))
        axes.set_ylim(floor - 0.1, max(shown.max(), REFERENCE_BITS_PER_PARAM) + 0.15)
        axes.set_xlim(left=totals["exposures"][shown >= floor].min() / 1.5)
        if shown.min() < floor:
            _caption(
                figure, "Earlier evaluations are not shown: models then lost more than one that knows just the names."
            )
    axes.set_title(f"What {len(analysis.results)} trials had learned when, {scheme} encoding")
    if labelled:
        axes.legend(loc="lower right", reverse=True)
    return figure


@styled
def loss_per_subject(analysis: Analysis) -> Figure:
    """Final loss per question of each subject, against what a model loses that knows only the possible answers."""
    kind = analysis.kind
    figure = Figure()
    axes = figure.subplots()
    results = [result for result in analysis.results.values() if kind in result.final.losses.kinds]
    if results:
        uniform: dict[str, float] = {}  # where trials differ in it, the largest
        for result in results:
            told = result.final.losses.select(kind).by_subject()
            entropies = answer_bits(result.populations[0], SelectionScheme.SET)
            entropies[NAME_SUBJECT] = math.log2(result.populations[0].num_names)
            for subject in told:
                uniform[subject] = max(entropies[subject], uniform.get(subject, 0.0))
        subjects = list(uniform)
        places = np.arange(len(subjects))
        axes.barh(places, [uniform[s] for s in subjects], color="#e6e6e6", label="knowing the possible answers only")
        sizes = [result.parameters.total for result in results]
        shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(set(sizes))))
        for size, shade in zip(sorted(set(sizes)), shades, strict=True):
            for number, result in enumerate(r for r in results if r.parameters.total == size):
                losses = {s: rows.mean_bits for s, rows in result.final.losses.select(kind).by_subject().items()}
                axes.scatter(
                    [losses.get(s, np.nan) for s in subjects],
                    places,
                    color=shade,
                    s=22,
                    zorder=3,
                    label=f"{size:,} parameters" if number == 0 else None,
                )
        axes.set_yticks(places, [s.replace("_", " ") for s in subjects])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes.set(xlabel="loss per question (bits)")
    axes.set_title(f"What is left to learn, {KIND_TEXTS[kind]}")
    return figure


def image(figure: Figure, kind: str) -> bytes:
    """A figure as "png" or "svg"; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()


def _reasons(analysis: Analysis) -> str:
    reasons = sorted(set(analysis.laws[analysis.headline].excluded.values()))
    counts = {reason: list(analysis.laws[analysis.headline].excluded.values()).count(reason) for reason in reasons}
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items())


def _caption(figure: Figure, text: str) -> None:
    if text:
        figure.supxlabel(fill(text, 95), fontsize=8, color=GREY)


def _plain_ticks(axes: Axes, sizes: list[int]) -> None:
    """Numbers as people write them: each parameter count where they are few, and bits in thousands."""
    ticks = sorted(set(sizes))
    if 0 < len(ticks) <= 6:
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
