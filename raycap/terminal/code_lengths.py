"""The code length of tables in a plan, as lines of text and as JSON."""

from collections.abc import Sequence
from typing import Any

from raycap.facts.prices import distinct_tables, priced_subjects
from raycap.results import PlannedTrial


def format_prices(trials: Sequence[PlannedTrial]) -> list[str]:
    """Return lines of text with the code length of each table that trials learn, subject by subject."""
    lines = []
    for facts in distinct_tables(trials):
        lines.append(f"Code length of a table with {facts.num_profiles:,} names, names as a list:")
        for row in priced_subjects(facts):
            bits = f"{row.num_facts:,} x {row.bits_per_fact:.3f} = {row.total_bits:,.0f} bits"
            stated = f" + {row.frequencies_bits:,.0f} bits to state the frequencies" if row.frequencies_bits else ""
            advice = f"; {row.advice}" if row.advice else ""
            lines.append(f"  {row.subject}: {bits} ({row.distribution}{stated}{advice})")
    return lines


def prices_field(trial: PlannedTrial) -> dict[str, Any]:
    """Return the `prices` of a trial that learns a table as a dict, one list for each population; empty for others."""
    priced = [priced_subjects(facts) for facts in trial.populations]
    return {"prices": [[row._asdict() for row in rows] for rows in priced]} if any(priced) else {}
