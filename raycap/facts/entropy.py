"""Code length of a population in bits, by encoding scheme and selection scheme.

Notation: N people, M possible names, A bits of attributes per person, R relations. The formulas and their sources are
in docs/science.md#code-lengths.
"""

import math
from collections.abc import Mapping
from statistics import fmean

import numpy as np

from raycap.facts.relations import INVERSES, MATCHINGS
from raycap.results import PopulationFacts
from raycap.spec import EncodingScheme, Kind, RelationStructure, SelectionScheme


def name_set_bits(population: PopulationFacts, selection: SelectionScheme) -> float:
    """Return the bits that encode which N of the M possible names occur.

    set: log2 C(M, N). enumerate: N log2 M. independent: 0. All are 0 if the names are given, as for random pairs.
    """
    num_profiles, num_names = population.num_profiles, population.num_names
    if population.names_given:
        return 0.0
    match selection:
        case SelectionScheme.SET:
            # log2 C(M, N) = sum_i log2((M - i) / (i + 1)) for i < N, where (M - i) / (i + 1) = M (1 - i / M) / (i + 1).
            # A difference of log-gammas would lose all digits to cancellation at M = 2e12.
            i = np.arange(num_profiles, dtype=np.float64)
            terms = np.log1p(-i * (1 / num_names)) / math.log(2) - np.log2(i + 1)  # M can be too large for a float
            return num_profiles * math.log2(num_names) + float(terms.sum())
        case SelectionScheme.ENUMERATE:
            return num_profiles * math.log2(num_names)
        case SelectionScheme.INDEPENDENT:
            return 0.0


def name_loss_floor(population: PopulationFacts, selection: SelectionScheme) -> float:
    """Return the loss of a measured name at which all bits of the names are learned: log2 N for a set, 0 for a list.

    The bits of a list are N log2 M, so nothing has to be subtracted from the loss.
    """
    return 0.0 if selection is SelectionScheme.ENUMERATE else math.log2(population.num_profiles)


def unordered_bits(num: int) -> float:
    """Return log2 num!, the bits of an order of `num` items. A set takes that many bits less than a list."""
    return math.lgamma(num + 1) / math.log(2)


def answer_bits(population: PopulationFacts, selection: SelectionScheme) -> dict[str, float]:
    """Return the bits of one answer about each subject.

    They are the entropy of an attribute, log2 N for a name (log2(N - 1) if self_relations is false) or log2 M for a
    name under the selection independent. A loaded relation that is not a uniform draw has the entropy of its
    frequencies. This is the loss of a model that knows only the distribution of the answers.
    """
    others = population.num_profiles - (not population.self_relations)
    choices = population.num_names if selection is SelectionScheme.INDEPENDENT else max(1, others)
    names = dict.fromkeys(population.relations, math.log2(choices)) | population.relation_entropies_bits
    return population.attribute_entropies_bits | names


def fact_bits(population: PopulationFacts, selection: SelectionScheme) -> dict[str, float]:
    """Return the code length of all facts about each subject if every fact is stored once.

    A subject takes the bits of an answer times its number of facts, which is N unless some people lack it. Bipartite
    best_friend and worst_enemy are perfect matchings of log2 (N-1)!! bits each. Bipartite parent and child are inverse to
    each other; together they take log2 (N/2)! + log2 C(N, N/2) bits, which is split equally. Under the selection
    independent, each of the N/2 pairs stores one name.
    See docs/science.md#schemes.
    """
    num_profiles = population.num_profiles
    answers = answer_bits(population, selection)
    bits = {subject: population.num_facts(subject) * each for subject, each in answers.items()}
    if population.structure is RelationStructure.BIPARTITE:
        half = num_profiles // 2
        by_name = half * math.log2(population.num_names) if selection is SelectionScheme.INDEPENDENT else None
        matching = unordered_bits(num_profiles) - half - unordered_bits(half)  # N! / (2^(N/2) (N/2)!) = (N-1)!!
        bijection = unordered_bits(num_profiles) - unordered_bits(half)  # (N/2)! C(N, N/2) = N! / (N/2)!
        inverses = [relation for relation in population.relations if relation in INVERSES]
        for relation in population.relations:
            if relation in MATCHINGS:
                bits[relation] = matching if by_name is None else by_name
            elif relation in INVERSES:
                bits[relation] = (bijection if by_name is None else by_name) / len(inverses)
    return bits


def chain_bits(population: PopulationFacts, selection: SelectionScheme, kind: Kind) -> float:
    """Return the bits of the intermediate steps in a chain of thought: one name for each hop except the last."""
    answers = answer_bits(population, selection)
    if not population.relation_entropies_bits:
        return (kind.hops - 1) * answers[population.relations[0]]
    return (kind.hops - 1) * fmean(answers[relation] for relation in population.relations)


def relation_copies(scheme: EncodingScheme, kind: Kind, *, asked: bool, followed: float) -> tuple[float, float]:
    """Return how many times a scheme stores a relation, for following it and for answering with it.

    OPTIMAL stores each fact once. TWO_HOP_DOUBLE stores one function per hop: k - 1 times for following and once for
    answering.

    Args:
        scheme: Encoding scheme, OPTIMAL or TWO_HOP_DOUBLE.
        kind: Kind of the questions.
        asked: Whether any training question asks for the relation.
        followed: Fraction of the relations that training questions follow.
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
    """Return the code length of the names and facts that texts of a kind require.

    Args:
        population: Sizes and entropies of the population.
        scheme: Encoding scheme of the facts.
        selection: Selection scheme of the names.
        kind: Kind of the texts.
        num_trained: Number of training questions about each subject, N R^(k-1) each by default. Subjects without
            training questions take no bits. TWO_HOP_BIG_HASH stores the answer to every training question.
        followed: Fraction of the relations that training questions follow.
        chained: Whether answers contain their intermediate steps, which TWO_HOP_BIG_HASH then stores too.
    """
    names = name_set_bits(population, selection)
    if kind is Kind.NAME:
        return names
    answers, facts = answer_bits(population, selection), fact_bits(population, selection)
    num_all = population.num_profiles * len(population.relations) ** max(kind.hops - 1, 0)
    trained = {subject: num_all if num_trained is None else num_trained.get(subject, 0) for subject in facts}
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
