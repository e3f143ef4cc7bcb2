"""From losses to capacities: how many bits of the data a trial's model holds, under each scheme.

learned_bits = code_length_bits - lost_bits, with the losses of all facts a scheme stores. Under `set` and `enumerate` the
names are part of the code length; a model that spreads its belief evenly over the right names has learned just these.
Questions never ask for a name that no answer shows, so there names are taken as learned; biographies and names alone
measure their loss.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import pandas as pd
from scipy.optimize import brentq

from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import (
    answer_bits,
    chain_bits,
    code_length_bits,
    fact_bits,
    name_set_bits,
    relation_copies,
)
from raycap.facts.splits import followed_share
from raycap.losses import LossTable, Part
from raycap.results import Evaluation, PlannedTrial, PopulationFacts, TrialResult
from raycap.spec import AnalysisSpec, EncodingScheme, Kind, SelectionScheme, TrialSpec

TOTAL = "total"
NAMES = "names"

EXHAUSTED_BELOW = 0.1
"""A trial whose loss is below this share of its answers' entropy has run out of data rather than of capacity."""


class ExclusionReason(StrEnum):
    """Why a trial does not enter a capacity law."""

    DATASET_EXHAUSTED = "dataset exhausted"
    """Hardly any loss is left: the model could have stored more than there was."""
    NOTHING_LEARNED = "nothing learned"
    """It loses as much as a model that knows the names alone; what those are worth, no loss has measured."""


@dataclass(frozen=True)
class CapacityEstimate:
    """Learned bits of one trial at one evaluation, under one scheme and selection, for one subject or in total.

    Totals are over all populations, subjects of each.
    """

    trial_id: str
    step: int
    exposures: float
    kind: Kind
    scheme: EncodingScheme
    selection: SelectionScheme
    population: int
    subject: str
    dataset_bits: float
    learned_bits: float
    standard_error_bits: float
    """From sampled evaluation; 0 where the whole population was evaluated."""
    num_params: int
    num_non_embedding_params: int

    @property
    def bits_per_param(self) -> float:
        """Per parameter, embeddings included."""
        return self.learned_bits / self.num_params

    @property
    def bits_per_non_embedding_param(self) -> float:
        """Per parameter outside the embeddings."""
        return self.learned_bits / self.num_non_embedding_params


def capacities(
    trial: PlannedTrial | TrialResult, evaluation: Evaluation, analysis: AnalysisSpec
) -> Iterator[CapacityEstimate]:
    """Every estimate that one evaluation allows: kinds x schemes x selections x (total, names, each subject)."""
    for kind in evaluation.losses.kinds:
        for scheme in analysis.schemes:
            for selection in analysis.selections:
                for row in _rows(trial.spec, trial.populations, evaluation.losses, kind, scheme, selection):
                    yield CapacityEstimate(
                        trial_id=trial.trial_id,
                        step=evaluation.step,
                        exposures=evaluation.exposures,
                        kind=kind,
                        scheme=scheme,
                        selection=selection,
                        num_params=trial.parameters.total,
                        num_non_embedding_params=trial.parameters.non_embedding,
                        **row._asdict(),
                    )


class _Row(NamedTuple):
    population: int
    subject: str
    dataset_bits: float
    learned_bits: float
    standard_error_bits: float


def _rows(
    spec: TrialSpec,
    populations: tuple[PopulationFacts, ...],
    losses: LossTable,
    kind: Kind,
    scheme: EncodingScheme,
    selection: SelectionScheme,
) -> list[_Row]:
    """The total over all populations, then the subjects and the names of each."""
    rows = [
        row
        for number, population in enumerate(populations)
        for row in _by_subject(spec, number, population, losses, kind, scheme, selection)
    ]
    error = math.sqrt(sum(row.standard_error_bits**2 for row in rows))
    total = _Row(0, TOTAL, sum(row.dataset_bits for row in rows), sum(row.learned_bits for row in rows), error)
    return [total, *rows]


def _by_subject(
    spec: TrialSpec,
    number: int,
    population: PopulationFacts,
    losses: LossTable,
    kind: Kind,
    scheme: EncodingScheme,
    selection: SelectionScheme,
) -> list[_Row]:
    """What is known of each subject is the share of its entropy that is not lost, times what the scheme stores of it.

    Latent questions of k hops tell the loss of one hop by inversion. With a chain of thought the answer is a single hop,
    given all before, and the chain the hops that are followed: a relation stored once has the mean of both losses, one
    stored for each hop has each its own, and memorised answers are charged for chain and answer together.
    """
    trained = losses.select(kind, population=number).by_subject()
    chained = kind.hops > 1 and spec.questions.chain_of_thought
    chains = losses.select(kind, population=number, part=Part.CHAIN) if chained else None
    entropies, facts = answer_bits(population, selection), fact_bits(population, selection)
    chances = answer_bits(population, SelectionScheme.SET)
    memorised = kind.hops > 1 and scheme is EncodingScheme.TWO_HOP_BIG_HASH
    followed = followed_share(spec.questions.held_out, len(population.relations))
    num_trained = {subject: trained[subject].num_texts if subject in trained else 0 for subject in facts}

    def answer_loss(subject: str) -> _Loss:
        rows = trained[subject]
        mean, error = rows.mean_bits, rows.standard_error_bits
        if kind.hops < 2 or chained or memorised:
            return _Loss(mean, error)
        hop, slope = hop_loss_bits(mean, chances[subject], kind.hops)
        return _Loss(hop, slope * error)

    def followed_loss(relation: str) -> _Loss:
        if chains is not None:
            return _Loss(chains.mean_bits / (kind.hops - 1), chains.standard_error_bits / (kind.hops - 1))
        asked = [answer_loss(r) for r in ([relation] if relation in trained else population.relations) if r in trained]
        if not asked:  # no question tells
            return _Loss(chances[relation], 0.0)
        return _Loss(sum(loss.bits for loss in asked) / len(asked), max(loss.error_bits for loss in asked))

    rows = []
    for subject, bits in facts.items():
        entropy, asked = entropies[subject], subject in trained
        stored: list[tuple[float, float, _Loss]] = []  # bits stored, entropy of one answer, its loss
        if memorised:
            if asked:
                loss, told = answer_loss(subject), entropy
                if chains is not None:
                    chain = chains.by_subject()[subject]
                    error = math.hypot(loss.error_bits, chain.standard_error_bits)
                    loss, told = (
                        _Loss(loss.bits + chain.mean_bits, error),
                        told + chain_bits(population, selection, kind),
                    )
                stored.append((num_trained[subject] * told, told, loss))
        elif subject in population.relations:
            to_follow, to_answer = relation_copies(scheme, kind, asked=asked, followed=followed)
            if to_follow:
                stored.append((to_follow * bits, entropy, followed_loss(subject)))
            if to_answer:
                loss = answer_loss(subject)
                if chains is not None and not to_follow:
                    also = followed_loss(subject)
                    loss = _Loss((loss.bits + also.bits) / 2, math.hypot(loss.error_bits, also.error_bits) / 2)
                stored.append((to_answer * bits, entropy, loss))
        elif asked:
            stored.append((bits, entropy, answer_loss(subject)))
        known = [(held, held / each if each else 0.0, each, loss) for held, each, loss in stored]
        rows.append(
            _Row(
                number,
                subject,
                sum(held for held, *_ in known),
                sum(per_bit * (each - loss.bits) for _, per_bit, each, loss in known),
                math.sqrt(sum((per_bit * loss.error_bits) ** 2 for _, per_bit, _, loss in known)),
            )
        )
    rows.append(_names_row(number, population, losses, kind, selection))
    dataset = code_length_bits(
        population, scheme, selection, kind, num_trained=num_trained, followed=followed, chained=chained
    )
    assert math.isclose(sum(row.dataset_bits for row in rows), dataset, rel_tol=1e-9, abs_tol=1e-6)
    return rows


class _Loss(NamedTuple):
    """Mean loss of one answer, and its standard error."""

    bits: float
    error_bits: float


def _names_row(
    number: int, population: PopulationFacts, losses: LossTable, kind: Kind, selection: SelectionScheme
) -> _Row:
    """The names: all of them where their loss is not measured.

    Where it is, N (log2 M - loss) as a list (A-Z, Morris); as a set all but what is lost beyond log2 N, the least that a
    name can cost on average whoever knows the set and is not told which of it is next.
    """
    names = name_set_bits(population, selection)
    if not kind.names_are_measured or selection is SelectionScheme.INDEPENDENT:
        return _Row(number, NAMES, names, names, 0.0)
    measured = losses.select(kind, population=number, subject=NAME_SUBJECT)
    # As a list the names are worth N log2 M, which is what `names` is then.
    least_bits = 0.0 if selection is SelectionScheme.ENUMERATE else math.log2(population.num_profiles)
    learned = names - population.num_profiles * (measured.mean_bits - least_bits)
    return _Row(number, NAMES, names, learned, population.num_profiles * measured.standard_error_bits)


def hop_loss_bits(loss_bits: float, uniform_bits: float, hops: int) -> tuple[float, float]:
    """Loss of one hop, given the mean loss of k-hop questions about a subject, and d(one hop) / d(k hops).

    If a hop is right with probability p, and the answer uniform over n values once one was wrong before the last,
    p_k = p^k + (1 - p^(k-1)) / n: for two hops p^2 + (1 - p) / n (SCIENCE, Code lengths). Applied per subject, to its
    mean loss. Losses at or above uniform come back as they are, so that a model worse than chance is charged for it.
    """
    if loss_bits >= uniform_bits:
        return loss_bits, 1.0
    answer, chance = 2**-loss_bits, 2**-uniform_bits
    p = float(brentq(lambda p: p**hops + (1 - p ** (hops - 1)) * chance - answer, chance, 1.0, xtol=1e-15, rtol=1e-14))
    steepness = hops * p ** (hops - 1) - (hops - 1) * p ** (hops - 2) * chance
    return -math.log2(p), answer / (p * steepness)


def capacity_table(results: list[TrialResult], analysis: AnalysisSpec) -> pd.DataFrame:
    """One row per trial, evaluation, kind, scheme, selection, population and subject; `final` at a trial's last."""
    rows = []
    for result in results:
        for evaluation in result.evaluations:
            for estimate in capacities(result, evaluation, analysis):
                rows.append(
                    vars(estimate)
                    | {
                        "bits_per_param": estimate.bits_per_param,
                        "bits_per_non_embedding_param": estimate.bits_per_non_embedding_param,
                        "headline": estimate.kind is evaluation.losses.kinds[-1],
                        "final": evaluation is result.final,
                    }
                )
    return pd.DataFrame(rows).astype({"kind": str, "scheme": str, "selection": str}) if rows else pd.DataFrame()


def exclusion(result: TrialResult, scheme: EncodingScheme, selection: SelectionScheme) -> ExclusionReason | None:
    """Why a trial's capacity says nothing about its model's limit, or None if it does."""
    losses = result.final.losses
    total, *_ = _rows(result.spec, result.populations, losses, losses.kinds[-1], scheme, selection)
    if lost_share(result) >= 1 or total.learned_bits <= 0:
        return ExclusionReason.NOTHING_LEARNED
    return ExclusionReason.DATASET_EXHAUSTED if lost_share(result) < EXHAUSTED_BELOW else None


def lost_share(result: TrialResult) -> float:
    """Final loss over the entropy of what is told, of the headline kind; 1 is knowing the possible answers alone.

    A chain of thought tells a relation's answer with every step. Measured names cost log2 N each at least, which counts
    as nothing lost.
    """
    losses, kind = result.final.losses, result.final.losses.kinds[-1]
    lost = told = 0.0
    for number, population in enumerate(result.populations):
        entropies = answer_bits(population, SelectionScheme.SET)
        for subject, rows in losses.select(kind, population=number).by_subject().items():
            floor = 0.0
            if subject == NAME_SUBJECT:
                floor = math.log2(population.num_profiles)
            entropy = math.log2(population.num_names) if subject == NAME_SUBJECT else entropies[subject]
            lost += rows.mean_bits - floor
            told += entropy - floor
        for row in losses.rows:
            if (row.kind, row.part, row.population) == (kind, Part.CHAIN, number) and row.trained:
                lost += row.mean_bits
                told += chain_bits(population, SelectionScheme.SET, kind)
    return lost / told
