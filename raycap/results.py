"""What a trial leaves behind: losses as sums and counts, parameter counts per group, and where it all came from.

Measurements are stored, estimates are derived: every capacity under every scheme is computed from these records
afterwards, without retraining.
"""

import importlib.metadata
import math
import subprocess
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from raycap.spec import SweepSpec, TrialSpec

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


def source_commit() -> str:
    """Commit of the source tree raycap runs from ("+changes" if it is dirty), or the installed version without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return f"raycap {importlib.metadata.version('raycap')}"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    commit = git("rev-parse", "HEAD").strip()
    return f"{commit}+changes" if git("status", "--porcelain", "--", "raycap").strip() else commit


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


class PlannedTrial(Record):
    """A resolved trial and what is known of it before training; counted and computed, not measured."""

    trial_id: str
    label: str
    """For people to read; nothing parses it."""
    coordinates: dict[str, Any]
    """Dotted path -> value along the grid's axes."""
    spec: TrialSpec
    population: PopulationFacts
    parameters: ParameterCounts
    dataset_bits: dict[str, float]
    """Code length by selection scheme, under the first encoding scheme of the sweep, for the most hops asked."""
    tokens: int
    steps: int
    tokens_exact: bool
    """False for BPE, whose token count (and steps, where length is in tokens) is estimated on part of the population."""
    warnings: tuple[str, ...]

    def demanded_bits_per_param(self, selection: str) -> float:
        """Code length over all parameters."""
        return self.dataset_bits[selection] / self.parameters.total


class SweepRecord(Record):
    """What a sweep is: its spec, its question, and its trials in order. Stored as sweep.json."""

    spec: SweepSpec
    question: str
    spec_yaml: str
    """The sweep file as it was written, overrides not included."""
    trials: tuple[PlannedTrial, ...]


class RunRecord(Record):
    """How the last run of a sweep that trained something went. Stored as run.json."""

    wall_seconds: float
    slots: int
    """Trials that could run at once."""


class Failure(Record):
    """Why the last run of a trial failed. Stored as failure.json beside its checkpoints."""

    trial_id: str
    cause: str
    """The root exception, type and message in one line."""
    traceback: str
