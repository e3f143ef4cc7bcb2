"""From losses to capacities: how many bits of the data a trial's model holds, under each reading.

learned_bits = code_length_bits - lost_bits, with the losses of all facts a scheme stores. Under `set` and `enumerate` the
names are part of the code length; a model that spreads its belief evenly over the right names has learned just these.
Questions never ask for a name that no answer shows, so there names are taken as learned; biographies and names alone
measure their loss. Everything is computed for many evaluations at once; arrays are (E,).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raycap.analysis.measurements import Floats, Losses
from raycap.analysis.observed import observed_parts
from raycap.analysis.readings import Reading, readings
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import (
    answer_bits,
    chain_bits,
    code_length_bits,
    fact_bits,
    name_set_bits,
    relation_copies,
)
from raycap.results import Part, PopulationFacts
from raycap.spec import Accounting, AnalysisSpec, EncodingScheme, Kind, SelectionScheme

TOTAL = "total"
NAMES = "names"


@dataclass(frozen=True)
class Capacity:
    """Bits of one subject, of the names, or in total, at E evaluations of trials that were asked the same."""

    kind: Kind
    reading: Reading
    incremental: bool
    """Whether the bits of the one-hop questions are counted too ("2.1 hops"), the names once."""
    population: int
    """Totals are over all populations, and have 0."""
    subject: str
    dataset_bits: float
    baseline_bits: float
    """What the names alone are worth: the bits of a model that spreads its belief evenly over all possible answers."""
    learned_bits: Floats
    standard_error_bits: Floats
    """From sampled evaluation; 0 where the whole population was evaluated."""

    def is_headline(self, losses: Losses, analysis: AnalysisSpec) -> bool:
        """Whether it is of the last kind of text, counted as the analysis says."""
        kind = losses.kinds[-1]
        incremental = analysis.incremental and kind.hops > 1 and Kind.ONE_HOP in losses.kinds
        return (self.kind, self.incremental) == (kind, incremental)


def capacities(losses: Losses, analysis: AnalysisSpec) -> Iterator[Capacity]:
    """Everything the losses tell: kinds x readings x (total, then the subjects and the names of each population).

    Longer questions are read incrementally too where one-hop questions were measured beside them.
    """
    for kind in losses.kinds:
        for reading in readings(analysis):
            for incremental in (False, True)[: 2 if kind.hops > 1 and Kind.ONE_HOP in losses.kinds else 1]:
                parts = _read(losses, kind, reading, analysis, incremental=incremental)
                errors = _errors(losses, kind, reading, analysis, len(parts), incremental=incremental)
                for part, error in zip(parts, errors, strict=True):
                    yield Capacity(kind, reading, incremental, *part, error)


class _Part(NamedTuple):
    """Bits of one subject, of the names, or of everything."""

    population: int
    subject: str
    dataset_bits: float
    baseline_bits: float
    learned_bits: Floats


def _read(losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, *, incremental: bool) -> list[_Part]:
    """The total, then its parts."""
    parts = _parts(losses, kind, reading, analysis)
    if incremental:
        more = _parts(losses, Kind.ONE_HOP, reading, analysis, names_known=True)
        parts = [
            part._replace(
                dataset_bits=part.dataset_bits + other.dataset_bits,
                baseline_bits=part.baseline_bits + other.baseline_bits,
                learned_bits=part.learned_bits + other.learned_bits,
            )
            for part, other in zip(parts, more, strict=True)
        ]
    learned = sum((part.learned_bits for part in parts), start=np.zeros(losses.num_evaluations))
    total = _Part(0, TOTAL, sum(p.dataset_bits for p in parts), sum(p.baseline_bits for p in parts), learned)
    return [total, *parts]


def _errors(
    losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, num_parts: int, *, incremental: bool
) -> list[Floats]:
    """Standard errors of the total and its parts, from those of every row that was sampled.

    A row may enter several parts, or one part several times (followed and answered, say), so what a standard error more
    and less of it would change is taken of each whole, and squares are summed over rows: these are independent.
    """
    kinds = {kind, Kind.ONE_HOP} if incremental else {kind}
    sampled = [
        column
        for each in kinds
        for part in Part
        for column in losses.columns(each, population=None, part=part)
        if (losses.num_evaluated[:, column] < losses.asked.num_texts[column]).any()
    ]
    variances = [np.zeros(losses.num_evaluations) for _ in range(num_parts)]
    for column in sampled:
        error = losses.standard_error_bits([column])
        more, less = (
            _read(losses.shifted(column, sign * error), kind, reading, analysis, incremental=incremental)
            for sign in (1, -1)
        )
        for variance, above, below in zip(variances, more, less, strict=True):
            variance += ((above.learned_bits - below.learned_bits) / 2) ** 2
    return [np.sqrt(variance) for variance in variances]


def _parts(
    losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, *, names_known: bool = False
) -> list[_Part]:
    """The subjects and the names of every population; names that are known already are worth nothing more."""
    if analysis.accounting is Accounting.OBSERVED:
        (population,) = losses.populations
        subjects = losses.subjects(kind)
        means = {subject: losses.mean_bits(losses.columns(kind, subject=subject)) for subject in subjects}
        found = observed_parts(
            population, means, kind.hops, *reading, incremental=names_known, per_subject=analysis.per_subject
        )
        return [_Part(0, subject, *bits) for subject, bits in found.items()]
    parts = []
    for number in range(len(losses.populations)):
        parts += _by_subject(losses, number, kind, reading, per_subject=analysis.per_subject)
        names = _names(losses, number, kind, reading.selection)
        known = names._replace(dataset_bits=0.0, baseline_bits=0.0, learned_bits=0.0 * names.learned_bits)
        parts.append(known if names_known else names)
    return parts


def _by_subject(losses: Losses, number: int, kind: Kind, reading: Reading, *, per_subject: bool) -> list[_Part]:
    """What is known of each subject is the share of its entropy that is not lost, times what the scheme stores of it.

    Latent questions of k hops tell the loss of one hop by inversion. With a chain of thought the answer is a single hop,
    given all before, and the chain the hops that are followed: a relation stored once has the mean of both losses, one
    stored for each hop has each its own, and memorised answers are charged for chain and answer together. Unless
    `per_subject`, only the mean loss over all subjects counts: each is taken to lose the same share of its entropy.
    """
    scheme, selection = reading
    population = losses.populations[number]
    asked = losses.subjects(kind, number)
    chained = kind.hops > 1 and losses.asked.chain_of_thought
    entropies, facts = answer_bits(population, selection), fact_bits(population, selection)
    chances = answer_bits(population, SelectionScheme.SET)
    memorised = kind.hops > 1 and scheme is EncodingScheme.TWO_HOP_BIG_HASH
    followed = losses.followed(number)
    columns = {s: losses.columns(kind, population=number, subject=s) for s in facts if s in asked}
    num_trained = {subject: losses.num_texts(columns[subject]) if subject in asked else 0 for subject in facts}
    means = _means(losses, columns, chances, per_subject)

    def answer_loss(subject: str) -> Floats:
        if kind.hops < 2 or chained or memorised:
            return means[subject]
        return hop_loss_bits(means[subject], chances[subject], kind.hops)

    def chain_loss(subject: str | None = None) -> Floats:
        return losses.mean_bits(losses.columns(kind, population=number, part=Part.CHAIN, subject=subject))

    def followed_loss(relation: str) -> Floats:
        if chained:
            return chain_loss() / (kind.hops - 1)
        told = [answer_loss(r) for r in ([relation] if relation in asked else population.relations) if r in asked]
        if not told:  # no question tells
            return np.full(losses.num_evaluations, chances[relation])
        return np.mean(told, axis=0)

    parts = []
    for subject, bits in facts.items():
        entropy = entropies[subject]
        stored: list[tuple[float, float, Floats]] = []  # bits stored, entropy of one answer, its loss
        if memorised:
            if subject in asked:
                loss, told = answer_loss(subject), entropy
                if chained:
                    loss, told = loss + chain_loss(subject), told + chain_bits(population, selection, kind)
                stored.append((num_trained[subject] * told, told, loss))
        elif subject in population.relations:
            to_follow, to_answer = relation_copies(scheme, kind, asked=subject in asked, followed=followed)
            if to_follow:
                stored.append((to_follow * bits, entropy, followed_loss(subject)))
            if to_answer:
                loss = answer_loss(subject)
                if chained and not to_follow:
                    loss = (loss + followed_loss(subject)) / 2
                stored.append((to_answer * bits, entropy, loss))
        elif subject in asked:
            stored.append((bits, entropy, answer_loss(subject)))
        learned = np.zeros(losses.num_evaluations)
        for held, each, loss in stored:
            learned += held / each * (each - loss) if each else 0.0
        parts.append(_Part(number, subject, sum(held for held, *_ in stored), 0.0, learned))
    dataset = code_length_bits(
        population, scheme, selection, kind, num_trained=num_trained, followed=followed, chained=chained
    )
    facts_alone = dataset - name_set_bits(population, selection)
    assert math.isclose(sum(part.dataset_bits for part in parts), facts_alone, rel_tol=1e-9, abs_tol=1e-6 * dataset)
    return parts


def _means(
    losses: Losses, columns: dict[str, list[int]], chances: dict[str, float], per_subject: bool
) -> dict[str, Floats]:
    """Mean loss of an answer by subject: its own, or the same share of its entropy for all (SCIENCE, Code lengths)."""
    if per_subject or not columns:
        return {subject: losses.mean_bits(c) for subject, c in columns.items()}
    everything = [column for of_subject in columns.values() for column in of_subject]
    told = sum(losses.num_texts(c) * chances[s] for s, c in columns.items()) / losses.num_texts(everything)
    share = losses.mean_bits(everything) / told
    return {subject: share * chances[subject] for subject in columns}


def _names(losses: Losses, number: int, kind: Kind, selection: SelectionScheme) -> _Part:
    """The names: all of them where their loss is not measured.

    Where it is, N (log2 M - loss) as a list (A-Z, Morris); as a set all but what is lost beyond log2 N, the least that a
    name can cost on average whoever knows the set and is not told which of it is next. So a set is worth log2 N! less
    than a list at any loss but in what nobody knows: at log2 M each it still counts 1.44 bits a name as learned.
    """
    population = losses.populations[number]
    names = name_set_bits(population, selection)
    if not kind.names_are_measured or selection is SelectionScheme.INDEPENDENT:
        return _Part(number, NAMES, names, names, np.full(losses.num_evaluations, names))
    measured = losses.columns(kind, population=number, subject=NAME_SUBJECT)
    # As a list the names are worth N log2 M, which is what `names` is then.
    least_bits = 0.0 if selection is SelectionScheme.ENUMERATE else math.log2(population.num_profiles)
    learned = names - population.num_profiles * (losses.mean_bits(measured) - least_bits)
    return _Part(number, NAMES, names, names, learned)


def hop_loss_bits(loss_bits: Floats, uniform_bits: float, hops: int) -> Floats:
    """Loss of one hop, given the mean loss of k-hop questions about a subject.

    If a hop is right with probability p, and the answer uniform over n values once one was wrong before the last,
    p_k = p^k + (1 - p^(k-1)) / n: for two hops p^2 + (1 - p) / n (SCIENCE, Code lengths). Applied per subject, to its
    mean loss. Losses at or above uniform come back as they are, so that a model worse than chance is charged for it.
    Just below uniform the curve is steep: at n = 1,000 a thousandth of the entropy known of two hops is a sixth of one.
    """
    loss_bits = np.asarray(loss_bits, dtype=float)
    answer, chance = 2**-loss_bits, 2**-uniform_bits
    # p_k rises with p above chance, so bisection is safe; Newton's steps then polish what it found.
    low, high = np.full_like(answer, chance), np.ones_like(answer)
    for _ in range(30):
        middle = (low + high) / 2
        above = middle**hops + (1 - middle ** (hops - 1)) * chance > answer
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    p = (low + high) / 2

    for _ in range(3):
        steepness = hops * p ** (hops - 1) - (hops - 1) * p ** (hops - 2) * chance
        p = np.clip(p - (p**hops + (1 - p ** (hops - 1)) * chance - answer) / steepness, chance, 1.0)
    return np.where(loss_bits >= uniform_bits, loss_bits, -np.log2(p))


def lost_share(losses: Losses) -> Floats:
    """Loss over the entropy of what is told, of the headline kind, (E,); 1 is knowing the possible answers alone.

    A chain of thought tells a relation's answer with every step. Measured names cost log2 N each at least, which counts
    as nothing lost. No reading enters.
    """
    kind = losses.kinds[-1]
    lost, told = np.zeros(losses.num_evaluations), 0.0
    for number, population in enumerate(losses.populations):
        entropies = answer_bits(population, SelectionScheme.SET)
        for subject in losses.subjects(kind, number):
            entropy, floor = entropies.get(subject, 0.0), 0.0
            if subject == NAME_SUBJECT:
                entropy, floor = math.log2(population.num_names), math.log2(population.num_profiles)
            lost += losses.mean_bits(losses.columns(kind, population=number, subject=subject)) - floor
            told += entropy - floor
        for column in losses.columns(kind, population=number, part=Part.CHAIN):
            lost += losses.mean_bits([column])
            told += chain_bits(population, SelectionScheme.SET, kind)
    return lost / told


def uniform_bits(population: PopulationFacts) -> dict[str, float]:
    """Loss of a model that knows just which answers are possible, by subject; of a name without knowing the people."""
    return answer_bits(population, SelectionScheme.SET) | {NAME_SUBJECT: math.log2(population.num_names)}
