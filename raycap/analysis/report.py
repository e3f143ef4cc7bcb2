"""An analysis as files: summary.json, tables, figures, and one self-contained report.html."""

import io
import json
from html import escape
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.all import draw
from raycap.analysis.figures.style import COLUMN_INCHES, image
from raycap.analysis.html import figure, page
from raycap.analysis.laws import FitStatus
from raycap.analysis.sections import sections
from raycap.analysis.summary import summary
from raycap.storage.sweep_folder import SweepFolder


def files(analysis: Analysis) -> dict[str, bytes]:
    """Everything a sweep's folder gets from its analysis, by file name. Drawing is the slow part, some seconds."""
    capacities = pa.Table.from_pandas(analysis.tables.capacities, preserve_index=False)
    packed, lines = io.BytesIO(), io.BytesIO()
    parquet.write_table(capacities, packed)
    csv.write_csv(capacities, lines)
    told = summary(analysis)
    contents = {
        SweepFolder.SUMMARY: json.dumps(told, indent=2, allow_nan=False).encode(),
        "capacity.parquet": packed.getvalue(),
        "capacity.csv": lines.getvalue(),
    }
    figures = ""
    for name, drawn in draw(analysis).items():
        drawing = image(drawn, "svg")
        contents |= {f"{name}.svg": drawing, f"{name}.png": image(drawn, "png")}
        figures += figure(drawing, name.replace("_", " "), wide=drawn.get_figwidth() > COLUMN_INCHES)
    return contents | {SweepFolder.REPORT: report_html(analysis, told["trials"], figures).encode()}


def answer(analysis: Analysis) -> str:
    """The law of the headline reading in one sentence, and what can be said of the readings in another."""
    law, reading = analysis.law, analysis.headline
    alpha, gamma = law.alpha, law.power.gamma
    match law.status:
        case FitStatus.NO_TRIALS:
            return f"No capacity-limited trial has finished, so there is no law yet ({_answer_sentence(analysis)})."
        case FitStatus.NOT_CONVERGED:
            return f"The fit of bits per parameter did not converge, so there is no law ({_answer_sentence(analysis)})."
        case FitStatus.OK:
            told = (
                f"{alpha.estimate:.2f} bits per parameter, 95 % interval [{alpha.low:.2f}, {alpha.high:.2f}] "
                f"({_answer_sentence(analysis)}), from {law.num_trials} capacity-limited trials"
            )
            if law.power.status is FitStatus.OK:
                told += f"; bits grow as P^{gamma.estimate:.2f} [{gamma.low:.2f}, {gamma.high:.2f}]"
        case _:
            told = (
                f"{alpha.estimate:.2f} bits per parameter ({_answer_sentence(analysis)}), from {law.num_trials} trial(s): "
                "too few for an interval"
            )
    comparison = analysis.comparison
    if len(comparison.readings) < 2 or not comparison.pairs:
        return f"{told}."
    best = comparison.best
    if best is None:
        return f"{told}. Which reading fits is undecided."
    return f"{told}. The reading that fits is {best}{'' if best == reading else ', another than the one shown first'}."


def _answer_sentence(analysis: Analysis) -> str:
    scheme, selection = analysis.headline
    return f"{scheme} encoding, {selection} names"


def report_html(analysis: Analysis, trials: list[dict[str, Any]], figures: str) -> str:
    """The report; `trials` are those of the summary, the figures are HTML already."""
    body = f'<p class="answer">{escape(answer(analysis))}</p><div class="figures">{figures}</div>'
    spec = analysis.sweep.spec
    return page(spec.name, analysis.sweep.question, body + sections(analysis, trials))
