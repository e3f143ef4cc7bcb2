"""Figure of what probes read, and of what interchanged residuals change, by layer and token."""

import pandas as pd
from matplotlib.axes import Axes

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.grids import draw_grid, last_models
from raycap.analysis.figures.style import PAGE_INCHES, CaptionedFigure, finish, panels, styled
from raycap.analysis.probes import interchange_rows, probe_rows
from raycap.analysis.wording import KIND_TEXTS
from raycap.results.probes import Space
from raycap.spec import Kind, Split
from raycap.spec.probes import ProbeSite, ProbeTarget

MAX_CELLS = 3
"""Most cells of the grid that are drawn; those with most parameters come first."""
PANEL_INCHES = 1.5


@styled
def probes(analysis: Analysis) -> CaptionedFigure | None:
    """Draw usable bits of each target, and bits gained by interchange, by layer and token, as means over seeds.

    Returns None if no model has been probed.
    """
    readings = analysis.probes_by_index
    usable, gained = last_models(probe_rows(readings)), last_models(interchange_rows(readings))
    usable = usable[usable["split"] == str(Split.TRAIN)]
    gained = gained[gained["space"] == str(Space.WHOLE)]
    if usable.empty:
        return None
    trials = analysis.tables.trials.loc[sorted({*usable["trial"]})]
    cells = trials.sort_values("num_params", ascending=False).drop_duplicates("cell").head(MAX_CELLS)
    targets = [str(target) for target in ProbeTarget if (usable["target"] == str(target)).any()]
    shown = [
        (cell, str(kind))
        for cell in cells["cell"]
        for kind in Kind
        if (usable["trial"].isin(trials.index[trials["cell"] == cell]) & (usable["kind"] == str(kind))).any()
    ]
    columns = len(targets) + (not gained.empty)
    figure, axes = panels(len(shown), columns, width=PAGE_INCHES, height=PANEL_INCHES * len(shown))
    for row, (cell, kind) in zip(axes, shown, strict=True):
        members = trials.index[trials["cell"] == cell]
        of_row = usable[usable["trial"].isin(members) & (usable["kind"] == kind)]
        moved = gained[gained["trial"].isin(members) & (gained["kind"] == kind)]
        for panel, target in zip(row, targets, strict=False):
            table = of_row[of_row["target"] == target]
            top = float(table["entropy_bits"].mean()) if len(table) else 0.0
            _grid(panel, table, "usable_bits", top, f"{target}, of {top:.1f} bits")
        if not gained.empty:
            top = float(moved["gained_bits"].max()) if len(moved) else 0.0
            _grid(row[-1], moved, "gained_bits", top, "gained by interchange")
        first = next(panel for panel in row if panel.axison)
        kind_text = KIND_TEXTS[Kind(kind)]
        label = f"{kind_text}\n{trials.loc[members[0], 'label']}" if len(cells) > 1 else kind_text
        first.set_ylabel(f"{label}\nlayer")
    caption = (
        "Usable bits of each part of a question in the residual stream, on questions that the probe was not trained on, "
        "and bits that the answer of another question gains if its residual replaces that of the question. Columns are "
        "tokens: the last of the person's name, of the relation and of the subject, and 'Answer:'. Layer 0 is the "
        "embeddings. Numbers are means over seeds, at the end of training."
    )
    if (usable["site"] == str(ProbeSite.CHAIN)).any():
        caption += (
            " In chains of thought, 'chain' is the last token of the bridge's name, and 'chain end' the token after it."
        )
    return finish(figure, "What probes read, and what the model uses (bits)", caption)


def _grid(axes: Axes, rows: pd.DataFrame, column: str, top: float, title: str) -> None:
    """Draw the means of a column by layer, from below, and token."""
    table = rows.pivot_table(index="layer", columns="site", values=column)
    table = table[[str(site) for site in ProbeSite if str(site) in table]]
    table.index = pd.Index([f"{layer:g}" for layer in table.index])
    draw_grid(axes, table.rename(columns=lambda name: name.replace("_", " ")), top, title)
