"""What a trial leaves behind: evaluations, parameter counts per group, and where it all came from.

Measurements are stored, estimates are derived: every capacity under every scheme is computed from these records
afterwards, without retraining.
"""

import importlib.metadata
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycap.results.losses import LossTable, Record
from raycap.spec import RelationStructure, SweepSpec, TrialSpec

SCHEMA_VERSION = 3


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


class ObservedFacts(Record):
    """What happens to occur in a population: the reference computes its entropies from this."""

    num_values: dict[str, int]
    """Distinct answers by subject."""
    num_names: int
    """Names that can be made of the first, middle and last names that occur."""
    num_answered_names: dict[str, int]
    """The same of the people that each relation leads to."""


class PopulationFacts(Record):
    """What the analysis must know of the population, in numbers."""

    num_profiles: int
    """N."""
    num_names: int
    """M, the number of possible full names."""
    attribute_entropies_bits: dict[str, float]
    """Entropy of the distribution each attribute is drawn from, by name."""
    relations: tuple[str, ...]
    structure: RelationStructure = RelationStructure.UNIFORM
    """How the relations are drawn."""
    self_relations: bool = True
    """Whether a uniform relation may lead to oneself."""
    names_given: bool = False
    """Names are no information: all that are possible exist (random key -> value pairs)."""
    observed: ObservedFacts | None = None
    """None where nobody was drawn: code lengths do not need it."""


class StopReason(StrEnum):
    """Why training ended."""

    LENGTH = "length"
    """It had its full length."""
    PLATEAU = "plateau"
    """The training loss stood still."""
    EARLY = "early"
    """The sweep's early stop found that more steps would tell nothing new."""


class Evaluation(Record):
    """The whole population measured at one step."""

    step: int
    exposures: float
    tokens: int
    learning_rate: float
    train_loss_bits: float
    """Mean training loss per text since the evaluation before."""
    train_seconds: float
    """Seconds spent in training steps so far, evaluation and checkpoints not counted."""
    phase: int = 0
    """Curriculum phases that had ended before this step; all of them where there is no curriculum."""
    parameter_norm: float
    """Root of the sum of all squared parameters, as they are evaluated."""
    losses: LossTable

    def without_histograms(self) -> "Evaluation":
        """The same sums and counts."""
        return self.model_copy(update={"losses": self.losses.without_histograms()})


class Provenance(Record):
    """Which code, which libraries, which machine."""

    git_commit: str
    """Commit of the source tree, "+changes" if it was dirty; the package version where there is no source tree."""
    versions: dict[str, str]
    host: str
    device: str


def source_commit() -> str:
    """Commit of the source tree raycap runs from ("+changes" if it is dirty), or the version where no git tells one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        # Git reads nobody else's tree unless it is told that this one is meant.
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    version = f"raycap {importlib.metadata.version('raycap')}"
    if not (root / ".git").exists():
        return version
    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "--", "raycap") else commit
    except (OSError, subprocess.CalledProcessError):
        return version


class TrialResult(Record):
    """Everything a finished trial leaves behind."""

    schema_version: int = SCHEMA_VERSION
    trial_id: str
    spec: TrialSpec
    populations: tuple[PopulationFacts, ...]
    """The population; under fill the first and the second."""
    parameters: ParameterCounts
    vocab_size: int
    num_steps: int
    """Steps trained; fewer than planned after a plateau."""
    stop_reason: StopReason
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
    populations: tuple[PopulationFacts, ...]
    parameters: ParameterCounts
    dataset_bits: dict[str, float]
    """Code length of all populations by selection scheme, under the sweep's first encoding scheme, for the headline kind."""
    tokens: int
    steps: int
    tokens_exact: bool
    """False where the token count (and steps, where length is in tokens) is estimated on part of the texts."""
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
    step: int | None = None
    """Steps it had done; None where nobody knows."""


def read_failure(data: bytes, trial_id: str) -> Failure:
    """The failure of a trial from its failure.json. A damaged one still says that it failed."""
    try:
        failure = Failure.model_validate_json(data)
    except ValidationError:
        failure = None
    if failure is None or failure.trial_id != trial_id:
        return Failure(trial_id=trial_id, cause="failure.json cannot be read", traceback="")
    return failure


class EarlierTrials(Record):
    """Trials that an earlier run of a sweep asked for and the last one does not. Stored as earlier.json."""

    labels: dict[str, str]
    """By trial_id."""
