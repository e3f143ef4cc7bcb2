"""Results of trials that nobody ran, from a law and a reading that we choose: to see what the analysis makes of a truth.

A planted trial loses the same share of every answer's entropy. What share follows from its bits: `share_curves` tabulates
the learned bits under every reading against the share lost, and inverts the one that is taken to be true.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.analysis.analyse import headline_bits
from raycap.analysis.capacity import uniform_bits
from raycap.analysis.measurements import Floats, Ints, Losses, QuestionSet, question_set
from raycap.analysis.readings import Reading
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.solve_population import expected_trained
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
from raycap.spec import AnalysisSpec, Kind, Split, TrialSpec

SHARES = np.concatenate([np.linspace(0, 0.9, 901), 1 - np.geomspace(0.1, 1e-8, 1200)[1:], np.linspace(1, 4, 301)])
"""Shares of the answers' entropy lost; more than 1 is worse than chance. Just below it hops are told by a steep curve."""


@dataclass(frozen=True)
class Truth:
    """How planted models store: smooth-min(bits_per_param P0 (P / P0)^gamma, H) under a reading, with noise."""

    reading: Reading
    bits_per_param: float = 2.0
    """At P0, the geometric mean of the sizes."""
    gamma: float = 1.0
    sharpness: float = 8.0
    noise: float = 0.05
    """Standard deviation of the log of a trial's capacity, by itself."""
    cell_noise: float = 0.0
    """The same of a cell, shared by its seeds."""
    time_constant: float = 0.25
    """Of the approach to the final bits, as a share of all exposures."""

    def learned_bits(
        self, num_params: Floats, dataset_bits: Floats, cells: Ints, *, rng: np.random.Generator, num: int = 1
    ) -> Floats:
        """Bits that each trial ends up with in `num` sweeps, (num, n)."""
        log_params = np.log(num_params)
        u = np.log(self.bits_per_param) + log_params.mean() + self.gamma * (log_params - log_params.mean())
        u = u + self.noise * rng.standard_normal((num, len(num_params)))
        u += self.cell_noise * rng.standard_normal((num, int(cells.max()) + 1))[:, cells]
        return np.exp(-np.logaddexp(-self.sharpness * u, -self.sharpness * np.log(dataset_bits)) / self.sharpness)


@dataclass(frozen=True)
class ShareCurves:
    """Learned bits of a population's questions under every reading against the share lost, each (len(SHARES),)."""

    losses: Losses
    learned_bits: dict[Reading, Floats]

    def share_lost(self, reading: Reading, learned_bits: Floats) -> Floats:
        """What must be lost to know so many bits."""
        return np.interp(-learned_bits, -self.learned_bits[reading], SHARES)

    def bits_at(self, reading: Reading, share_lost: Floats) -> Floats:
        """What is known at a share lost."""
        return np.interp(share_lost, SHARES, self.learned_bits[reading])

    def slope_bits(self, reading: Reading, share_lost: Floats) -> Floats:
        """Bits not learned for a change of all losses by a factor e."""
        slopes = -np.gradient(self.learned_bits[reading], SHARES)
        return np.interp(share_lost, SHARES, slopes) * share_lost


def share_curves(trials: Sequence[PlannedTrial], analysis: AnalysisSpec) -> list[ShareCurves]:
    """Those of each trial; trials that are asked the same of the same people share one."""
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
    """What would be measured of a trial, and how many texts of it there are expected to be."""
    keys: list[LossKey] = []
    num_texts = []
    held_out = [Split.TRAIN, *spec.questions.held_out.fractions]
    for number, population in enumerate(populations):
        for kind in spec.questions.kinds:
            subjects = [NAME_SUBJECT] if kind.names_are_measured else []
            subjects += [] if kind is Kind.NAME else [*population.attribute_entropies_bits, *population.relations]
            whole = population.num_profiles * len(population.relations) ** max(kind.hops - 1, 0)
            trained = expected_trained(population, spec.questions, kind)
            parts = (Part.CHAIN, Part.ANSWER) if spec.questions.chain_of_thought and kind.hops > 1 else (Part.ANSWER,)
            for split in held_out if kind.hops > 1 else held_out[:1]:
                for part in parts:
                    for subject in subjects:
                        count = whole if trained is None else round(trained.get(subject, 0))
                        if split is not Split.TRAIN:
                            count = round(whole * spec.questions.held_out.fractions[split])
                        if count:
                            keys.append((kind, subject, part, split, number))
                            num_texts.append(count)
    return tuple(keys), tuple(num_texts)


def planted_means(questions: QuestionSet, populations: tuple[PopulationFacts, ...], shares: Floats) -> Floats:
    """Mean losses at shares (..., K) of the entropy of what is told; nothing lost of a name is log2 N."""
    least, most = np.empty(len(questions.keys)), np.empty(len(questions.keys))
    for place, (kind, subject, part, _, number) in enumerate(questions.keys):
        population = populations[number]
        told = uniform_bits(population)
        if part is Part.CHAIN:
            least[place], most[place] = 0.0, (kind.hops - 1) * told[population.relations[0]]
        else:
            most[place] = told[subject]
            least[place] = np.log2(population.num_profiles) if subject == NAME_SUBJECT else 0.0
    return least + shares * (most - least)


def planted_losses(questions: QuestionSet, populations: tuple[PopulationFacts, ...], shares: Floats) -> Losses:
    """Losses at shares (E, K), every text measured and losing the same."""
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
    """A result for every trial of a sweep; `cells` number the cells they belong to."""
    curves = share_curves(trials, analysis)
    num_params = np.array([trial.parameters.total for trial in trials], dtype=float)
    dataset_bits = np.array([curve.learned_bits[truth.reading][0] for curve in curves])
    (ends,) = truth.learned_bits(num_params, dataset_bits, cells, rng=rng)
    return [
        _result(trial, curve, truth, float(end), num_evaluations)
        for trial, curve, end in zip(trials, curves, ends, strict=True)
    ]


def _result(trial: PlannedTrial, curve: ShareCurves, truth: Truth, end: float, num_evaluations: int) -> TrialResult:
    """Learned bits approach their end exponentially; what is held out is learned late, when half of the rest is known."""
    questions = curve.losses.questions
    ages = 0.5 ** np.arange(num_evaluations)[::-1]
    known = np.expm1(-ages / truth.time_constant) / np.expm1(-1 / truth.time_constant)
    shares = curve.share_lost(truth.reading, end * known)
    late = np.maximum(shares, np.minimum(1.0, shares + 0.6 * (1 - ages)))
    of_rows = [shares if split is Split.TRAIN else late for _, _, _, split, _ in questions.keys]
    means = planted_means(questions, trial.populations, np.stack(of_rows, axis=1))
    steps = np.maximum(1, np.round(trial.steps * ages)).astype(int)
    evaluations = []
    for place, (age, step) in enumerate(zip(ages, steps, strict=True)):
        last = place == len(ages) - 1
        evaluations.append(
            Evaluation(
                step=int(step),
                exposures=100.0 * float(age),
                tokens=int(trial.tokens * age) + 1,
                learning_rate=0.01,
                train_loss_bits=float(means[place].mean()),
                train_seconds=60.0 * float(age),
                parameter_norm=float(np.sqrt(trial.parameters.total) * (0.3 + 0.7 * age)),
                losses=_table(questions, means[place], trial.populations, last),
            )
        )
    return TrialResult(
        trial_id=trial.trial_id,
        spec=trial.spec,
        populations=trial.populations,
        parameters=trial.parameters,
        vocab_size=1,
        num_steps=trial.steps,
        stop_reason=StopReason.LENGTH,
        num_workers=1,
        evaluations=tuple(evaluations),
        provenance=Provenance(git_commit="planted", versions={}, host="planted", device="none"),
    )


def _table(questions: QuestionSet, means: Floats, populations: tuple[PopulationFacts, ...], last: bool) -> LossTable:
    rows = []
    most = planted_means(questions, populations, np.ones(len(questions.keys)))
    for key, count, mean, unknown in zip(questions.keys, questions.num_texts, means, most, strict=True):
        kind, subject, part, split, population = key
        bins: tuple[int, ...] = ()
        if last:  # as if every answer were either known or not
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
                sum_bits=float(mean * count),
                sum_squares_bits2=float(mean**2 * count),
                num_evaluated=count,
                num_texts=count,
                histogram=bins,
            )
        )
    return LossTable(rows=tuple(rows))
