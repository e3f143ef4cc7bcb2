"""Synthetic results from a known law and reading, to test the analysis and to simulate its power.

A planted trial loses the same share of every answer's entropy. `share_curves` tabulates the learned bits under every
reading as a function of that share. Inverting the curve of the true reading gives the share for the bits of a trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raycap.analysis.analyse import headline_bits
from raycap.analysis.capacity import uniform_bits
from raycap.analysis.measurements import Floats, Ints, Losses, QuestionSet, question_set
from raycap.analysis.readings import Reading
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import chain_bits
from raycap.facts.solve_population import expected_trained
from raycap.facts.splits import expected_trained_share
from raycap.results import (
    HISTOGRAM_EDGES_BITS,
    Evaluation,
    LossKey,
    LossRow,
    LossTable,
    Part,
    PlannedTrial,
    PopulationFacts,
    Provenance,
    StopReason,
    TrialResult,
)
from raycap.spec import AnalysisSpec, HeldOut, Kind, ResolvedModel, SelectionScheme, Split, TrialSpec

SHARES = np.concatenate([np.linspace(0, 0.9, 901), 1 - np.geomspace(0.1, 1e-8, 1200)[1:], np.linspace(1, 4, 301)])
"""Grid of lost shares of the answers' entropy; shares above 1 are worse than chance. The grid is dense just below 1,
where the inversion of several hops is steep (docs/science.md#inversion)."""


@dataclass(frozen=True)
class Truth:
    """Law that planted trials follow: smooth-min(bits_per_param P0 (P / P0)^gamma, H) under a reading, with noise."""

    reading: Reading
    bits_per_param: float = 2.0
    """Bits per parameter at P0, the geometric mean of the sizes."""
    gamma: float = 1.0
    sharpness: float = 8.0
    noise: float = 0.05
    """Standard deviation of the log of a trial's capacity, independent for each trial."""
    cell_noise: float = 0.0
    """Standard deviation of a deviation that all trials of a cell share."""
    time_constant: float = 0.25
    """Time constant of the exponential approach to the final bits, as a share of all exposures."""

    def learned_bits(
        self, num_params: Floats, dataset_bits: Floats, cells: Ints, *, rng: np.random.Generator, num: int = 1
    ) -> Floats:
        """Draw the final learned bits of each trial in `num` sweeps, (num, n).

        `dataset_bits` (n,) are code lengths under the true reading, and `cells` (n,) the indices of the trials' cells.
        """
        log_params = np.log(num_params)
        u = np.log(self.bits_per_param) + log_params.mean() + self.gamma * (log_params - log_params.mean())
        u = u + self.noise * rng.standard_normal((num, len(num_params)))
        u += self.cell_noise * rng.standard_normal((num, int(cells.max()) + 1))[:, cells]
        lost: Floats = np.exp(
            -np.logaddexp(-self.sharpness * u, -self.sharpness * np.log(dataset_bits)) / self.sharpness
        )
        return lost


@dataclass(frozen=True)
class ShareCurves:
    """Learned bits of a question set under every reading at each of SHARES, (len(SHARES),)."""

    losses: Losses
    learned_bits: dict[Reading, Floats]

    def share_lost(self, reading: Reading, learned_bits: Floats) -> Floats:
        """Return the lost share at which so many bits are learned."""
        shares: Floats = np.interp(-learned_bits, -self.learned_bits[reading], SHARES)
        return shares

    def bits_at(self, reading: Reading, share_lost: Floats) -> Floats:
        """Return the learned bits at a lost share."""
        return np.interp(share_lost, SHARES, self.learned_bits[reading])

    def slope_bits(self, reading: Reading, share_lost: Floats) -> Floats:
        """Return -d learned bits / d log loss at a lost share."""
        slopes = -np.gradient(self.learned_bits[reading], SHARES)
        return np.interp(share_lost, SHARES, slopes) * share_lost


def share_curves(trials: Sequence[PlannedTrial], analysis: AnalysisSpec) -> list[ShareCurves]:
    """Return the curves of each trial. Trials with the same question set share one object."""
    known: dict[QuestionSet, ShareCurves] = {}
    found = []
    for trial in trials:
        keys, num_texts = planted_keys(trial.spec, trial.populations)
        questions = question_set(trial.spec, trial.populations, keys, num_texts)
        if questions not in known:
            losses = planted_losses(questions, trial.populations, np.repeat(SHARES[:, None], len(keys), axis=1))
            known[questions] = ShareCurves(losses, headline_bits(losses, analysis))
        found.append(known[questions])
    return found


def planted_keys(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...]
) -> tuple[tuple[LossKey, ...], tuple[int, ...]]:
    """Return the keys of the rows of losses that a trial would have, and their expected numbers of texts."""
    keys: list[LossKey] = []
    num_texts = []
    held_out = [Split.TRAIN, *spec.questions.held_out.fractions]
    for number, population in enumerate(populations):
        for kind in spec.questions.kinds:
            subjects = [NAME_SUBJECT] if kind.names_are_measured else []
            subjects += [] if kind is Kind.NAME else [*population.attribute_entropies_bits, *population.relations]
            trained = expected_trained(population, spec.questions, kind)
            phrasings = population.num_phrasings if kind.hops and kind is not Kind.BIOGRAPHY else 1
            parts = (Part.CHAIN, Part.ANSWER) if spec.questions.chain_of_thought and kind.hops > 1 else (Part.ANSWER,)
            counts = {
                subject: {Split.TRAIN: phrasings * population.num_facts(subject)}
                if trained is None
                else _split_counts(phrasings * trained.get(subject, 0.0), spec.questions.held_out, kind.hops)
                for subject in subjects
            }
            for split in held_out if kind.hops > 1 else held_out[:1]:
                for part in parts:
                    for subject in subjects:
                        for frequency_class, num in enumerate(_class_counts(population, counts[subject][split])):
                            if num:
                                keys.append((kind, subject, part, split, number, frequency_class))
                                num_texts.append(num)
    return tuple(keys), tuple(num_texts)


def _class_counts(population: PopulationFacts, num_texts: int) -> list[int]:
    """Return a number of texts divided over the frequency classes in proportion to their people."""
    people = np.cumsum([0, *(each.num_people for each in population.frequencies)])
    if len(people) == 1:
        return [num_texts]
    ends = np.round(num_texts * people / people[-1]).astype(int)
    return [int(end - begin) for begin, end in pairwise(ends)]


def _split_counts(num_trained: float, held_out: HeldOut, hops: int) -> dict[Split, int]:
    """Return the numbers of questions of each split, given the expected number of trained ones.

    The rest is divided in proportion to the held-out fractions. Rounding keeps the sum of all splits.
    """
    rest = num_trained / expected_trained_share(held_out, hops) - num_trained
    fractions = held_out.fractions
    shares = [num_trained, *(rest * fraction / sum(fractions.values()) for fraction in fractions.values())]
    counts = np.diff(np.round(np.cumsum(shares)), prepend=0.0).astype(int).tolist()
    return dict(zip((Split.TRAIN, *fractions), counts, strict=True))


def planted_means(questions: QuestionSet, populations: tuple[PopulationFacts, ...], shares: Floats) -> Floats:
    """Return mean losses (..., K) for lost shares (..., K) of the entropies of K rows.

    The loss at share 0 is 0, except for measured names, whose loss is at least log2 N.
    """
    least, most = np.empty(len(questions.keys)), np.empty(len(questions.keys))
    for row, (kind, subject, part, _, index, _) in enumerate(questions.keys):
        population = populations[index]
        uniform = uniform_bits(population)
        if part is Part.CHAIN:
            least[row], most[row] = 0.0, chain_bits(population, SelectionScheme.SET, kind)
        else:
            most[row] = uniform[subject]
            least[row] = np.log2(population.num_profiles) if subject == NAME_SUBJECT else 0.0
    return least + shares * (most - least)


def planted_losses(questions: QuestionSet, populations: tuple[PopulationFacts, ...], shares: Floats) -> Losses:
    """Return losses for lost shares (E, K), with every text evaluated and the same loss for all texts of a row."""
    means, num_texts = planted_means(questions, populations, shares), np.array(questions.num_texts)
    counts = np.broadcast_to(num_texts, means.shape)
    return Losses(questions, populations, means * num_texts, means**2 * num_texts, counts)


def plant(
    trials: Sequence[PlannedTrial],
    truth: Truth,
    analysis: AnalysisSpec,
    cells: Ints,
    *,
    rng: np.random.Generator,
    num_evaluations: int = 8,
) -> list[TrialResult]:
    """Return a synthetic result for every trial of a sweep.

    Args:
        trials: the plan.
        truth: law and reading that the results follow.
        analysis: analysis spec that declares the true reading.
        cells: index of each trial's cell, (n,).
        rng: random generator of the noise.
        num_evaluations: evaluations per trial, at doubling exposures.
    """
    curves = share_curves(trials, analysis)
    num_params = np.array([trial.parameters.total for trial in trials], dtype=float)
    dataset_bits = np.array([curve.learned_bits[truth.reading][0] for curve in curves])
    (ends,) = truth.learned_bits(num_params, dataset_bits, cells, rng=rng)
    return [
        _result(trial, curve, truth, float(end), num_evaluations)
        for trial, curve, end in zip(trials, curves, ends, strict=True)
    ]


def with_mean_losses(result: TrialResult, mean_bits: Callable[[TrialSpec, LossRow], float | None]) -> TrialResult:
    """Return a result with other losses in every evaluation, for example with questions that were not learned.

    Args:
        result: the result of a trial.
        mean_bits: mean loss of a row of the loss tables; None keeps the loss of the row.
    """

    def changed(row: LossRow) -> LossRow:
        mean = mean_bits(result.spec, row)
        if mean is None:
            return row
        sums = {"sum_bits": mean * row.num_evaluated, "sum_squares_bits2": mean**2 * row.num_evaluated}
        return row.model_copy(update=sums)

    evaluations = []
    for evaluation in result.evaluations:
        table = evaluation.losses.model_copy(update={"rows": tuple(map(changed, evaluation.losses.rows))})
        evaluations.append(evaluation.model_copy(update={"losses": table}))
    return result.model_copy(update={"evaluations": tuple(evaluations)})


def _result(trial: PlannedTrial, curve: ShareCurves, truth: Truth, end: float, num_evaluations: int) -> TrialResult:
    """Return the result of one trial that ends with `end` learned bits.

    Learned bits approach their end exponentially. Losses of held-out questions decrease later than those of trained ones.
    """
    assert isinstance(trial.spec.model, ResolvedModel)
    questions = curve.losses.questions
    ages = 0.5 ** np.arange(num_evaluations)[::-1]
    known = np.expm1(-ages / truth.time_constant) / np.expm1(-1 / truth.time_constant)
    shares = curve.share_lost(truth.reading, end * known)
    late = np.maximum(shares, np.minimum(1.0, shares + 0.6 * (1 - ages)))
    of_rows = [shares if split is Split.TRAIN else late for _, _, _, split, *_ in questions.keys]
    means = planted_means(questions, trial.populations, np.stack(of_rows, axis=1))
    steps = np.maximum(1, np.round(trial.steps * ages)).astype(int)
    evaluations = []
    for index, (age, step) in enumerate(zip(ages, steps, strict=True)):
        last = index == len(ages) - 1
        evaluations.append(
            Evaluation(
                step=int(step),
                exposures=100.0 * float(age),
                tokens=int(trial.tokens * age) + 1,
                learning_rate=0.01,
                train_loss_bits=float(means[index].mean()),
                train_seconds=60.0 * float(age),
                parameter_norm=float(np.sqrt(trial.parameters.total) * (0.3 + 0.7 * age)),
                losses=_table(questions, means[index], trial.populations, last),
            )
        )
    return TrialResult(
        trial_id=trial.trial_id,
        spec=trial.spec,
        populations=trial.populations,
        parameters=trial.parameters,
        vocab_size=trial.parameters.model.embedding // trial.spec.model.hidden_size,
        num_steps=trial.steps,
        stop_reason=StopReason.LENGTH,
        num_workers=1,
        evaluations=tuple(evaluations),
        provenance=Provenance(git_commit="planted", versions={}, host="planted", device="none"),
    )


def _table(questions: QuestionSet, means: Floats, populations: tuple[PopulationFacts, ...], last: bool) -> LossTable:
    """Return the losses of one evaluation, with histograms if it is the last."""
    rows = []
    most = planted_means(questions, populations, np.ones(len(questions.keys)))
    for key, count, mean, unknown in zip(questions.keys, questions.num_texts, means, most, strict=True):
        kind, subject, part, split, population, frequency_class = key
        bins: tuple[int, ...] = ()
        if last:  # every answer is either known or guessed uniformly
            missed = round(count * min(1.0, mean / unknown)) if unknown else 0
            histogram = np.zeros(1 + len(HISTOGRAM_EDGES_BITS), np.int64)
            histogram[0] = count - missed
            histogram[np.searchsorted(HISTOGRAM_EDGES_BITS, unknown, side="right")] += missed
            bins = tuple(histogram.tolist())
        rows.append(
            LossRow(
                kind=kind,
                subject=subject,
                part=part,
                split=split,
                population=population,
                frequency_class=frequency_class,
                sum_bits=float(mean * count),
                sum_squares_bits2=float(mean**2 * count),
                num_evaluated=count,
                num_texts=count,
                histogram=bins,
            )
        )
    return LossTable(rows=tuple(rows))
