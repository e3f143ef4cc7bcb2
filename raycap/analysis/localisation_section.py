"""The section of report.html on the learned bits that models lose with each of their parts."""

from html import escape

import pandas as pd

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.grids import last_models
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.html import note, table
from raycap.analysis.localisation import localisation_rows, part_sums

ROWS_SHOWN = 300
"""The most rows of the table; the data frame `localisation` has all layers of all models."""


def localisation_section(analysis: Analysis) -> str:
    """Return the bits that the last model of each trial loses with each part as HTML, or "" if none has been ablated."""
    sweep = analysis.sweep
    rows = last_models(localisation_rows(sweep.trials, analysis.inspected.localisations, sweep.spec.analysis))
    if rows.empty:
        return ""
    cells = [
        [
            escape(sweep.trials[row["trial"]].label),
            escape(row["ablation"]),
            escape(row["part"]),
            f"{row['lost_bits']:,.0f}",
            f"{100 * row['lost_share']:.0f} %",
            f"{row['sum_bits']:,.0f}",
            "–" if pd.isna(row["most_layer"]) else f"{row['most_layer']:g}",
        ]
        for row in part_sums(rows).head(ROWS_SHOWN).to_dict("records")
    ]
    header = ["trial", "ablation", "part", "learned bits lost", "share", "sum over single layers", "most in layer"]
    return (
        "<h2>Bits by part</h2>"
        + table(header, cells)
        + note(
            f"Learned bits under {describe_reading(analysis.headline)} that a model loses when this part of all layers is "
            "replaced or rounded together, and the sum of what it loses with each layer alone. The two differ where layers "
            "do the same, or need each other. The share is that of the bits whose loss is measured. An ablation shows what "
            "the model needs, not where a fact is stored: the answer is also lost with a part that only passes the question "
            "on (docs/probes.md#localise)."
        )
    )
