"""Figure of the learned bits that models lose with each part, by layer and part."""

import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.grids import draw_grid, last_models
from raycap.analysis.figures.style import PAGE_INCHES, CaptionedFigure, finish, panels, styled
from raycap.analysis.localisation import localisation_rows
from raycap.results.localisation import ModelPart

MAX_CELLS = 3
"""Most cells of the grid that are drawn; those with most parameters come first."""
ROW_INCHES, FRAME_INCHES = 0.22, 0.8
"""Height of a layer, and of the title and the labels of a panel."""
TOGETHER = "together"
"""Tick of the row of all layers together."""


@styled
def localisation(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the share of the learned bits that is lost with each part, by layer, as means over seeds.

    Returns None if no model has been ablated.
    """
    sweep = analysis.sweep
    rows = last_models(localisation_rows(sweep.trials, analysis.inspected.localisations, sweep.spec.analysis))
    if rows.empty:
        return None
    trials = analysis.tables.trials.loc[sorted({*rows["trial"]})]
    cells = trials.sort_values("num_params", ascending=False).drop_duplicates("cell").head(MAX_CELLS)
    ablations = list(dict.fromkeys(rows["ablation"]))
    height = ROW_INCHES * (2 + int(rows["layer"].max())) + FRAME_INCHES
    figure, axes = panels(len(cells), len(ablations), width=PAGE_INCHES, height=height * len(cells))
    for panels_of_cell, (_, cell) in zip(axes, cells.iterrows(), strict=True):
        of_cell = rows[rows["trial"].isin(trials.index[trials["cell"] == cell["cell"]])]
        for panel, ablation in zip(panels_of_cell, ablations, strict=True):
            draw_grid(panel, _table(of_cell[of_cell["ablation"] == ablation]), 1.0, ablation)
        panels_of_cell[0].set_ylabel(f"{cell['label']}\nlayer" if len(cells) > 1 else "layer")
    caption = (
        "Share of the learned bits that a model loses when what one part adds to the residual stream is replaced by its "
        "mean over texts (mean) or by that of another text (resample), or when its weights alone are rounded (int4 and "
        "others). Layer 0 is the embeddings; the row 'together' has this part of all layers, and the whole model. A share "
        "above 1 means that the model then predicts wrong answers. Shares do not add up. Numbers are means over seeds, at "
        "the end of training."
    )
    return finish(figure, "Learned bits lost with each part", caption)


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean lost share by layer, from below, and part."""
    named = rows.assign(layer=rows["layer"].astype("Float64").fillna(float("inf")).astype(float))
    table = named.pivot_table(index="layer", columns="part", values="lost_share")
    table.index = pd.Index([TOGETHER if layer == float("inf") else f"{layer:g}" for layer in table.index])
    return table[[str(part) for part in ModelPart if str(part) in table]]
