"""The section of report.html on evaluations of stored models, and on how their two-hop answers come about."""

import math
from html import escape

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.grids import last_models
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.html import note, table
from raycap.analysis.model_evaluations import COMPOSITION_ESTIMATES, composition_rows, evaluation_rows
from raycap.results.composition import Z_95

ROWS_SHOWN = 300
"""The most rows of a table; the data frames have all of them."""


def model_section(analysis: Analysis) -> str:
    """Return the results for the last model of each trial as HTML, or "" if no model has been analysed."""
    body = _evaluations(analysis) + _compositions(analysis)
    return f"<h2>Stored models</h2>{body}" if body else ""


def _evaluations(analysis: Analysis) -> str:
    trials, spec = analysis.sweep.trials, analysis.sweep.spec.analysis
    rows = last_models(evaluation_rows(trials, analysis.inspected.evaluations, spec))
    if rows.empty:
        return ""
    cells = [
        [
            escape(trials[row["trial"]].label),
            escape(row["weights"]),
            f"{row['learned_bits']:,.0f}",
            f"{row['bits_per_param']:.3f}",
            f"{100 * row['kept_share']:.1f} %",
        ]
        for row in rows.head(ROWS_SHOWN).to_dict("records")
    ]
    return table(["trial", "weights", "learned bits", "bits/param", "kept"], cells) + note(
        f"Learned bits of the stored models under {describe_reading(analysis.headline)}, as they are stored and with "
        "compressed weights, and the share of the learned bits that compression keeps (docs/models.md#compressed)."
    )


def _compositions(analysis: Analysis) -> str:
    trials = analysis.sweep.trials
    rows = last_models(composition_rows(trials, analysis.inspected.compositions))
    if rows.empty:
        return ""
    cells = [
        [
            escape(trials[row["trial"]].label),
            escape(row["mechanism"]),
            *(_with_interval(row[name], row[f"{name}_error"]) for name in COMPOSITION_ESTIMATES),
        ]
        for row in rows.head(ROWS_SHOWN).to_dict("records")
    ]
    header = ["trial", "answers", "memorised share", "gap, trained (bits)", "gap, held out (bits)"]
    return table(header, cells) + note(
        "Whether the answers to two-hop questions are composed of their hops or memorised, question by question. The gap is "
        "the loss less that of an answer composed of the two hops, asked alone. Intervals are 95 %, clustered by bridge "
        "(docs/science.md#per-question)."
    )


def _with_interval(value: float, error: float) -> str:
    return f"{value:.2f} ± {Z_95 * error:.2f}" if math.isfinite(value) else "–"
