"""Table of the bits that probes read from stored models, with the token and layer at which they read most."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from raycap.analysis.probes import Readings
from raycap.results.probes import InterchangeRow, ProbeReadings, ProbeRow, Space
from raycap.spec import Split


def probe_table(readings: Sequence[tuple[str, Readings]]) -> Table:
    """Return a row per model, kind and target, for trained questions.

    Args:
        readings: Labels of trials with their readings.
    """
    table = Table(box=SIMPLE)
    for header in ("trial", "questions", "target", "most at"):
        table.add_column(header)
    for header in ("exposures", "usable bits", "of", "control", "untrained", "moved"):
        table.add_column(header, justify="right")
    for label, records in readings:
        for record in records:
            for row in _best(record.body):
                moved = _moved(record.body, row)
                table.add_row(
                    label,
                    str(row.kind),
                    str(row.target),
                    f"{row.site}, layer {row.layer:g}",
                    f"{record.moment.exposures:,.1f}",
                    f"{row.usable_bits:.2f} ± {row.usable_error_bits:.2f}",
                    f"{row.entropy_bits:.2f}",
                    f"{row.control_bits:.2f}",
                    f"{row.untrained_bits:.2f}",
                    f"{moved.moved_share:.0%}" if moved else "",
                )
    return table


def _best(body: ProbeReadings) -> list[ProbeRow]:
    """Return the row with most usable bits of each kind and target of trained questions."""
    best: dict[tuple[str, str], ProbeRow] = {}
    for row in body.probes:
        key = row.kind, row.target
        if row.split is Split.TRAIN and (key not in best or row.usable_bits > best[key].usable_bits):
            best[key] = row
    return list(best.values())


def _moved(body: ProbeReadings, row: ProbeRow) -> InterchangeRow | None:
    """Return the effect of interchanging the whole residual at the token and layer of a row."""
    place = row.kind, row.site, row.layer, Space.WHOLE
    return next((each for each in body.interchanges if (each.kind, each.site, each.layer, each.space) == place), None)
