"""What a trial leaves behind: losses as sums and counts, parameter counts per group, and where it all came from.

Measurements are stored, estimates are derived: every capacity under every scheme is computed from these records
afterwards, without retraining.
"""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict

from raycap.spec import TrialSpec

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LossRow(Record):
    """Loss of whole answers (end token included) to the questions of one kind."""

    hops: int
    subject: str
    sum_bits: float
    """Sum over the evaluated questions."""
    sum_squares_bits2: float
    """Sum of squares over the evaluated questions."""
    num_evaluated: int
    num_questions: int
    """How many such questions there are; larger than num_evaluated where a sample was evaluated."""

    @property
    def mean_bits(self) -> float:
        """Mean loss of a question in bits."""
        return self.sum_bits / self.num_evaluated

    @property
    def standard_error_bits(self) -> float:
        """Standard error of mean_bits from sampling without replacement; 0 where every question was evaluated."""
        n = self.num_evaluated
        if n >= self.num_questions:
            return 0.0
        if n < 2:
            return math.inf
        variance = max(self.sum_squares_bits2 / n - self.mean_bits**2, 0.0) * n / (n - 1)
        return math.sqrt(variance / n * (1 - n / self.num_questions))

    def __add__(self, other: Self) -> Self:
        assert (self.hops, self.subject, self.num_questions) == (other.hops, other.subject, other.num_questions)
        return self.model_copy(
            update={
                "sum_bits": self.sum_bits + other.sum_bits,
                "sum_squares_bits2": self.sum_squares_bits2 + other.sum_squares_bits2,
                "num_evaluated": self.num_evaluated + other.num_evaluated,
            }
        )


class LossTable(Record):
    """Losses per (hops, subject). Tables of disjoint sets of questions add up; means are taken last."""

    rows: tuple[LossRow, ...]

    def __add__(self, other: Self) -> Self:
        mine = {(row.hops, row.subject): row for row in self.rows}
        for row in other.rows:
            key = (row.hops, row.subject)
            mine[key] = mine[key] + row if key in mine else row
        return self.model_copy(update={"rows": tuple(mine.values())})

    @property
    def hops(self) -> tuple[int, ...]:
        """The hops that were evaluated, ascending."""
        return tuple(sorted({row.hops for row in self.rows}))

    def of_hops(self, hops: int) -> tuple[LossRow, ...]:
        """The rows of one number of hops; raises KeyError where it was not evaluated."""
        rows = tuple(row for row in self.rows if row.hops == hops)
        if not rows:
            raise KeyError(f"no {hops}-hop losses; evaluated hops: {list(self.hops)}")
        return rows

    def total_bits(self, hops: int) -> float:
        """Loss summed over the whole population of questions; sampled rows are scaled up from their means."""
        return sum(row.mean_bits * row.num_questions for row in self.of_hops(hops))

    def total_standard_error_bits(self, hops: int) -> float:
        """Standard error of total_bits from sampled evaluation."""
        return math.sqrt(sum((row.standard_error_bits * row.num_questions) ** 2 for row in self.of_hops(hops)))

    def mean_bits(self, hops: int) -> float:
        """Mean loss of a question in bits."""
        return self.total_bits(hops) / sum(row.num_questions for row in self.of_hops(hops))


class ParameterCounts(Record):
    """Parameters per group; the analysis chooses what it divides by."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    unembedding: int
    """0 where the embedding is tied."""

    @property
    def total(self) -> int:
        """Every parameter."""
        return self.embedding + self.attention + self.mlp + self.norms + self.unembedding

    @property
    def non_embedding(self) -> int:
        """Neither input nor output embedding."""
        return self.attention + self.mlp + self.norms


class PopulationFacts(Record):
    """What the analysis must know of the population, in numbers."""

    num_profiles: int
    num_names: int
    """M, the number of possible full names."""
    attribute_entropies_bits: dict[str, float]
    """Entropy of the distribution each attribute is drawn from, by name."""
    relations: tuple[str, ...]


class Evaluation(Record):
    """The whole population measured at one step."""

    step: int
    exposures: float
    tokens: int
    learning_rate: float
    train_loss_bits: float
    """Mean training loss per question since the evaluation before."""
    train_seconds: float
    """Seconds spent in training steps so far, evaluation and checkpoints not counted."""
    losses: LossTable


class Provenance(Record):
    """Which code, which libraries, which machine."""

    git_commit: str
    """Commit of the source tree, "+changes" if it was dirty; the package version where there is no source tree."""
    versions: dict[str, str]
    host: str
    device: str


class TrialResult(Record):
    """Everything a finished trial leaves behind."""

    schema_version: int = SCHEMA_VERSION
    trial_id: str
    spec: TrialSpec
    population: PopulationFacts
    parameters: ParameterCounts
    vocab_size: int
    num_steps: int
    num_workers: int
    evaluations: tuple[Evaluation, ...]
    provenance: Provenance

    @property
    def final(self) -> Evaluation:
        """The evaluation at the last step."""
        return self.evaluations[-1]
