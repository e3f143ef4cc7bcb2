"""Panels of numbers by layer and place in a model, which the figures of stored models share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

DARK = 0.55
"""Share of the maximum above which a panel has white numbers."""


def last_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last model of each trial."""
    return rows[rows["step"] == rows.groupby("trial")["step"].transform("max")]


def draw_grid(axes: Axes, table: pd.DataFrame, top: float, title: str) -> None:
    """Draw a table as a grid of coloured numbers, whose first row is at the bottom. An empty table gives empty axes.

    Args:
        axes: Axes of the panel.
        table: Numbers, with the texts of the ticks as index and columns.
        top: Number that has the darkest colour.
        title: Title of the panel.
    """
    axes.grid(False)
    if table.empty:
        axes.set_axis_off()
        return
    values = table.to_numpy(dtype=float)
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=max(top, 1e-9), aspect="auto", origin="lower")
    for (row, place), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > DARK * top else "black"
            axes.text(place, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(table.columns)), list(table.columns), rotation=30)
    axes.set_yticks(range(len(table.index)), list(table.index))
    axes.set_title(title)
