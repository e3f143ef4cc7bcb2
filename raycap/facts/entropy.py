"""Bits in a population: its code length under an encoding scheme and a selection scheme (SCIENCE, Code lengths).

N people, M possible names, A bits of attributes per person, R relations.
"""

import math
from collections.abc import Mapping

import numpy as np

from raycap.facts.relations import INVERSES, MATCHINGS
from raycap.results import PopulationFacts
from raycap.spec import EncodingScheme, Kind, RelationStructure, SelectionScheme


def name_set_bits(population: PopulationFacts, selection: SelectionScheme) -> float:
    """Bits for which N of the M names exist.

    set: log2 C(M, N) = sum_i log2((M - i) / (i + 1)), summed term by term because the difference of log-gammas loses all
    digits at M = 2e12. enumerate: N log2 M. independent: 0. All are 0 where names are given.
    """
    num_profiles, num_names = population.num_profiles, population.num_names
    if population.names_given:
        return 0.0
    match selection:
        case SelectionScheme.SET:
            i = np.arange(num_profiles, dtype=np.float64)
            terms = np.log1p(-i * (1 / num_names)) / math.log(2) - np.log2(i + 1)  # M may be beyond any float
            return num_profiles * math.log2(num_names) + float(terms.sum())
        case SelectionScheme.ENUMERATE:
            return num_profiles * math.log2(num_names)
        case SelectionScheme.INDEPENDENT:
            return 0.0


def unordered_bits(num: int) -> float:
    """log2 num!: what the order of `num` things is worth, which nobody can lose who is asked for them in no order."""
    return math.lgamma(num + 1) / math.log(2)


def answer_bits(population: PopulationFacts, selection: SelectionScheme) -> dict[str, float]:
    """Bits of one answer per subject: an attribute's entropy, or log2 N for a name (log2 M if names are independent).

    It is the loss of a model that knows just which answers are possible; log2(N - 1) where nobody is related to
    themselves.
    """
    others = population.num_profiles - (not population.self_relations)
    choices = population.num_names if selection is SelectionScheme.INDEPENDENT else max(1, others)
    return population.attribute_entropies_bits | dict.fromkeys(population.relations, math.log2(choices))


def fact_bits(population: PopulationFacts, selection: SelectionScheme) -> dict[str, float]:
    """Code length of all facts about each subject, every one stored once.

    Uniform: N times its answer's bits. Bipartite: best_friend and worst_enemy are perfect matchings, log2 (N-1)!! each;
    parent and child, the inverse of each other, take log2 (N/2)! + log2 C(N, N/2) together, half of it each. Where names
    are independent, each of the N/2 pairs takes one.
    """
    num_profiles = population.num_profiles
    bits = {subject: num_profiles * each for subject, each in answer_bits(population, selection).items()}
    if population.structure is RelationStructure.BIPARTITE:
        half = num_profiles // 2
        named = half * math.log2(population.num_names) if selection is SelectionScheme.INDEPENDENT else None
        matching = unordered_bits(num_profiles) - half - unordered_bits(half)  # N! / (2^(N/2) (N/2)!) = (N-1)!!
        bijection = unordered_bits(num_profiles) - unordered_bits(half)  # (N/2)! C(N, N/2) = N! / (N/2)!
        inverses = [relation for relation in population.relations if relation in INVERSES]
        for relation in population.relations:
            if relation in MATCHINGS:
                bits[relation] = matching if named is None else named
            elif relation in INVERSES:
                bits[relation] = (bijection if named is None else named) / len(inverses)
    return bits


def chain_bits(population: PopulationFacts, selection: SelectionScheme, kind: Kind) -> float:
    """Bits of the steps that a chain of thought spells before its answer: a name for each hop but the last."""
    return (kind.hops - 1) * answer_bits(population, selection)[population.relations[0]]


def relation_copies(scheme: EncodingScheme, kind: Kind, *, asked: bool, followed: float) -> tuple[float, float]:
    """How often a scheme stores a relation for following it, and for answering with it.

    `asked` is whether it is ever asked for, `followed` the share of the relations that is ever followed. Each fact once;
    or, for k hops, one function per hop: k - 1 to follow and one to answer.
    """
    if kind.hops < 2 or scheme is EncodingScheme.OPTIMAL:
        return (0.0, 1.0) if asked else (followed if kind.hops > 1 else 0.0, 0.0)
    return (kind.hops - 1) * followed, float(asked)


def code_length_bits(
    population: PopulationFacts,
    scheme: EncodingScheme,
    selection: SelectionScheme,
    kind: Kind = Kind.ONE_HOP,
    *,
    num_trained: Mapping[str, float] | None = None,
    followed: float = 1.0,
    chained: bool = False,
) -> float:
    """Code length of everything that texts of a kind ask about or tell: the names, and what the scheme stores of facts.

    `num_trained` is how many questions of the kind are trained about each subject, N R^(k-1) unless given: those that
    nobody asks about need nothing, and the big hash stores every answer, with `chained` the steps before it too.
    `followed` is the share of relations that is.
    """
    names = name_set_bits(population, selection)
    if kind is Kind.NAME:
        return names
    answers, facts = answer_bits(population, selection), fact_bits(population, selection)
    whole = population.num_profiles * len(population.relations) ** max(kind.hops - 1, 0)
    trained = {subject: whole if num_trained is None else num_trained.get(subject, 0) for subject in facts}
    if kind.hops > 1 and scheme is EncodingScheme.TWO_HOP_BIG_HASH:
        chain = chain_bits(population, selection, kind) if chained else 0.0
        return names + sum(trained[subject] * (answers[subject] + chain) for subject in facts)
    total = names
    for subject, bits in facts.items():
        asked = trained[subject] > 0
        if subject in population.relations:
            total += bits * sum(relation_copies(scheme, kind, asked=asked, followed=followed))
        else:
            total += bits * asked
    return total
