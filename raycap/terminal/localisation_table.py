"""Table of the learned bits that stored models lose with each of their parts."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from raycap.analysis.localisation import part_sums


def localisation_table(labels: Sequence[str], rows: pd.DataFrame) -> Table:
    """Return a row per model, ablation and part.

    Args:
        labels: Labels of the trials.
        rows: Rows of `localisation_rows` for these trials.
    """
    table = Table(box=SIMPLE)
    for header in ("trial", "ablation", "part"):
        table.add_column(header)
    for header in ("exposures", "learned bits lost", "share", "sum over layers", "most in layer"):
        table.add_column(header, justify="right")
    for row in part_sums(rows).to_dict("records"):
        table.add_row(
            labels[row["trial"]],
            row["ablation"],
            row["part"],
            f"{row['exposures']:,.1f}",
            f"{row['lost_bits']:,.0f}",
            f"{100 * row['lost_share']:.0f} %",
            f"{row['sum_bits']:,.0f}",
            "" if pd.isna(row["most_layer"]) else f"{row['most_layer']:g}",
        )
    return table
