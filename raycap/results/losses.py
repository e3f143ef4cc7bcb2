"""Records of losses in bits, as sums and counts: a row per kind, subject, part and split, and tables of rows."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from raycap.spec import Kind, Split


class Record(BaseModel):
    """Base of all stored records: immutable, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


MAX_COUNT = 2**53
"""Largest stored count: all readers of JSON, and float64, represent integers up to this exactly."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Amount = Annotated[float, Field(ge=0)]
"""A quantity that cannot be negative, such as seconds or bits."""

HISTOGRAM_EDGES_BITS = tuple(2.0 ** (i / 2) for i in range(-12, 13))
"""Edges half an octave apart, from 1/64 to 64 bits. The first bin is below the first edge, the last above the last."""


class Part(StrEnum):
    """Part of a text whose loss is measured."""

    ANSWER = "answer"
    """The answer to the question, end token included; in texts without a question, a value or a name."""
    CHAIN = "chain"
    """The steps of a chain of thought before the answer."""


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LossKey = tuple[Kind, str, Part, Split, int, int]
"""Kind, subject, part, split, index of the population and frequency class of a row of losses."""


def is_trained(kind: Kind, split: Split) -> bool:
    """Whether texts of a kind in a split are trained on. Single hops always are."""
    return split is Split.TRAIN or kind.hops < 2


def select_keys(
    keys: Iterable[LossKey],
    kind: Kind,
    *,
    population: int | None = 0,
    part: Part = Part.ANSWER,
    split: Split | None = None,
    subject: str | None = None,
    frequency_class: int | None = None,
) -> list[int]:
    """Return the indices of the keys of one kind and part.

    Args:
        keys: keys of rows of losses, see `LossRow.key`.
        kind: kind of text.
        population: index of the population, or None for all populations.
        part: part of the text.
        split: split of the questions, or None for all texts that are trained on.
        subject: subject, or None for all subjects.
        frequency_class: frequency class, or None for all classes.
    """
    return [
        index
        for index, (key_kind, key_subject, key_part, key_split, key_population, key_class) in enumerate(keys)
        if (key_kind, key_part) == (kind, part)
        and (is_trained(key_kind, key_split) if split is None else key_split is split)
        and population in (None, key_population)
        and subject in (None, key_subject)
        and frequency_class in (None, key_class)
    ]


def mean_bits(sum_bits: Floats, num_evaluated: Ints, num_texts: Ints) -> Floats:
    """Return the mean loss of a text over K rows, for arrays (..., K) and `num_texts` (K,).

    The mean of each row is weighted by the number of texts that the row stands for, so a sample counts as much as its
    population.
    """
    mean: Floats = (sum_bits / num_evaluated) @ (num_texts / num_texts.sum())
    return mean


def standard_error_bits(sum_bits: Floats, sum_squares_bits2: Floats, num_evaluated: Ints, num_texts: Ints) -> Floats:
    """Return the standard error of `mean_bits` from sampling without replacement; 0 where every text was evaluated.

    Rows are sampled independently. A row of n texts sampled from m contributes the variance s^2 / (n - 1) (1 - n / m) to
    its mean, where s^2 is the mean squared deviation, and infinity if n is 1. See docs/science.md#sampling-error.
    """
    n, m = num_evaluated, num_texts
    if (n >= m).all():
        return np.zeros(n.shape[:-1])
    mean = sum_bits / n
    spread = np.maximum(sum_squares_bits2 / n - mean**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(n >= m, 0.0, np.where(n < 2, np.inf, spread / (n - 1) * (1 - n / m)))
    error: Floats = np.sqrt(variance @ m.astype(float) ** 2) / m.sum()
    return error


class LossRow(Record):
    """Loss of one part of the texts of one kind about one subject."""

    kind: Kind
    subject: str
    """Subject of the measured part: an attribute, a relation, or "name"."""
    part: Part = Part.ANSWER
    split: Split = Split.TRAIN
    """Component that is held out of questions of two or more hops. Single hops are classified by it but always trained."""
    population: Count = 0
    """Index of the population: 0, and under fill 1 for the second population."""
    frequency_class: Count = 0
    """Index of the frequency class of the texts among those of the population; 0 if people are equally frequent."""
    sum_bits: float
    """Sum of losses over the evaluated texts."""
    sum_squares_bits2: float
    """Sum of squared losses over the evaluated texts."""
    num_evaluated: Count
    num_texts: PositiveCount
    """Number of such texts; larger than `num_evaluated` if only a sample of them was evaluated."""
    histogram: tuple[Count, ...] = ()
    """Number of evaluated texts per bin of HISTOGRAM_EDGES_BITS; stored for a trial's last evaluation only."""

    @property
    def key(self) -> LossKey:
        """Identity of a row within its table."""
        return self.kind, self.subject, self.part, self.split, self.population, self.frequency_class

    @property
    def trained(self) -> bool:
        """Whether such texts are trained on."""
        return is_trained(self.kind, self.split)

    @property
    def mean_bits(self) -> float:
        """Mean loss of a text in bits."""
        return self.sum_bits / self.num_evaluated

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
    """Rows of losses of disjoint sets of texts.

    Tables are added row by row, as sums and counts; means are computed from the result.
    """

    rows: tuple[LossRow, ...]

    def __add__(self, other: Self) -> Self:
        rows = {row.key: row for row in self.rows}
        for row in other.rows:
            rows[row.key] = rows[row.key] + row if row.key in rows else row
        return self.model_copy(update={"rows": tuple(rows.values())})

    def without_histograms(self) -> Self:
        """Return the table with the same sums and counts and without histograms."""
        return self.model_copy(update={"rows": tuple(row.model_copy(update={"histogram": ()}) for row in self.rows)})

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds that were evaluated; the headline kind is the last."""
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
        """Return the rows of one kind and part. See `select_keys`, which documents the arguments.

        Raises:
            KeyError: if there are none.
        """
        keys = (row.key for row in self.rows)
        indices = select_keys(keys, kind, population=population, part=part, split=split, subject=subject)
        if not indices:
            raise KeyError(
                f"no {kind} losses ({part}, {split or 'trained'}); evaluated: {[str(k) for k in self.kinds]}"
            )
        return LossTable(rows=tuple(self.rows[index] for index in indices))

    def by_subject(self) -> dict[str, "LossTable"]:
        """Return a table per subject, in order of their first rows."""
        subjects = dict.fromkeys(row.subject for row in self.rows)
        return {subject: LossTable(rows=tuple(r for r in self.rows if r.subject == subject)) for subject in subjects}

    @property
    def num_texts(self) -> int:
        """Number of texts that the rows stand for."""
        return sum(row.num_texts for row in self.rows)

    @property
    def mean_bits(self) -> float:
        """Mean loss of a text in bits; see the function `mean_bits`."""
        sums, _, counts, texts = self._arrays
        return float(mean_bits(sums, counts, texts))

    @property
    def standard_error_bits(self) -> float:
        """Standard error of `mean_bits`; see the function `standard_error_bits`."""
        return float(standard_error_bits(*self._arrays))

    @property
    def _arrays(self) -> tuple[Floats, Floats, Ints, Ints]:
        """Arguments of `standard_error_bits`, each (K,)."""
        sums, squares = ([row.sum_bits for row in self.rows], [row.sum_squares_bits2 for row in self.rows])
        counts, texts = ([row.num_evaluated for row in self.rows], [row.num_texts for row in self.rows])
        return np.array(sums), np.array(squares), np.array(counts), np.array(texts)

    def generalisation(self, population: int = 0, part: Part = Part.ANSWER) -> dict[str, dict[str, float]]:
        """Return the mean loss in bits by split and kind: the generalisation matrix (docs/science.md#splits).

        Single hops are always trained. Their losses in a split are those of the facts with the component that the split
        holds out of longer questions. The loss of the answer after a chain of thought is conditional on the right
        chain; the loss of the chain itself is `Part.CHAIN`.
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
