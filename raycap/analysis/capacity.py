"""Learned bits of a trial's model from its losses, under every reading, by subject and in total.

`learned_bits = code_length_bits - lost_bits`, where the loss is summed over all facts that the encoding scheme stores
(docs/science.md#learned-bits, docs/science.md#per-subject). Questions never measure the loss of a name that no answer
shows, so there the names count as learned; biographies and names alone measure it (docs/science.md#measured-names). All
computations are vectorised over evaluations: loss and capacity arrays have shape (E,).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raycap.analysis.inversion import hop_loss_bits
from raycap.analysis.measurements import Floats, Losses
from raycap.analysis.observed import observed_parts
from raycap.analysis.readings import Reading, headline, readings
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import (
    answer_bits,
    chain_bits,
    code_length_bits,
    fact_bits,
    name_loss_floor,
    name_set_bits,
    relation_copies,
)
from raycap.results import Part, PopulationFacts
from raycap.spec import Accounting, AnalysisSpec, EncodingScheme, Kind, SelectionScheme

TOTAL = "total"
NAMES = "names"


@dataclass(frozen=True)
class Capacity:
    """Bits of one subject, of the names, or in total, at E evaluations of trials with the same question set."""

    kind: Kind
    reading: Reading
    incremental: bool
    """Whether the bits of the one-hop questions are added, with the names counted once (docs/science.md#incremental)."""
    population: int
    """Index of the population. Totals are sums over all populations and have 0."""
    subject: str
    dataset_bits: float
    baseline_bits: float
    """Bits of the names alone: what a model has learned that assigns equal probability to all possible answers."""
    learned_bits: Floats
    standard_error_bits: Floats
    """Standard error from sampled evaluation; 0 where the whole population was evaluated."""

    def is_headline(self, losses: Losses, analysis: AnalysisSpec) -> bool:
        """Whether it is of the last kind of text, counted incrementally if the analysis says so and can."""
        kind = losses.kinds[-1]
        incremental = analysis.incremental and kind.hops > 1 and Kind.ONE_HOP in losses.kinds
        return (self.kind, self.incremental) == (kind, incremental)


def capacities(losses: Losses, analysis: AnalysisSpec) -> Iterator[Capacity]:
    """Yield capacities for kinds x readings x (total, then the subjects and the names of each population).

    Kinds of two or more hops are also yielded with incremental accounting if one-hop questions were measured too.
    """
    for kind in losses.kinds:
        for reading in readings(analysis):
            for incremental in (False, True)[: 2 if kind.hops > 1 and Kind.ONE_HOP in losses.kinds else 1]:
                parts = _total_and_parts(losses, kind, reading, analysis, incremental=incremental)
                errors = _standard_errors(losses, kind, reading, analysis, len(parts), incremental=incremental)
                for part, error in zip(parts, errors, strict=True):
                    yield Capacity(kind, reading, incremental, *part, error)


def headline_bits(losses: Losses, analysis: AnalysisSpec) -> Floats:
    """Return the total of learned bits under the headline's reading, (E,)."""
    (total,) = (
        capacity.learned_bits
        for capacity in capacities(losses, analysis)
        if capacity.subject == TOTAL
        and capacity.reading == headline(analysis)
        and capacity.is_headline(losses, analysis)
    )
    return total


class _PartBits(NamedTuple):
    """Bits of one subject, of the names, or of everything."""

    population: int
    subject: str
    dataset_bits: float
    baseline_bits: float
    learned_bits: Floats


def _total_and_parts(
    losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, *, incremental: bool
) -> list[_PartBits]:
    """Return the total, followed by the parts that it is the sum of."""
    parts = _parts(losses, kind, reading, analysis)
    if incremental:
        one_hop_parts = _parts(losses, Kind.ONE_HOP, reading, analysis, names_known=True)
        parts = [
            part._replace(
                dataset_bits=part.dataset_bits + one_hop.dataset_bits,
                baseline_bits=part.baseline_bits + one_hop.baseline_bits,
                learned_bits=part.learned_bits + one_hop.learned_bits,
            )
            for part, one_hop in zip(parts, one_hop_parts, strict=True)
        ]
    if losses.base:
        _, *known = _total_and_parts(losses.base, kind, reading, analysis, incremental=incremental)
        parts = [
            part._replace(learned_bits=part.learned_bits - _known_bits(before, kind))
            for part, before in zip(parts, known, strict=True)
        ]
    learned = sum((part.learned_bits for part in parts), start=np.zeros(losses.num_evaluations))
    total = _PartBits(0, TOTAL, sum(p.dataset_bits for p in parts), sum(p.baseline_bits for p in parts), learned)
    return [total, *parts]


def _known_bits(part: _PartBits, kind: Kind) -> Floats | float:
    """Return the bits that a model knew about a part before its adapter was trained (docs/science.md#adapters).

    A loss above that of uniform guesses is no negative knowledge. Names whose loss is not measured are not known before.
    """
    is_measured = part.subject != NAMES or kind.names_are_measured
    return np.maximum(part.learned_bits, 0.0) if is_measured else 0.0


def _standard_errors(
    losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, num_parts: int, *, incremental: bool
) -> list[Floats]:
    """Return the standard errors of the total and its parts, propagated from every sampled row of losses.

    Each row is shifted by one standard error in both directions and the accounting is repeated. Half the difference is
    the change of each part. Squares of the changes are summed over rows, whose samples are independent. The accounting
    is repeated as a whole because a row may enter several parts, or one part twice (as a relation that is followed and
    as an answer), and such contributions must be added before they are squared. See docs/science.md#sampling-error.
    """
    kinds = (kind, Kind.ONE_HOP) if incremental else (kind,)  # in a fixed order, so that sums are reproducible
    sampled_columns = [
        column
        for measured_kind in kinds
        for part in Part
        for column in losses.columns(measured_kind, population=None, part=part)
        if (losses.num_evaluated[:, column] < losses.questions.num_texts[column]).any()
    ]
    variances = [np.zeros(losses.num_evaluations) for _ in range(num_parts)]
    for column in sampled_columns:
        error = losses.standard_error_bits([column])
        shifted_up, shifted_down = (
            _total_and_parts(losses.shifted(column, sign * error), kind, reading, analysis, incremental=incremental)
            for sign in (1, -1)
        )
        for variance, above, below in zip(variances, shifted_up, shifted_down, strict=True):
            variance += ((above.learned_bits - below.learned_bits) / 2) ** 2
    return [np.sqrt(variance) for variance in variances]


def _parts(
    losses: Losses, kind: Kind, reading: Reading, analysis: AnalysisSpec, *, names_known: bool = False
) -> list[_PartBits]:
    """Return the subjects and the names of every population; the names have no bits if `names_known`."""
    if analysis.accounting is Accounting.OBSERVED:
        (population,) = losses.populations
        subjects = losses.subjects(kind)
        means = {subject: losses.mean_bits(losses.columns(kind, subject=subject)) for subject in subjects}
        observed = observed_parts(
            population, means, kind.hops, *reading, incremental=names_known, per_subject=analysis.per_subject
        )
        return [_PartBits(0, subject, *bits) for subject, bits in observed.items()]
    parts = []
    for index in range(len(losses.populations)):
        parts += _SubjectAccounting(losses, index, kind, reading, per_subject=analysis.per_subject).parts()
        names = _names(losses, index, kind, reading.selection)
        known = names._replace(dataset_bits=0.0, baseline_bits=0.0, learned_bits=0.0 * names.learned_bits)
        parts.append(known if names_known else names)
    return parts


class _StoredCopies(NamedTuple):
    """Copies of one subject's facts that a scheme stores and that are read from the same loss."""

    stored_bits: float
    """B_s: bits of all these copies."""
    entropy_bits: float
    """H_s: entropy of one answer."""
    loss_bits: Floats
    """l_s: mean loss of one answer, (E,)."""

    @property
    def learned_bits(self) -> Floats | float:
        """B_s (1 - l_s / H_s), not clamped at 0; 0 for answers without entropy, which hold no information."""
        if not self.entropy_bits:
            return 0.0
        return self.stored_bits / self.entropy_bits * (self.entropy_bits - self.loss_bits)


class _SubjectAccounting:
    """Accounting by subject of one population under one reading (docs/science.md#per-subject).

    A subject's learned bits are the bits that the scheme stores about it times the share of its entropy that is not
    lost. Which loss that is depends on the scheme and on how the questions are answered:

    - One hop: the loss of the answer.
    - Several hops, answered directly (latent): the loss of a single hop, from the inversion of the answer's loss.
    - Several hops with a chain of thought: the final answer is a single hop, because the chain before it is given. The
      chain gives the loss of the hops that are followed.
    - `2-hop-big-hash` memorises whole answers, so their loss (with the chain's, if there is one) is used as it is.
    """

    def __init__(self, losses: Losses, index: int, kind: Kind, reading: Reading, *, per_subject: bool) -> None:
        self._losses, self._index, self._kind = losses, index, kind
        self._scheme, self._selection = reading
        self._population = population = losses.populations[index]
        self._followed = losses.followed(index)
        self._chained = kind.hops > 1 and losses.questions.chain_of_thought
        self._memorised = kind.hops > 1 and self._scheme is EncodingScheme.TWO_HOP_BIG_HASH
        self._asked = set(losses.subjects(kind, index))
        self._entropies = answer_bits(population, self._selection)
        self._facts = fact_bits(population, self._selection)
        # A model that knows the set of names loses at most log2 N on a name, whatever selection encodes the names.
        self._uniform = answer_bits(population, SelectionScheme.SET)
        columns = {s: losses.columns(kind, population=index, subject=s) for s in self._facts if s in self._asked}
        # Each question is asked in every phrasing, and its answer is stored once.
        num_texts = {s: losses.num_texts(columns[s]) if s in self._asked else 0 for s in self._facts}
        self._num_trained = {s: number / population.num_phrasings for s, number in num_texts.items()}
        self._mean_losses = mean_losses(losses, columns, self._uniform, per_subject=per_subject)

    def parts(self) -> list[_PartBits]:
        """Return the bits of each subject. Their dataset bits add up to the code length without the names."""
        parts = []
        for subject in self._facts:
            copies = self._stored_copies(subject)
            learned = np.zeros(self._losses.num_evaluations)
            for each in copies:
                learned += each.learned_bits
            parts.append(_PartBits(self._index, subject, sum(each.stored_bits for each in copies), 0.0, learned))
        code_length = code_length_bits(
            self._population,
            self._scheme,
            self._selection,
            self._kind,
            num_trained=self._num_trained,
            followed=self._followed,
            chained=self._chained,
        )
        without_names = code_length - name_set_bits(self._population, self._selection)
        dataset_bits = sum(part.dataset_bits for part in parts)
        assert math.isclose(dataset_bits, without_names, rel_tol=1e-9, abs_tol=1e-6 * code_length)
        return parts

    def _stored_copies(self, subject: str) -> list[_StoredCopies]:
        """Return the copies of a subject's facts that the scheme stores, each with the loss it is read from."""
        if self._memorised:
            return self._memorised_answers(subject) if subject in self._asked else []
        if subject in self._population.relations:
            return self._relation_copies(subject)
        # No scheme stores an attribute more than once, and none stores one that no trained question asks for.
        if subject not in self._asked:
            return []
        return [_StoredCopies(self._facts[subject], self._entropies[subject], self._answer_loss(subject))]

    def _memorised_answers(self, subject: str) -> list[_StoredCopies]:
        """Return all trained answers about a subject, which the big hash stores one by one, with their chains."""
        loss, entropy = self._answer_loss(subject), self._entropies[subject]
        if self._chained:
            loss = loss + self._chain_loss(subject)
            entropy = entropy + chain_bits(self._population, self._selection, self._kind)
        return [_StoredCopies(self._num_trained[subject] * entropy, entropy, loss)]

    def _relation_copies(self, relation: str) -> list[_StoredCopies]:
        """Return the copies of a relation that are stored to follow it and to answer with it."""
        bits, entropy = self._facts[relation], self._entropies[relation]
        to_follow, to_answer = relation_copies(
            self._scheme, self._kind, asked=relation in self._asked, followed=self._followed
        )
        copies = []
        if to_follow:
            copies.append(_StoredCopies(to_follow * bits, entropy, self._follow_loss(relation)))
        if to_answer:
            loss = self._answer_loss(relation)
            if self._chained and not to_follow:
                # A single copy serves both uses. The chain and the answer each measure it, so it gets the mean of both.
                loss = (loss + self._follow_loss(relation)) / 2
            copies.append(_StoredCopies(to_answer * bits, entropy, loss))
        return copies

    def _answer_loss(self, subject: str) -> Floats:
        """Return the mean loss of one answer about a subject, (E,): of a single hop unless answers are memorised."""
        mean = self._mean_losses[subject]
        if self._kind.hops < 2 or self._chained or self._memorised:
            return mean
        return hop_loss_bits(mean, self._uniform[subject], self._kind.hops)

    def _chain_loss(self, subject: str | None = None) -> Floats:
        """Return the mean loss of the whole chain before the answer, of one subject's questions or of all, (E,)."""
        columns = self._losses.columns(self._kind, population=self._index, part=Part.CHAIN, subject=subject)
        return self._losses.mean_bits(columns)

    def _follow_loss(self, relation: str) -> Floats:
        """Return the mean loss of following a relation once, (E,).

        A chain of thought names every person on the way, so it measures this loss: k - 1 steps, averaged over the
        relations. Without a chain no loss shows which of the followed relations failed. The best estimate is the loss
        of answering with the same relation or, if no trained question asks for it, with the other relations on average.
        """
        if self._chained:
            return self._chain_loss() / (self._kind.hops - 1)
        candidates = [relation] if relation in self._asked else self._population.relations
        answer_losses = [self._answer_loss(candidate) for candidate in candidates if candidate in self._asked]
        if not answer_losses:  # no answer is a name: nothing is known about the relations
            return np.full(self._losses.num_evaluations, self._uniform[relation])
        means: Floats = np.mean(answer_losses, axis=0)
        return means


def mean_losses(
    losses: Losses, columns: dict[str, list[int]], entropies: dict[str, float], *, per_subject: bool
) -> dict[str, Floats]:
    """Return the mean loss of an answer by subject, each (E,).

    Unless `per_subject`, only the mean loss over all answers counts: every subject is assigned the same share of its
    entropy (docs/science.md#per-subject). `columns` are the rows of trained answers, by subject.
    """
    if per_subject or not columns:
        return {subject: losses.mean_bits(rows) for subject, rows in columns.items()}
    all_columns = [column for rows in columns.values() for column in rows]
    mean_entropy = sum(losses.num_texts(rows) * entropies[s] for s, rows in columns.items())
    mean_entropy /= losses.num_texts(all_columns)
    share = losses.mean_bits(all_columns) / mean_entropy
    return {subject: share * entropies[subject] for subject in columns}


def _names(losses: Losses, index: int, kind: Kind, selection: SelectionScheme) -> _PartBits:
    """Return the bits of a population's names: all of them where their loss is not measured.

    Where it is measured, a list of names (`enumerate`) holds N (log2 M - loss) bits [2404.05405 §3; 2505.24832 §3], and
    a set log2 C(M, N) - N (loss - log2 N). The correction is there because a model that knows the set, but not which of
    its names comes next, loses at least log2 N per name on average. So the bits of a set and of a list differ by the
    constant log2 N! at any loss up to log2 M, where the set still counts log2 e = 1.44 bits per name as learned. See
    docs/science.md#measured-names.
    """
    population = losses.populations[index]
    names = name_set_bits(population, selection)
    if not kind.names_are_measured or selection is SelectionScheme.INDEPENDENT:
        return _PartBits(index, NAMES, names, names, np.full(losses.num_evaluations, names))
    measured = losses.columns(kind, population=index, subject=NAME_SUBJECT)
    floor = name_loss_floor(population, selection)
    learned = names - population.num_profiles * (losses.mean_bits(measured) - floor)
    return _PartBits(index, NAMES, names, names, learned)


def lost_share(losses: Losses) -> Floats:
    """Return the loss over the entropy of what is measured, of the headline kind, (E,), without any reading.

    1 means that the model knows only which answers are possible. The steps of a chain of thought count like answers
    about a relation. A measured name loses at least log2 N, so names are counted from there. See
    docs/science.md#training-verdicts.
    """
    kind = losses.kinds[-1]
    lost, entropy_sum = np.zeros(losses.num_evaluations), 0.0
    for index, population in enumerate(losses.populations):
        entropies = answer_bits(population, SelectionScheme.SET)
        for subject in losses.subjects(kind, index):
            entropy, floor = entropies.get(subject, 0.0), 0.0
            if subject == NAME_SUBJECT:
                entropy, floor = math.log2(population.num_names), math.log2(population.num_profiles)
            lost += losses.mean_bits(losses.columns(kind, population=index, subject=subject)) - floor
            entropy_sum += entropy - floor
        for column in losses.columns(kind, population=index, part=Part.CHAIN):
            lost += losses.mean_bits([column])
            entropy_sum += chain_bits(population, SelectionScheme.SET, kind)
    return lost / entropy_sum


def uniform_bits(population: PopulationFacts) -> dict[str, float]:
    """Return the loss of uniform guesses by subject: over the possible answers, and over all M names for a name."""
    return answer_bits(population, SelectionScheme.SET) | {NAME_SUBJECT: math.log2(population.num_names)}
