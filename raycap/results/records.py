"""Stored records of plans, trials and runs: specs, evaluations, parameter counts, failures and provenance.

Only measurements are stored. All estimates, such as capacities under every scheme, are computed from these records
without retraining.
"""

import importlib.metadata
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from raycap.results.losses import Amount, Count, LossTable, PositiveCount, Record
from raycap.spec import Distribution, ModelOfTransformers, RelationStructure, ResolvedModel, SweepSpec, TrialSpec
from raycap.spec.locations import DEFAULT_TRACKING_URI, absolute_location, absolute_tracking_uri

SCHEMA_VERSION = 4
READABLE_VERSIONS = (3, 4)
"""Schema versions of results that can be read. Version 4 added frequency classes, which results of version 3 lack."""
TrialId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
"""See `TrialSpec.trial_id`. Ids are names of folders, so records with other ids are refused."""
NumNames = Annotated[int, Field(ge=1)]
"""A number of possible names. It has no maximum, because there are V^S random strings of S tokens."""
MAX_SHOWN = 40
"""Maximum number of characters shown of a value that is refused."""


def describe_invalid(error: ValidationError) -> str:
    """Return the first problem of a record in one line: its field, the rule, and the value got."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    # For a missing field, an invalid file, or a rule about several fields, the input is a whole section: omit it.
    is_shown = field and first["type"] != "missing" and isinstance(first["input"], str | int | float | None)
    too_long = isinstance(first["input"], int) and first["input"].bit_length() > 512  # Python refuses to print it
    value = "an integer of hundreds of digits" if too_long else repr(first["input"]) if is_shown else ""
    got = f", got {value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 1] + '…'}" if is_shown else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{f'{field}: ' if field else ''}{first['msg'][:1].lower()}{first['msg'][1:]}{got}{more}"


class ParameterCounts(Record):
    """Number of parameters per group."""

    embedding: Count
    attention: Count
    mlp: Count
    norms: Count
    unembedding: Count
    """0 if the embeddings are tied."""
    other: Count = 0
    """Parameters of a model of transformers that belong to no other group, such as state-space mixers."""
    inactive: Count = 0
    """Parameters, also counted in the groups, of the experts that a token is not routed to."""
    base: "ParameterCounts | None" = None
    """Parameters of the frozen model under an adapter, which are not counted in the groups; None without an adapter."""

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embedding + self.non_embedding + self.unembedding

    @property
    def non_embedding(self) -> int:
        """Number of parameters without input and output embeddings."""
        return self.attention + self.mlp + self.norms + self.other

    @property
    def active(self) -> int:
        """Number of parameters that take part in the computation for one token: all, except in a mixture of experts."""
        return self.total - self.inactive

    @property
    def model(self) -> "ParameterCounts":
        """Parameters of the model without an adapter: these, or those of the frozen base."""
        return self.base or self


class ObservedFacts(Record):
    """Numbers of distinct values that occur in a population, for observed accounting (docs/science.md#observed)."""

    num_values: dict[str, Count]
    """Number of distinct answers by subject."""
    num_names: NumNames
    """Number of names that the first, middle and last names that occur can form."""
    num_answered_names: dict[str, Annotated[int, Field(ge=0)]]
    """The same number for the people that each relation leads to, by relation."""


class SubjectPrice(Record):
    """How the facts of a table about one subject are priced (docs/science.md#tables)."""

    distribution: Distribution
    num_values: PositiveCount
    """Number of values that the distribution is over."""
    num_facts: PositiveCount
    """Number of people who have such a fact."""
    frequencies_bits: Amount = 0.0
    """Bits that state the frequencies of an empirical distribution. The code length does not contain them."""


class FrequencyClass(Record):
    """People who occur about equally often in the training texts (docs/science.md#frequencies)."""

    name: str
    num_people: PositiveCount
    frequency: Annotated[float, Field(gt=0)]
    """Mean number of occurrences of a text about them, relative to the mean over all people."""


class PopulationFacts(Record):
    """Numbers of a population that the analysis needs; see docs/science.md#symbols."""

    num_profiles: PositiveCount
    """Number of people N."""
    num_names: NumNames
    """Number of possible full names M."""
    attribute_entropies_bits: dict[str, Amount]
    """Entropy of the distribution that each attribute is drawn from, by attribute."""
    relations: tuple[str, ...]
    relation_entropies_bits: dict[str, Amount] = {}
    """Entropy of an answer about each relation of loaded people that is not a uniform draw (docs/science.md#loaded)."""
    structure: RelationStructure = RelationStructure.UNIFORM
    """Distribution of the relations (docs/science.md#relations)."""
    self_relations: bool = True
    """Whether a uniform relation may lead to the same person."""
    names_given: bool = False
    """Whether the names carry no information because all possible ones exist, as the keys of random pairs do."""
    prices: dict[str, SubjectPrice] = {}
    """Prices of the facts of a table by subject, and of its names; empty for other populations."""
    num_phrasings: PositiveCount = 1
    """Number of phrasings in which each question is asked."""
    frequencies: tuple[FrequencyClass, ...] = ()
    """Frequency classes of the people, from the most frequent; empty if all are equally frequent."""
    observed: ObservedFacts | None = None
    """None if no population was drawn, as in a plan. Code lengths do not need it."""

    def num_facts(self, subject: str) -> int:
        """Return the number of facts about a subject. It is N, except for facts of a table that some people lack."""
        return self.prices[subject].num_facts if subject in self.prices else self.num_profiles


class StopReason(StrEnum):
    """Reason why training ended."""

    LENGTH = "length"
    """The planned length was reached."""
    PLATEAU = "plateau"
    """The training loss reached a plateau."""
    EARLY = "early"
    """The sweep's early stopping rule ended the trial."""


class Evaluation(Record):
    """Losses of the whole population at one step, with the state of training."""

    step: Count
    exposures: Amount
    tokens: Count
    learning_rate: Amount
    train_loss_bits: float
    """Mean training loss per text since the previous evaluation."""
    train_seconds: Amount
    """Seconds spent in training steps so far, without evaluation and checkpoints."""
    phase: Count = 0
    """Number of curriculum phases that ended before this step; 0 if there is no curriculum."""
    parameter_norm: Amount
    """Euclidean norm of all parameters, as used in evaluation."""
    losses: LossTable
    base_losses: LossTable | None = None
    """Losses of the frozen model under an adapter, without histograms; None without an adapter."""

    def without_histograms(self) -> "Evaluation":
        """Return the evaluation without the histograms of its losses."""
        return self.model_copy(update={"losses": self.losses.without_histograms()})


class EarlierStack(Record):
    """A stack in which a trial trained before it continued in another one."""

    until_step: int
    """Last step in this stack."""
    trial_ids: tuple[str, ...]


class Provenance(Record):
    """Code, library versions, machine and stack that produced a result."""

    git_commit: str
    """Commit of the source tree, with "+changes" if it was dirty, or the package version if there is no source tree."""
    versions: dict[str, str]
    host: str
    device: str
    stack: tuple[str, ...] = ()
    """Ids of the trials that trained together at the end, in order, with this one; the numbers of a replica depend
    slightly on the others (docs/clusters.md). Empty if nothing was trained."""
    earlier_stacks: tuple[EarlierStack, ...] = ()
    """Stacks in which the trial trained before, in order, and those of a shorter trial that it continued. Usually empty."""


def source_commit() -> str:
    """Return the commit of the source tree ("+changes" appended if dirty), or the package version if git has none."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        # Git refuses a tree that another user owns, as in a container, unless it is listed in safe.directory.
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
    """Result of a finished trial. Stored as result.json."""

    schema_version: int = SCHEMA_VERSION
    trial_id: TrialId
    spec: TrialSpec
    populations: tuple[PopulationFacts, ...]
    """The population, or under fill the first and the second population."""
    parameters: ParameterCounts
    vocab_size: PositiveCount
    num_steps: Count
    """Number of steps trained; fewer than planned if training stopped early."""
    stop_reason: StopReason
    num_workers: PositiveCount
    evaluations: tuple[Evaluation, ...]
    provenance: Provenance

    @property
    def final(self) -> Evaluation:
        """Evaluation at the last step."""
        return self.evaluations[-1]


class PlannedTrial(Record):
    """A resolved trial with the numbers that are known before training."""

    trial_id: TrialId
    label: str
    """Name for display only; it is never parsed."""
    coordinates: dict[str, Any]
    """Values of the sweep's axes by dotted path."""
    solved: dict[str, Any] = {}
    """Values that the plan computed, such as a number of people for a target in bits, by dotted path."""
    spec: TrialSpec
    populations: tuple[PopulationFacts, ...]
    parameters: ParameterCounts
    dataset_bits: dict[str, Amount]
    """Code length of all populations by selection scheme, for the headline kind under the first encoding scheme."""
    tokens: Count
    steps: PositiveCount
    tokens_exact: bool
    """Whether `tokens` is exact. If not, it is estimated from a part of the texts, as are steps if they follow from it."""
    warnings: tuple[str, ...]

    @model_validator(mode="after")
    def _is_resolved(self) -> Self:
        if not isinstance(self.spec.model, ResolvedModel):
            raise ValueError("spec.model: must have a width in a plan")
        if isinstance(self.spec.model, ModelOfTransformers) and not self.spec.model.is_resolved:
            raise ValueError("spec.model.config: must have hidden_size and num_hidden_layers in a plan")
        if len(self.populations) != (2 if self.spec.fill else 1):
            raise ValueError(f"populations: must be {2 if self.spec.fill else 1}, got {len(self.populations)}")
        if not self.parameters.non_embedding:
            raise ValueError("parameters: must be positive")
        sections = {path.partition(".")[0] for path in self.coordinates}
        if unknown := sorted(sections - TrialSpec.model_fields.keys()):
            raise ValueError(f"coordinates: a trial has no section {unknown[0]!r}")
        return self

    def demanded_bits_per_param(self, selection: str) -> float:
        """Return the code length under a selection scheme divided by the number of parameters."""
        return self.dataset_bits[selection] / self.parameters.total


class SweepRecord(Record):
    """Spec, question and planned trials of a sweep. Stored as sweep.json.

    Paths and URIs of the spec stay as they were written, so that relative paths are valid after the project was moved.
    """

    spec: SweepSpec
    question: str
    spec_yaml: str
    """Text of the sweep file, without overrides."""
    trials: tuple[PlannedTrial, ...] = Field(min_length=1)
    working_directory: str = ""
    """Folder at which relative paths of the spec start; if empty, the working directory of the process. sweep.json has the
    path from the storage to it if the spec's storage is a relative path (see SweepFolder)."""

    @property
    def storage(self) -> str:
        """Absolute path or URI of the storage."""
        return absolute_location(self.spec.storage, self.working_directory)

    @property
    def tracking_uri(self) -> str:
        """Tracking URI, with an absolute path if it is that of a file."""
        return absolute_tracking_uri(self.spec.tracking.uri or DEFAULT_TRACKING_URI, self.working_directory)

    @model_validator(mode="after")
    def _trials_fit(self) -> Self:
        if len({trial.trial_id for trial in self.trials}) < len(self.trials):
            raise ValueError("trials: two have the same trial_id")
        for index, trial in enumerate(self.trials):
            if missing := set(map(str, self.spec.analysis.selections)) - trial.dataset_bits.keys():
                raise ValueError(f"trials.{index}.dataset_bits: {min(missing)} is missing")
        return self


class RunRecord(Record):
    """Duration of the last run of a sweep that trained a trial. Stored as run.json."""

    wall_seconds: Amount
    slots: PositiveCount
    """Number of trials that could run at the same time."""


class CostRecord(Record):
    """Cost of all runs of a sweep so far. Stored as cost.json if the sweep has prices of machines."""

    spent_usd: Amount
    budget_usd: Amount | None = None
    """Bound that the last run was given; None without one."""

    @property
    def left_usd(self) -> float | None:
        """Money that is left of the bound; None without one."""
        return None if self.budget_usd is None else max(0.0, self.budget_usd - self.spent_usd)


class Failure(Record):
    """Failure of the last run of a trial. Stored as failure.json next to its checkpoints."""

    trial_id: TrialId
    cause: str
    """Type and message of the root exception, in one line."""
    traceback: str
    step: Count | None = None
    """Number of steps done, or None if unknown."""


def read_failure(data: bytes, trial_id: str) -> Failure:
    """Parse failure.json. If it is damaged, return a failure without details, since the trial failed nevertheless."""
    try:
        failure = Failure.model_validate_json(data)
    except ValidationError:
        failure = None
    if failure is None or failure.trial_id != trial_id:
        return Failure(trial_id=trial_id, cause="failure.json cannot be read", traceback="")
    return failure


class EarlierTrials(Record):
    """Trials of earlier runs of a sweep that the last run does not include. Stored as earlier.json."""

    labels: dict[str, str]
    """Labels by trial_id."""
