"""Losses in bits as sums and counts: of one kind, subject, part and split in a row, of everything in a table."""

import math
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict

from raycap.spec import Kind, Split


class Record(BaseModel):
    """Frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


HISTOGRAM_EDGES_BITS = tuple(2.0 ** (i / 2) for i in range(-12, 13))
"""Half an octave apart, from 1/64 to 64 bits; the first bin lies below, the last above."""


class Part(StrEnum):
    """Which part of a text was measured."""

    ANSWER = "answer"
    """The answer asked for, end token included; in a text without a question, a value or a name."""
    CHAIN = "chain"
    """The steps that a chain of thought spells before the answer."""


def is_trained(kind: Kind, split: Split) -> bool:
    """Whether texts of a kind in a split are trained on: single hops always are."""
    return split is Split.TRAIN or kind.hops < 2


class LossRow(Record):
    """Loss of one part of the texts of one kind about one subject."""

    kind: Kind
    subject: str
    """What the part tells: an attribute, a relation, or "name"."""
    part: Part = Part.ANSWER
    split: Split = Split.TRAIN
    """The component that is held out of questions of two or more hops. Single hops are classed by it too, but trained."""
    population: int = 0
    """0; under fill 1 for the second population."""
    sum_bits: float
    """Sum over the evaluated texts."""
    sum_squares_bits2: float
    """Sum of squares over the evaluated texts."""
    num_evaluated: int
    num_texts: int
    """How many such texts there are; larger than num_evaluated where a sample was evaluated."""
    histogram: tuple[int, ...] = ()
    """Evaluated texts by loss, a count per bin of HISTOGRAM_EDGES_BITS; kept of a trial's last evaluation alone."""

    @property
    def key(self) -> tuple[Kind, str, Part, Split, int]:
        """What tells rows of a table apart."""
        return self.kind, self.subject, self.part, self.split, self.population

    @property
    def trained(self) -> bool:
        """Whether such texts are trained on."""
        return is_trained(self.kind, self.split)

    @property
    def mean_bits(self) -> float:
        """Mean loss of a text in bits."""
        return self.sum_bits / self.num_evaluated

    @property
    def total_bits(self) -> float:
        """Loss summed over all such texts; a sample is scaled up."""
        return self.mean_bits * self.num_texts

    @property
    def total_variance_bits2(self) -> float:
        """Variance of total_bits from sampling without replacement; 0 where every text was evaluated."""
        n = self.num_evaluated
        if n >= self.num_texts:
            return 0.0
        if n < 2:
            return math.inf
        variance = max(self.sum_squares_bits2 / n - self.mean_bits**2, 0.0) * n / (n - 1)
        return variance / n * (1 - n / self.num_texts) * self.num_texts**2

    def __add__(self, other: Self) -> Self:
        assert (self.key, self.num_texts) == (other.key, other.num_texts)
        return self.model_copy(
            update={
                "sum_bits": self.sum_bits + other.sum_bits,
                "sum_squares_bits2": self.sum_squares_bits2 + other.sum_squares_bits2,
                "num_evaluated": self.num_evaluated + other.num_evaluated,
                "histogram": tuple(map(sum, zip(self.histogram, other.histogram, strict=True))),
            }
        )


class LossTable(Record):
    """Rows of disjoint sets of texts. Tables add up; means are taken last."""

    rows: tuple[LossRow, ...]

    def __add__(self, other: Self) -> Self:
        mine = {row.key: row for row in self.rows}
        for row in other.rows:
            mine[row.key] = mine[row.key] + row if row.key in mine else row
        return self.model_copy(update={"rows": tuple(mine.values())})

    def without_histograms(self) -> Self:
        """The same sums and counts."""
        return self.model_copy(update={"rows": tuple(row.model_copy(update={"histogram": ()}) for row in self.rows)})

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that were evaluated, the headline last."""
        return tuple(kind for kind in Kind if any(row.kind is kind for row in self.rows))

    def select(
        self,
        kind: Kind,
        *,
        population: int | None = 0,
        part: Part = Part.ANSWER,
        split: Split | None = None,
        subject: str | None = None,
    ) -> "LossTable":
        """The rows of one kind and part: those trained, or those of one split.

        `population` None takes all of them. Raises KeyError where there are none.
        """
        rows = tuple(
            row
            for row in self.rows
            if row.kind == kind
            and row.part == part
            and (row.trained if split is None else row.split == split)
            and population in (None, row.population)
            and subject in (None, row.subject)
        )
        if not rows:
            raise KeyError(
                f"no {kind} losses ({part}, {split or 'trained'}); evaluated: {[str(k) for k in self.kinds]}"
            )
        return LossTable(rows=rows)

    def by_subject(self) -> dict[str, "LossTable"]:
        """The rows of each subject, in order."""
        subjects = dict.fromkeys(row.subject for row in self.rows)
        return {subject: LossTable(rows=tuple(r for r in self.rows if r.subject == subject)) for subject in subjects}

    @property
    def num_texts(self) -> int:
        """How many texts the rows stand for."""
        return sum(row.num_texts for row in self.rows)

    @property
    def total_bits(self) -> float:
        """Loss summed over all texts the rows stand for; samples are scaled up."""
        return sum(row.total_bits for row in self.rows)

    @property
    def total_standard_error_bits(self) -> float:
        """Standard error of total_bits from sampled evaluation."""
        return math.sqrt(sum(row.total_variance_bits2 for row in self.rows))

    @property
    def mean_bits(self) -> float:
        """Mean loss of a text."""
        return self.total_bits / self.num_texts

    @property
    def standard_error_bits(self) -> float:
        """Standard error of mean_bits."""
        return self.total_standard_error_bits / self.num_texts

    def generalisation(self, population: int = 0, part: Part = Part.ANSWER) -> dict[str, dict[str, float]]:
        """Mean loss in bits per split and kind: which component is new x how many hops are asked.

        Single hops are all trained; theirs are the losses of the facts that hold the component that is new to the others.
        A chain of thought is given to its answer in evaluation: whether it is known itself, part CHAIN tells.
        """
        matrix: dict[str, dict[str, float]] = {}
        for split in Split:
            for kind in self.kinds:
                rows = [
                    r for r in self.rows if (r.split, r.kind, r.part, r.population) == (split, kind, part, population)
                ]
                if rows:
                    matrix.setdefault(str(split), {})[str(kind)] = LossTable(rows=tuple(rows)).mean_bits
        return matrix
