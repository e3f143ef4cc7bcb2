"""Records -> Figure, for sweeps that hold something out or vary the learning rate; None for others."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from raycap.analysis.figures import BLUE, GREEN, GREY, KIND_TEXTS, ORANGE, styled
from raycap.analysis.summary import Analysis
from raycap.facts.entropy import answer_bits
from raycap.spec import Kind, ModelByWidth, SelectionScheme, Split

COMPARABLE_AXES = {
    "training.optimizer.lr",
    "model.hidden_size",
    "model.num_params",
    "model.parametrization",
    "training.seed",
    "training.order_seed",
}
"""Losses are drawn against the learning rate where trials differ in nothing else."""
SPLIT_TEXTS = {
    Split.TRAIN: "nothing (trained)",
    Split.FIRST_PEOPLE: "first person",
    Split.RELATIONS: "relation",
    Split.FIRST_PAIRS: "(first person, relation)",
    Split.SECOND_PEOPLE: "second person",
    Split.SECOND_SUBJECTS: "second subject",
    Split.SECOND_PAIRS: "(second person, subject)",
    Split.TUPLES: "only the combination",
    Split.SEVERAL: "several of these",
}


@styled
def generalisation(analysis: Analysis) -> Figure | None:
    """Mean final loss by the component that is new; None where nothing is held out."""
    matrices = [result.final.losses.generalisation() for result in analysis.results.values()]
    splits = [split for split in Split if any(str(split) in matrix for matrix in matrices)]
    if len(splits) < 2:
        return None
    figure = Figure()
    axes = figure.subplots()
    kinds = [kind for kind in Kind if any(str(kind) in row for matrix in matrices for row in matrix.values())]
    for place, kind in enumerate(kinds):
        colour, marker = ((GREEN, "s"), (BLUE, "o"), (ORANGE, "^"))[place % 3]
        for row, split in enumerate(splits):
            bits = [m[str(split)][str(kind)] for m in matrices if str(kind) in m.get(str(split), {})]
            height = np.full(len(bits), row + 0.18 * (place - (len(kinds) - 1) / 2))
            axes.scatter(bits, height, color=colour, marker=marker, s=14, alpha=0.35, linewidth=0)
            if bits:
                label = KIND_TEXTS[kind] if row == 0 else None
                axes.scatter(np.mean(bits), height[0], color=colour, marker=marker, s=44, zorder=3, label=label)
    entropies = [answer_bits(result.populations[0], SelectionScheme.SET) for result in analysis.results.values()]
    uniform = np.mean([np.mean(list(bits.values())) for bits in entropies])
    axes.axvline(uniform, color=GREY, linestyle=":", linewidth=1, label="knowing the possible answers only")
    axes.set_yticks(range(len(splits)), [SPLIT_TEXTS[split] for split in splits])
    axes.invert_yaxis()
    axes.set(xlabel="loss per question (bits)")
    axes.set_title("What is new in a question, and what is lost on it")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def loss_vs_learning_rate(analysis: Analysis) -> Figure | None:
    """Final loss against learning rate, a line per size, a panel per parametrisation; None where more or less is varied."""
    rows = pd.DataFrame(
        [
            {
                "panel": result.spec.model.parametrization.kind,
                "size": result.spec.model.hidden_size,
                "lr": result.spec.training.optimizer.lr,
                "loss": result.final.losses.select(result.final.losses.kinds[-1]).mean_bits,
            }
            for result in analysis.results.values()
            if isinstance(result.spec.model, ModelByWidth)
        ]
    )
    axes_varied = set(analysis.sweep.spec.grid)
    if rows.empty or rows["lr"].nunique() < 2 or not axes_varied <= COMPARABLE_AXES:
        return None
    panels = sorted(rows["panel"].unique(), reverse=True)
    figure = Figure(figsize=(4.2 * len(panels) + 1, 4.6))
    sizes = sorted(rows["size"].unique())
    shades = dict(zip(sizes, matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(sizes))), strict=True))
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for size, of_size in rows[rows["panel"] == panel].groupby("size"):
            curve = of_size.groupby("lr")["loss"].mean()
            axes.plot(curve.index, curve, marker=".", color=shades[size], label=f"width {size}")
            axes.scatter(curve.idxmin(), curve.min(), s=90, facecolors="none", edgecolors=[shades[size]], zorder=3)
        axes.set(xscale="log", xlabel="learning rate", title=panel)
        rates = sorted(rows["lr"].unique())
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend()
    figure.supylabel(f"final loss, {KIND_TEXTS[analysis.kind]} (bits)", fontsize=10)
    return figure
