"""The files of an analysis: summary.json, tables, figures, and the self-contained report.html."""

import io
import json
from html import escape
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.all import draw
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.figures.style import COLUMN_INCHES, image
from raycap.analysis.html import figure, page
from raycap.analysis.laws import FitStatus
from raycap.analysis.sections import sections
from raycap.analysis.summary import summary
from raycap.storage.sweep_folder import SweepFolder


def files(analysis: Analysis) -> dict[str, bytes]:
    """Return the contents of all files of an analysis by file name. Drawing the figures takes several seconds."""
    capacities = pa.Table.from_pandas(analysis.tables.capacities, preserve_index=False)
    parquet_file, csv_file = io.BytesIO(), io.BytesIO()
    parquet.write_table(capacities, parquet_file)
    csv.write_csv(capacities, csv_file)
    record = summary(analysis)
    contents = {
        SweepFolder.SUMMARY: json.dumps(record, indent=2, allow_nan=False).encode(),
        "capacity.parquet": parquet_file.getvalue(),
        "capacity.csv": csv_file.getvalue(),
    }
    figures = ""
    for name, drawn in draw(analysis).items():
        svg = image(drawn, "svg")
        contents |= {f"{name}.svg": svg, f"{name}.png": image(drawn, "png")}
        figures += figure(svg, name.replace("_", " "), wide=drawn.get_figwidth() > COLUMN_INCHES)
    return contents | {SweepFolder.REPORT: report_html(analysis, record["trials"], figures).encode()}


def answer(analysis: Analysis) -> str:
    """Return one sentence on the law of the headline reading, and one on the comparison of readings if there is one."""
    law, reading = analysis.law, analysis.headline
    alpha, gamma = law.alpha, law.power.gamma
    match law.status:
        case FitStatus.NO_TRIALS:
            return f"No capacity-limited trial has finished, so there is no law yet ({describe_reading(reading)})."
        case FitStatus.NOT_CONVERGED:
            return f"The fit of bits per parameter did not converge, so there is no law ({describe_reading(reading)})."
        case FitStatus.OK:
            sentence = (
                f"{alpha.estimate:.2f} bits per parameter, 95 % interval [{alpha.low:.2f}, {alpha.high:.2f}] "
                f"({describe_reading(reading)}), from {law.num_trials} capacity-limited trials"
            )
            if law.power.status is FitStatus.OK:
                sentence += f"; bits grow as P^{gamma.estimate:.2f} [{gamma.low:.2f}, {gamma.high:.2f}]"
        case _:
            sentence = (
                f"{alpha.estimate:.2f} bits per parameter ({describe_reading(reading)}), from {law.num_trials} trial(s): "
                "too few for an interval"
            )
    comparison = analysis.comparison
    if len(comparison.readings) < 2 or not comparison.pairs:
        return f"{sentence}."
    best = comparison.best
    if best is None:
        return f"{sentence}. Which reading fits is undecided."
    return f"{sentence}. The reading that fits is {best}{'' if best == reading else ', which is not the headline reading'}."


def report_html(analysis: Analysis, trials: list[dict[str, Any]], figures: str) -> str:
    """Return the report as HTML. `trials` are the entries of `summary`; `figures` is HTML."""
    body = f'<p class="answer">{escape(answer(analysis))}</p><div class="figures">{figures}</div>'
    spec = analysis.sweep.spec
    return page(spec.name, analysis.sweep.question, body + sections(analysis, trials))
