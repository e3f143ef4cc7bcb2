"""The section of report.html on the code length of tables: which distribution prices each subject."""

from html import escape

from raycap.analysis.analyse import Analysis
from raycap.analysis.html import note, table
from raycap.facts.prices import distinct_tables, priced_subjects

TABLES_SHOWN = 5
"""The most populations whose code length is shown by subject."""


def facts_section(analysis: Analysis) -> str:
    """Return the code length by subject of each table that trials learn as HTML, or "" if there is none."""
    body = ""
    for facts in distinct_tables(analysis.sweep.trials)[:TABLES_SHOWN]:
        rows = [
            [
                escape(row.subject),
                escape(row.distribution),
                f"{row.num_facts:,}",
                f"{row.bits_per_fact:.3f}",
                f"{row.total_bits:,.0f}",
                f"{row.frequencies_bits:,.0f}" if row.frequencies_bits else "–",
                escape(row.advice),
            ]
            for row in priced_subjects(facts)
        ]
        header = [
            "subject",
            "distribution",
            "facts",
            "bits per fact",
            "bits",
            "bits to state the frequencies",
            "remark",
        ]
        body += table(header, rows)
    if not body:
        return ""
    return (
        "<h2>Code length of the facts</h2>"
        + body
        + note(
            "Facts of a table have no known origin, so the spec declares the distribution that prices them. Empirical "
            "distributions are the frequencies in the table, which are taken as known; the bits that state them are not "
            "part of the code length. The bits of the names are those of a list (docs/science.md#tables)."
        )
    )
