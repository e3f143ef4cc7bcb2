"""Trial results as arrays: what the analysis computes with, a few kilobytes a trial instead of thousands of objects."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts.splits import followed_share
from raycap.results import (
    HISTOGRAM_EDGES_BITS,
    Evaluation,
    ParameterCounts,
    Part,
    PlannedTrial,
    PopulationFacts,
    Provenance,
    StopReason,
    TrialResult,
    is_trained,
)
from raycap.spec import HeldOut, Kind, Split, TrialSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LossKey = tuple[Kind, str, Part, Split, int]
"""Kind, subject, part, split and population, as LossRow.key."""


class QuestionSet(NamedTuple):
    """What trials must share to be read together: who was asked what. Hashable."""

    populations_json: str
    chain_of_thought: bool
    relations_held_out: float
    keys: tuple[LossKey, ...]
    num_texts: tuple[int, ...]


def question_set(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...], keys: tuple[LossKey, ...], num_texts: tuple[int, ...]
) -> QuestionSet:
    """Who was asked what in a trial."""
    people = json.dumps([population.model_dump(mode="json") for population in populations])
    return QuestionSet(people, spec.questions.chain_of_thought, spec.questions.held_out.relations, keys, num_texts)


@dataclass(frozen=True)
class Losses:
    """E evaluations of trials that were asked the same, in K rows of losses each: many a LossTable at once."""

    asked: QuestionSet
    populations: tuple[PopulationFacts, ...]
    sum_bits: Floats
    """(E, K), and so are the next two."""
    sum_squares_bits2: Floats
    num_evaluated: Ints

    @classmethod
    def of(
        cls, spec: TrialSpec, populations: tuple[PopulationFacts, ...], evaluations: Iterable[Evaluation]
    ) -> "Losses":
        """Those of one trial."""
        tables = [evaluation.losses.rows for evaluation in evaluations]
        num_texts = tuple(row.num_texts for row in tables[0])
        asked = question_set(spec, populations, tuple(row.key for row in tables[0]), num_texts)
        return cls(
            asked,
            populations,
            np.array([[row.sum_bits for row in rows] for rows in tables]),
            np.array([[row.sum_squares_bits2 for row in rows] for rows in tables]),
            np.array([[row.num_evaluated for row in rows] for rows in tables]),
        )

    @classmethod
    def joined(cls, parts: list["Losses"]) -> "Losses":
        """One after the other; they must have been asked the same."""
        sums = np.concatenate([part.sum_bits for part in parts])
        squares = np.concatenate([part.sum_squares_bits2 for part in parts])
        counts = np.concatenate([part.num_evaluated for part in parts])
        return cls(parts[0].asked, parts[0].populations, sums, squares, counts)

    def __getitem__(self, evaluations: Any) -> "Losses":
        """Some of the evaluations."""
        return Losses(
            self.asked,
            self.populations,
            self.sum_bits[evaluations],
            self.sum_squares_bits2[evaluations],
            self.num_evaluated[evaluations],
        )

    def scaled(self, factor: float) -> "Losses":
        """All losses times a factor."""
        squares = self.sum_squares_bits2 * factor**2
        return Losses(self.asked, self.populations, self.sum_bits * factor, squares, self.num_evaluated)

    def shifted(self, column: int, by_bits: Floats) -> "Losses":
        """Another mean loss of one row, by so much at each evaluation, (E,)."""
        sums = self.sum_bits.copy()
        sums[:, column] += by_bits * self.num_evaluated[:, column]
        return Losses(self.asked, self.populations, sums, self.sum_squares_bits2, self.num_evaluated)

    @property
    def num_evaluations(self) -> int:
        """E."""
        return len(self.sum_bits)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that were evaluated, the headline last."""
        return tuple(kind for kind in Kind if any(key[0] is kind for key in self.asked.keys))

    def followed(self, population: int) -> float:
        """Share of the relations that longer questions follow."""
        held_out = HeldOut(relations=self.asked.relations_held_out)
        return followed_share(held_out, len(self.populations[population].relations))

    def columns(
        self,
        kind: Kind,
        *,
        population: int | None = 0,
        part: Part = Part.ANSWER,
        split: Split | None = None,
        subject: str | None = None,
    ) -> list[int]:
        """Which rows are of one kind and part: those trained, or those of one split; `population` None takes all."""
        return [
            place
            for place, key in enumerate(self.asked.keys)
            if (key[0], key[2]) == (kind, part)
            and (is_trained(key[0], key[3]) if split is None else key[3] is split)
            and population in (None, key[4])
            and subject in (None, key[1])
        ]

    def subjects(self, kind: Kind, population: int = 0) -> list[str]:
        """Subjects that trained texts tell, in order."""
        return list(dict.fromkeys(self.asked.keys[place][1] for place in self.columns(kind, population=population)))

    def num_texts(self, columns: list[int]) -> int:
        """How many texts some rows stand for."""
        return sum(self.asked.num_texts[column] for column in columns)

    def mean_bits(self, columns: list[int]) -> Floats:
        """Mean loss of a text of some rows at each evaluation, (E,); samples are scaled up to what they stand for."""
        weights = self._num_texts[columns] / self.num_texts(columns)
        return (self.sum_bits[:, columns] / self.num_evaluated[:, columns]) @ weights

    def standard_error_bits(self, columns: list[int]) -> Floats:
        """Standard error of `mean_bits` from sampling without replacement, (E,)."""
        n, whole = self.num_evaluated[:, columns], self._num_texts[columns]
        if (n >= whole).all():
            return np.zeros(self.num_evaluations)
        mean = self.sum_bits[:, columns] / n
        spread = np.maximum(self.sum_squares_bits2[:, columns] / n - mean**2, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.where(n >= whole, 0.0, np.where(n < 2, np.inf, spread / (n - 1) * (1 - n / whole)))
        return np.sqrt(variance @ whole.astype(float) ** 2) / whole.sum()

    @cached_property
    def _num_texts(self) -> Ints:
        return np.array(self.asked.num_texts)


class Curve(NamedTuple):
    """A trial's evaluations but for the losses, each (E,)."""

    step: Ints
    exposures: Floats
    tokens: Ints
    learning_rate: Floats
    train_loss_bits: Floats
    train_seconds: Floats
    phase: Ints
    parameter_norm: Floats

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation]) -> "Curve":
        """Those of some evaluations."""
        return cls(*(np.array([getattr(evaluation, name) for evaluation in evaluations]) for name in cls._fields))


@dataclass(frozen=True)
class Measured:
    """A trial's result without its spec, which the plan has."""

    trial_id: str
    parameters: ParameterCounts
    stop_reason: StopReason
    num_workers: int
    provenance: Provenance
    curve: Curve
    losses: Losses
    histograms: Ints
    """Texts by loss at the last evaluation, (K, bins)."""

    @classmethod
    def of(cls, result: TrialResult) -> "Measured":
        """A whole result (see `check_whole`) in arrays."""
        evaluations = result.evaluations
        bins = 1 + len(HISTOGRAM_EDGES_BITS)
        histograms = [row.histogram or (0,) * bins for row in result.final.losses.rows]
        return cls(
            result.trial_id,
            result.parameters,
            result.stop_reason,
            result.num_workers,
            result.provenance,
            Curve.of(evaluations),
            Losses.of(result.spec, result.populations, evaluations),
            np.array(histograms),
        )


def cell(spec: TrialSpec) -> str:
    """What trials of one cell share: everything but seeds. Under fill each seed may go on from a parent of its own."""

    def seedless(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: seedless(value) for key, value in tree.items() if key not in ("seed", "order_seed", "parent")}
        return tree

    return json.dumps(seedless(spec.model_dump(mode="json")), sort_keys=True)


def cells(trials: Iterable[PlannedTrial]) -> dict[str, int]:
    """Number of the cell each trial belongs to, by trial_id."""
    numbers: dict[str, int] = {}
    return {trial.trial_id: numbers.setdefault(cell(trial.spec), len(numbers)) for trial in trials}
