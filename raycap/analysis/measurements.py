"""Trial results as NumPy arrays, a few kilobytes per trial, and the cells that trials belong to."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts.splits import followed_share
from raycap.results import (
    HISTOGRAM_EDGES_BITS,
    Evaluation,
    LossKey,
    LossTable,
    ModelLosses,
    ParameterCounts,
    Part,
    PlannedTrial,
    PopulationFacts,
    Provenance,
    StopReason,
    TrialResult,
    mean_bits,
    select_keys,
    standard_error_bits,
)
from raycap.spec import HeldOut, Kind, Split, TrialSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class QuestionSet(NamedTuple):
    """The populations and the rows of questions that trials must share to be analysed in one array. Hashable."""

    populations_json: str
    chain_of_thought: bool
    relations_held_out: float
    keys: tuple[LossKey, ...]
    num_texts: tuple[int, ...]
    has_base: bool
    """Whether the trials train adapters, so that they have losses of a base."""


def question_set(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...], keys: tuple[LossKey, ...], num_texts: tuple[int, ...]
) -> QuestionSet:
    """Return the question set of a trial from its populations and the keys and sizes of its rows of losses."""
    populations_json = json.dumps([population.model_dump(mode="json") for population in populations])
    return QuestionSet(
        populations_json,
        spec.questions.chain_of_thought,
        spec.questions.held_out.relations,
        keys,
        num_texts,
        spec.adapter is not None,
    )


@dataclass(frozen=True)
class Losses:
    """Losses of E evaluations of trials with the same question set, in K rows each.

    It holds the sums and counts of E tables of type `LossTable` as arrays, with one column per row of the tables.
    """

    questions: QuestionSet
    populations: tuple[PopulationFacts, ...]
    sum_bits: Floats
    """Sums over evaluated texts. This and the next two arrays have shape (E, K)."""
    sum_squares_bits2: Floats
    num_evaluated: Ints
    base: "Losses | None" = None
    """Losses of the frozen model under the adapter of each trial; None for trials without adapters."""

    @classmethod
    def of(
        cls,
        spec: TrialSpec,
        populations: tuple[PopulationFacts, ...],
        evaluations: Iterable[Evaluation | ModelLosses],
    ) -> "Losses":
        """Return the losses of some evaluations of one trial, in training or afterwards."""
        evaluated = list(evaluations)
        losses = cls._of_tables(spec, populations, [each.losses for each in evaluated])
        of_base = [each.base_losses for each in evaluated if each.base_losses]
        return replace(losses, base=cls._of_tables(spec, populations, of_base)) if spec.adapter else losses

    @classmethod
    def _of_tables(
        cls, spec: TrialSpec, populations: tuple[PopulationFacts, ...], losses: Sequence[LossTable]
    ) -> "Losses":
        tables = [table.rows for table in losses]
        num_texts = tuple(row.num_texts for row in tables[0])
        questions = question_set(spec, populations, tuple(row.key for row in tables[0]), num_texts)
        return cls(
            questions,
            populations,
            np.array([[row.sum_bits for row in rows] for rows in tables]),
            np.array([[row.sum_squares_bits2 for row in rows] for rows in tables]),
            np.array([[row.num_evaluated for row in rows] for rows in tables]),
        )

    @classmethod
    def joined(cls, parts: list["Losses"]) -> "Losses":
        """Concatenate losses along the evaluations. They must have the same question set."""
        sums = np.concatenate([part.sum_bits for part in parts])
        squares = np.concatenate([part.sum_squares_bits2 for part in parts])
        counts = np.concatenate([part.num_evaluated for part in parts])
        bases = [part.base for part in parts if part.base]
        base = cls.joined(bases) if bases else None
        return cls(parts[0].questions, parts[0].populations, sums, squares, counts, base)

    def __getitem__(self, evaluations: Any) -> "Losses":
        """Return the losses of some evaluations, selected as in NumPy by a mask, a slice or indices."""
        return Losses(
            self.questions,
            self.populations,
            self.sum_bits[evaluations],
            self.sum_squares_bits2[evaluations],
            self.num_evaluated[evaluations],
            self.base[evaluations] if self.base else None,
        )

    def scaled(self, factor: float) -> "Losses":
        """Return the losses with every loss, except those of a base, multiplied by a factor."""
        return replace(self, sum_bits=self.sum_bits * factor, sum_squares_bits2=self.sum_squares_bits2 * factor**2)

    def shifted(self, column: int, by_bits: Floats) -> "Losses":
        """Return the losses with the mean of one row increased by `by_bits` (E,)."""
        sums = self.sum_bits.copy()
        sums[:, column] += by_bits * self.num_evaluated[:, column]
        return replace(self, sum_bits=sums)

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations E."""
        return len(self.sum_bits)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds that were evaluated; the headline kind is the last."""
        return tuple(kind for kind in Kind if any(key[0] is kind for key in self.questions.keys))

    def followed(self, population: int) -> float:
        """Return the share of a population's relations that trained questions of several hops follow."""
        held_out = HeldOut(relations=self.questions.relations_held_out)
        return followed_share(held_out, len(self.populations[population].relations))

    def columns(
        self,
        kind: Kind,
        *,
        population: int | None = 0,
        part: Part = Part.ANSWER,
        split: Split | None = None,
        subject: str | None = None,
        frequency_class: int | None = None,
    ) -> list[int]:
        """Return the indices of the rows of one kind and part. See `select_keys`, which documents the arguments."""
        return select_keys(
            self.questions.keys,
            kind,
            population=population,
            part=part,
            split=split,
            subject=subject,
            frequency_class=frequency_class,
        )

    def subjects(self, kind: Kind, population: int = 0) -> list[str]:
        """Return the subjects of trained texts of a kind, in order of their rows."""
        columns = self.columns(kind, population=population)
        return list(dict.fromkeys(self.questions.keys[column][1] for column in columns))

    def num_texts(self, columns: list[int]) -> int:
        """Return the number of texts that some rows stand for."""
        return sum(self.questions.num_texts[column] for column in columns)

    def mean_bits(self, columns: list[int]) -> Floats:
        """Return the mean loss of a text of some rows, (E,); see `raycap.results.mean_bits`."""
        return mean_bits(self.sum_bits[:, columns], self.num_evaluated[:, columns], self._num_texts[columns])

    def standard_error_bits(self, columns: list[int]) -> Floats:
        """Return the standard error of `mean_bits`, (E,); see `raycap.results.standard_error_bits`."""
        return standard_error_bits(
            self.sum_bits[:, columns],
            self.sum_squares_bits2[:, columns],
            self.num_evaluated[:, columns],
            self._num_texts[columns],
        )

    @cached_property
    def _num_texts(self) -> Ints:
        return np.array(self.questions.num_texts)


class Curve(NamedTuple):
    """Everything that a trial's evaluations hold beside the losses; each field has shape (E,)."""

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
        """Return the curve of some evaluations."""
        return cls(*(np.array([getattr(evaluation, name) for evaluation in evaluations]) for name in cls._fields))


@dataclass(frozen=True)
class Measured:
    """A trial's result as arrays, without its spec, which is in the plan."""

    trial_id: str
    parameters: ParameterCounts
    stop_reason: StopReason
    num_workers: int
    provenance: Provenance
    curve: Curve
    losses: Losses
    histograms: Ints
    """Counts of texts by loss at the last evaluation, (K, bins); see `HISTOGRAM_EDGES_BITS`."""

    @classmethod
    def of(cls, result: TrialResult) -> "Measured":
        """Convert a result that has passed `checks.check_own`."""
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
    """Return a key that trials of one cell share: the spec as JSON, without seeds.

    The parent is left out too, since under fill each seed may start from a different saved model.
    """

    def seedless(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: seedless(value) for key, value in tree.items() if key not in ("seed", "order_seed", "parent")}
        return tree

    return json.dumps(seedless(spec.model_dump(mode="json")), sort_keys=True)


def cells(trials: Iterable[PlannedTrial]) -> dict[str, int]:
    """Return the index of each trial's cell by trial_id, from 0 in order of first occurrence."""
    indices: dict[str, int] = {}
    return {trial.trial_id: indices.setdefault(cell(trial.spec), len(indices)) for trial in trials}
