"""Description of the code length of a table: by which distribution each subject is priced, and at what cost."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import answer_bits, fact_bits, name_set_bits
from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import Distribution, SelectionScheme


def distinct_tables(trials: Iterable[PlannedTrial]) -> list[PopulationFacts]:
    """Return the different populations from tables that trials learn, in order."""
    tables = [facts for trial in trials for facts in trial.populations if facts.prices]
    return list({facts.model_dump_json(): facts for facts in tables}.values())


class PricedSubject(NamedTuple):
    """Code length of the facts of a table about one subject, or of its names as a list."""

    subject: str
    distribution: str
    """The distribution in words, such as "uniform over 223 values"."""
    num_facts: int
    bits_per_fact: float
    total_bits: float
    frequencies_bits: float
    """Bits that state the frequencies of an empirical distribution, which are not part of the total."""
    advice: str
    """Remark if an empirical distribution saves fewer bits than it takes to state, otherwise ""."""


def priced_subjects(facts: PopulationFacts) -> list[PricedSubject]:
    """Return the code length of the names and of each subject of a table; empty for other populations."""
    selection = SelectionScheme.ENUMERATE
    bits_per_fact = {NAME_SUBJECT: math.log2(facts.num_names)} | answer_bits(facts, selection)
    totals = {NAME_SUBJECT: name_set_bits(facts, selection)} | fact_bits(facts, selection)
    rows = []
    for subject, price in facts.prices.items():
        values = f"{price.num_values:,} {'word' if subject == NAME_SUBJECT else 'value'}{'s' * (price.num_values > 1)}"
        if price.distribution is Distribution.UNIFORM:
            words = f"uniform over {price.num_values:,} {'names' if subject == NAME_SUBJECT else 'values'}"
        else:
            words = f"{'empirical' if price.distribution is Distribution.EMPIRICAL else 'given'}, {values}"
        uniform = math.log2(facts.num_profiles if subject in facts.relations else price.num_values)
        is_dear = subject != NAME_SUBJECT and price.frequencies_bits > price.num_facts * uniform - totals[subject]
        advice = ""
        if price.distribution is Distribution.EMPIRICAL and price.frequencies_bits and is_dear:
            advice = (
                f"the frequencies take more bits to state than they save; uniform takes {uniform:.2f} bits per fact"
            )
        rows.append(
            PricedSubject(
                subject,
                words,
                price.num_facts,
                bits_per_fact[subject],
                totals[subject],
                price.frequencies_bits,
                advice,
            )
        )
    return rows
