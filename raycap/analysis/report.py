"""The files of an analysis: summary.json, tables, figures, and the self-contained report.html."""

import io
import json
from collections.abc import Iterator
from html import escape
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from raycap.analysis.analyse import Analysis
from raycap.analysis.answer import answer
from raycap.analysis.figures.all import FIGURES, draw
from raycap.analysis.figures.style import COLUMN_INCHES, for_paper, image
from raycap.analysis.html import figure, link, note, page
from raycap.analysis.interactive import interactive_page
from raycap.analysis.question import contrast_section
from raycap.analysis.sections import report_sections
from raycap.analysis.summary import summary
from raycap.analysis.tidy import capacity_rows
from raycap.storage.sweep_folder import SweepFolder


def files(analysis: Analysis) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every file of an analysis: the summary and the tables first, the report last.

    Drawing the figures takes several seconds. A figure that cannot be drawn is left out and named in the report, because
    the results do not depend on it.
    """
    capacities = pa.Table.from_pandas(capacity_rows(analysis), preserve_index=False)
    parquet_file, csv_file = io.BytesIO(), io.BytesIO()
    parquet.write_table(capacities, parquet_file)
    csv.write_csv(capacities, csv_file)
    record = summary(analysis)
    yield SweepFolder.SUMMARY, json.dumps(record, indent=2, allow_nan=False).encode()
    yield "capacity.parquet", parquet_file.getvalue()
    yield "capacity.csv", csv_file.getvalue()
    figures, not_drawn = "", []
    for name, make in FIGURES.items():
        try:
            if (drawn := make(analysis)) is None:
                continue
            svg, png = image(drawn, "svg"), image(drawn, "png")
        except Exception as error:  # of any type: matplotlib raises many, some of which come from fonts or data
            not_drawn.append(f"{name.replace('_', ' ')} ({type(error).__name__}: {error})")
            continue
        yield f"{name}.svg", svg
        yield f"{name}.png", png
        figures += figure(svg, name.replace("_", " "), wide=drawn.get_figwidth() > COLUMN_INCHES)
    if not_drawn:
        figures += note(f"Figures that could not be drawn: {'; '.join(not_drawn)}. Everything else is complete.")
    yield SweepFolder.INTERACTIVE, interactive_page(analysis).encode()
    yield SweepFolder.REPORT, report_html(analysis, record["trials"], figures).encode()


def paper_files(analysis: Analysis) -> Iterator[tuple[str, bytes]]:
    """Yield every figure as a PDF with embedded fonts and without title and caption, then the captions as a text file."""
    captions = []
    for name, drawn in draw(analysis).items():
        captions.append(f"{name}.pdf\n{drawn.title}. {drawn.caption}\n")
        yield f"paper/{name}.pdf", image(for_paper(drawn), "pdf")
    yield "paper/captions.txt", "\n".join(captions).encode()


def report_html(analysis: Analysis, trials: list[dict[str, Any]], figures: str) -> str:
    """Return the report as HTML. `trials` are the entries of `summary`; `figures` is HTML."""
    body = f'<p class="answer">{escape(answer(analysis))}</p>'
    body += link("The results as an interactive page: choose reading, axes and colour", SweepFolder.INTERACTIVE)
    body += f'<div class="figures">{figures}</div>'
    spec = analysis.sweep.spec
    return page(
        spec.name, analysis.sweep.question, body + contrast_section(analysis) + report_sections(analysis, trials)
    )
