"""Bits in a population: its code length under an encoding scheme and a selection scheme (SCIENCE, Code lengths).

N people, M possible names, A bits of attributes per person, R relations.
"""

from dataclasses import dataclass

import numpy as np

from raycap.results import PopulationFacts
from raycap.spec import EncodingScheme, SelectionScheme


def name_set_bits(population: PopulationFacts, selection: SelectionScheme) -> float:
    """Bits for which N of the M names exist.

    set: log2 C(M, N) = sum_i log2((M - i) / (i + 1)), summed term by term because the difference of log-gammas loses all
    digits at M = 2e12. enumerate: N log2 M. independent: 0.
    """
    num_profiles, num_names = population.num_profiles, population.num_names
    match selection:
        case SelectionScheme.SET:
            i = np.arange(num_profiles, dtype=np.float64)
            return float((np.log2(num_names - i) - np.log2(i + 1)).sum())
        case SelectionScheme.ENUMERATE:
            return num_profiles * float(np.log2(num_names))
        case SelectionScheme.INDEPENDENT:
            return 0.0


def answer_bits(population: PopulationFacts, selection: SelectionScheme) -> dict[str, float]:
    """Bits of one answer per subject: an attribute's entropy, or log2 N for a name (log2 M if names are independent)."""
    choices = population.num_names if selection is SelectionScheme.INDEPENDENT else population.num_profiles
    return population.attribute_entropies_bits | dict.fromkeys(population.relations, float(np.log2(choices)))


@dataclass(frozen=True)
class Copies:
    """How often a scheme stores the answer to a question: `attribute` and `relation` times per person."""

    attribute: float
    relation: float


def copies(population: PopulationFacts, scheme: EncodingScheme, hops: int, trained_share: float = 1.0) -> Copies:
    """Copies of each fact under a scheme; one-hop answers are stored once under all of them.

    `trained_share` is f2, the share of two-hop tuples that is trained on.
    """
    num_relations = len(population.relations)
    if hops == 1:
        return Copies(1, 1)
    match scheme:
        case EncodingScheme.OPTIMAL:
            return Copies(1, 1)
        case EncodingScheme.TWO_HOP_DOUBLE:
            return Copies(1, 2)
        case EncodingScheme.TWO_HOP_BIG_HASH:
            return Copies(trained_share * num_relations, trained_share * num_relations)


def code_length_bits(
    population: PopulationFacts,
    scheme: EncodingScheme,
    selection: SelectionScheme,
    *,
    hops: int = 1,
    trained_share: float = 1.0,
) -> float:
    """Code length of everything that questions of `hops` hops ask about: names + N sum_s copies_s answer_bits_s."""
    times = copies(population, scheme, hops, trained_share)
    bits = answer_bits(population, selection)
    attributes = times.attribute * sum(bits[a] for a in population.attribute_entropies_bits)
    relations = times.relation * sum(bits[r] for r in population.relations)
    return name_set_bits(population, selection) + population.num_profiles * (attributes + relations)
