"""From losses to capacities: how many bits of the data a trial's model holds, under each scheme.

learned_bits = code_length_bits - lost_bits, with the losses of all facts a scheme stores. Under `set` and `enumerate` the
names are part of the code length; a model that spreads its belief evenly over the right names has learned just these.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from raycap.facts.entropy import answer_bits, code_length_bits, copies, name_set_bits
from raycap.results import Evaluation, PopulationFacts, TrialResult
from raycap.spec import AnalysisSpec, EncodingScheme, SelectionScheme

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
    """Learned bits of one trial at one evaluation, under one scheme and selection, for one subject or in total."""

    trial_id: str
    step: int
    exposures: float
    hops: int
    scheme: EncodingScheme
    selection: SelectionScheme
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
    trial_id: str,
    population: PopulationFacts,
    num_params: int,
    num_non_embedding: int,
    evaluation: Evaluation,
    analysis: AnalysisSpec,
) -> Iterator[CapacityEstimate]:
    """Every estimate that one evaluation allows: hops x scheme x selection x (total, names, each subject)."""
    for hops in evaluation.losses.hops:
        for scheme in analysis.schemes:
            for selection in analysis.selections:
                for subject, dataset, learned, error in _by_subject(population, evaluation, hops, scheme, selection):
                    yield CapacityEstimate(
                        trial_id=trial_id,
                        step=evaluation.step,
                        exposures=evaluation.exposures,
                        hops=hops,
                        scheme=scheme,
                        selection=selection,
                        subject=subject,
                        dataset_bits=dataset,
                        learned_bits=learned,
                        standard_error_bits=error,
                        num_params=num_params,
                        num_non_embedding_params=num_non_embedding,
                    )


def _by_subject(
    population: PopulationFacts, evaluation: Evaluation, hops: int, scheme: EncodingScheme, selection: SelectionScheme
) -> list[tuple[str, float, float, float]]:
    """(subject, dataset bits, learned bits, standard error) for each subject, the names, and the total."""
    entropies = answer_bits(population, selection)
    times = copies(population, scheme, hops)
    rows = []
    for row in evaluation.losses.of_hops(hops):
        entropy = entropies[row.subject]
        loss, slope = row.mean_bits, 1.0
        if hops == 2 and scheme is not EncodingScheme.TWO_HOP_BIG_HASH:
            uniform = population.attribute_entropies_bits.get(row.subject, math.log2(population.num_profiles))
            loss, slope = hop_loss_bits(row.mean_bits, uniform)
        is_relation = row.subject in population.relations
        weight = population.num_profiles * (times.relation if is_relation else times.attribute)
        rows.append(
            (row.subject, weight * entropy, weight * (entropy - loss), weight * slope * row.standard_error_bits)
        )
    names = name_set_bits(population, selection)
    rows.append((NAMES, names, names, 0.0))
    total_error = math.sqrt(sum(error**2 for *_, error in rows))
    total = (TOTAL, sum(row[1] for row in rows), sum(row[2] for row in rows), total_error)
    assert math.isclose(total[1], code_length_bits(population, scheme, selection, hops=hops), rel_tol=1e-9)
    return [total, *rows]


def hop_loss_bits(two_hop_loss_bits: float, uniform_bits: float) -> tuple[float, float]:
    """Loss of one hop, given the mean two-hop loss of a subject, and d(one hop) / d(two-hop).

    If a hop is right with probability p and the answer otherwise uniform over n values, p2 = p^2 + (1 - p) / n (SCIENCE,
    Code lengths); applied per subject, to its mean loss. Losses at or above uniform come back as they are, so that a
    model worse than chance is charged for it.
    """
    if two_hop_loss_bits >= uniform_bits:
        return two_hop_loss_bits, 1.0
    p2, chance = 2**-two_hop_loss_bits, 2**-uniform_bits
    p = (chance + math.sqrt(chance**2 - 4 * (chance - p2))) / 2
    return -math.log2(p), p2 / (p * (2 * p - chance))


def capacity_table(results: list[TrialResult], analysis: AnalysisSpec) -> pd.DataFrame:
    """One row per trial, evaluation, hops, scheme, selection and subject; the last evaluation of a trial is `final`."""
    rows = []
    for result in results:
        parameters = result.parameters
        for evaluation in result.evaluations:
            for estimate in capacities(
                result.trial_id, result.population, parameters.total, parameters.non_embedding, evaluation, analysis
            ):
                rows.append(
                    vars(estimate)
                    | {
                        "bits_per_param": estimate.bits_per_param,
                        "bits_per_non_embedding_param": estimate.bits_per_non_embedding_param,
                        "final": evaluation is result.final,
                    }
                )
    return pd.DataFrame(rows).astype({"scheme": str, "selection": str}) if rows else pd.DataFrame()


def exclusion(result: TrialResult, scheme: EncodingScheme, selection: SelectionScheme) -> ExclusionReason | None:
    """Why a trial's capacity says nothing about its model's limit, or None if it does."""
    final, hops = result.final, max(result.final.losses.hops)
    (_, _, learned_bits, _), *_ = _by_subject(result.population, final, hops, scheme, selection)
    if lost_share(result) >= 1 or learned_bits <= 0:
        return ExclusionReason.NOTHING_LEARNED
    return ExclusionReason.DATASET_EXHAUSTED if lost_share(result) < EXHAUSTED_BELOW else None


def lost_share(result: TrialResult) -> float:
    """Final loss over the entropy of the answers, of the questions with the most hops; 1 is knowing the names alone."""
    hops = max(result.final.losses.hops)
    entropies = answer_bits(result.population, SelectionScheme.SET)
    rows = result.final.losses.of_hops(hops)
    return sum(row.mean_bits for row in rows) / sum(entropies[row.subject] for row in rows)
