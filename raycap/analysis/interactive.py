"""The interactive page of a sweep: one HTML file with the results, the plotting library and the script that draws them."""

import json
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from raycap.analysis.analyse import Analysis
from raycap.analysis.axes import axes_of
from raycap.analysis.contrasts import compared_axes
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.figures.style import LOOKS
from raycap.analysis.html import page
from raycap.analysis.readings import Reading
from raycap.analysis.tables import grid_columns
from raycap.analysis.tidy import BITS, evaluation_frame, trial_frame

MAX_EVALUATIONS = 20_000
"""The page has all evaluations of sweeps with at most this many of them; otherwise, the last one of each trial."""
MAX_SHADES = 12
"""Number of different values up to which each value gets a colour and a legend entry; more are drawn with a colour scale."""
AT_END = ["num_params", "num_non_embedding_params", "num_profiles", "num_relations", "exposures", "tokens"]
AT_END += ["train_seconds", "parameter_norm", "convergence", "stop_reason"]
DURING = [
    "num_params",
    "exposures",
    "step",
    "tokens",
    "learning_rate",
    "train_loss_bits",
    "lost_share",
    "parameter_norm",
]
BITS_COLUMNS = [name for name in BITS if name != "standard_error_bits"]

CONTROLS = """
<p>Each point is one trial. Hover over a point for its id, settings and losses; drag to zoom in and double-click to zoom out;
click an entry of the legend to hide it.</p>
<form id="controls"></form>
<div id="plot" style="height: 36rem"></div>
<p class="note" id="missing"></p>
"""


def interactive_page(analysis: Analysis) -> str:
    """Return a page on which readers choose the points, the reading, both axes, the colour and the marker.

    The page needs no network: the library plotly.js and the results are inlined.
    """
    from plotly.offline import get_plotlyjs  # 0.1 s, and only this function needs it

    readings = list(analysis.laws)
    spec = analysis.sweep.spec
    data = {
        "readings": [describe_reading(reading) for reading in readings],
        "reading": describe_reading(analysis.headline),
        "points": _point_sets(analysis, readings),
        "settings": list(grid_columns(analysis.sweep.trials)),
        "varied": _varied(analysis),
        "shades": [to_hex(shade) for shade in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, MAX_SHADES))],
        "colours": [look.colour for look in LOOKS],
    }
    # In a script element "</" could end the element.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    script = files("raycap.analysis").joinpath("interactive.js").read_text(encoding="utf-8")
    body = f"{CONTROLS}<script>{get_plotlyjs()}</script><script>const DATA = {embedded};\n{script}</script>"
    return page(f"{spec.name}, interactive", analysis.sweep.question, body)


def _varied(analysis: Analysis) -> list[str]:
    """Return the paths of the axes of the grid that are no seeds, those that are compared first."""
    return [axis.path for axis in compared_axes(axes_of(analysis.sweep))]


def _point_sets(analysis: Analysis, readings: list[Reading]) -> dict[str, Any]:
    """Return the points by name of their set: the trials at the end of training and, unless too many, all evaluations."""
    grid = list(grid_columns(analysis.sweep.trials))
    trials = trial_frame(analysis)
    trials = trials[trials["state"] == "finished"]
    losses = _final_losses(analysis)
    sets = {"end of training": _points(trials, readings, [*grid, *AT_END], losses)}
    if len(analysis.tables.evaluations) <= MAX_EVALUATIONS:
        wide = evaluation_frame(analysis).merge(trials[["trial_id", "num_params"]].drop_duplicates(), on="trial_id")
        sets["all evaluations"] = _points(wide, readings, [*grid, *DURING], _curves(analysis))
    return sets


def _points(frame: pd.DataFrame, readings: list[Reading], columns: list[str], losses: pd.DataFrame) -> dict[str, Any]:
    """Return the points of a tidy frame as columns of values, with those of bits by reading."""
    by_reading = {
        describe_reading(reading): frame[
            (frame["scheme"] == str(reading.scheme)) & (frame["selection"] == str(reading.selection))
        ]
        for reading in readings
    }
    first = next(iter(by_reading.values()))
    return {
        "trial_id": first["trial_id"].tolist(),
        "label": first["label"].tolist(),
        "columns": {name: _values(first[name]) for name in columns if name in first}
        | {name: _values(losses[name]) for name in losses},
        "losses": list(losses),
        "bits": {
            name: {reading: _values(rows[name]) for reading, rows in by_reading.items()}
            for name in [*BITS_COLUMNS, *(["excluded"] if "excluded" in first else [])]
        },
    }


def _final_losses(analysis: Analysis) -> pd.DataFrame:
    """Return the mean final loss of each kind, part and split of the first population: one row per finished trial."""
    table = analysis.tables.splits
    if table.empty:
        return pd.DataFrame()
    table = table[table["population"] == 0]
    names = "loss of " + table["kind"] + np.where(table["part"] == "chain", ", chain", "") + ", " + table["split"]
    return table.assign(name=names).pivot(index="trial", columns="name", values="loss_bits").sort_index()


def _curves(analysis: Analysis) -> pd.DataFrame:
    """Return the mean losses of trained and held-out texts of each kind of the first population: one row per evaluation."""
    table = analysis.tables.losses
    if table.empty:
        return pd.DataFrame()
    table = table[table["population"] == 0]
    names = "loss of " + table["kind"] + np.where(table["part"] == "chain", ", chain", "")
    wide = table.assign(name=names).pivot(
        index=["trial", "step"], columns="name", values=["loss_bits", "held_out_bits"]
    )
    wide.columns = [name + (", held out" if value == "held_out_bits" else "") for value, name in wide.columns]
    return wide.sort_index().dropna(axis="columns", how="all")


def _values(column: "pd.Series[Any]") -> list[Any]:
    """Return a column as JSON values, numbers with six digits, and None for missing ones."""
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return [None if pd.isna(value) else str(value) for value in column]
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in column.astype(float)]
