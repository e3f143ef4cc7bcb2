"""Around the trials: how losses are read, where trials run, where results go, and the SweepSpec itself."""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from raycap.spec.base import (
    Accounting,
    EncodingScheme,
    Kind,
    RelationStructure,
    SelectionScheme,
    Spec,
    Text,
    broken_rule,
)
from raycap.spec.facts import RandomPairs, RandomStrings
from raycap.spec.training import Precision, Windows
from raycap.spec.trial import TrialSpec

STORAGE_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")


class Calibration(Spec):
    """Bits per parameter of the same models on random strings or pairs: the law of another sweep."""

    bits_per_param: float = Field(gt=0, le=1000)
    """Its estimate."""
    standard_error: float = Field(gt=0, le=1000)
    """A quarter of the width of its 95 % interval."""


class AnalysisSpec(Spec):
    """How the losses are read. Changing it retrains nothing."""

    schemes: tuple[EncodingScheme, ...] = (EncodingScheme.OPTIMAL,)
    """Encoding schemes to compute capacities for."""
    selections: tuple[SelectionScheme, ...] = tuple(SelectionScheme)
    """Selection schemes to compute capacities for."""

    accounting: Accounting = Accounting.EXACT
    """Where code lengths take their entropies from."""
    per_subject: bool = True
    """Read each subject by its own loss; false takes the mean loss over all, each subject losing the same share."""
    incremental: bool = False
    """Count the bits of one-hop questions beside those of longer ones ("2.1 hops"), the names once."""
    calibration: Calibration | None = None
    """What these models store of data that every scheme reads alike; narrows the comparison of schemes."""

    @field_validator("schemes", "selections")
    @classmethod
    def _unique(cls, members: tuple[Any, ...]) -> tuple[Any, ...]:
        if not members or len(set(members)) != len(members):
            raise broken_rule("must name at least one, each once, got {got}", got=str([str(m) for m in members]))
        return members

    @model_validator(mode="after")
    def _the_reference_needs_subjects(self) -> "AnalysisSpec":
        mean_alone = self.accounting is Accounting.OBSERVED and not self.per_subject
        if mean_alone and EncodingScheme.TWO_HOP_DOUBLE in self.schemes:
            raise broken_rule(
                "observed accounting reads 2-hop-double by subject only: set per_subject: true, or leave it out"
            )
        return self

    @property
    def headline(self) -> tuple[EncodingScheme, SelectionScheme]:
        """The reading shown first: the first scheme, with the names enumerated if that is asked for."""
        enumerated = SelectionScheme.ENUMERATE in self.selections
        return self.schemes[0], SelectionScheme.ENUMERATE if enumerated else self.selections[0]


class EarlyStop(StrEnum):
    """Why a sweep ends a trial before its length."""

    EXHAUSTED = "exhausted"
    """It has learned its data: less than 1 % of the answers' entropy is lost."""
    PLATEAU = "plateau"
    """Its learned bits grew by less than 1 % while its exposures doubled, and it has had a quarter of its length."""


class ExecutionSpec(Spec):
    """Where and how trials run; never part of a trial's identity."""

    num_workers: int = Field(default=1, ge=1, le=10_000)
    """Workers per trial; each takes its share of every batch."""
    cpus_per_worker: float = Field(default=1.0, gt=0.25, le=1024)
    """CPUs a worker takes, the quarter of one included that its Ray Data reader takes."""
    gpus_per_worker: float = Field(default=0.0, ge=0, le=64)
    """GPUs a worker takes; a fraction shares a GPU between trials and needs num_workers: 1."""
    replicas: int = Field(default=1, ge=1, le=1000)
    """At most this many trials of one shape train as one stack in one worker (or set of workers): they may differ in
    seeds, learning rates, weight decay and the people's seed. Each keeps its own result, checkpoints and MLflow run."""
    compile: bool = False
    """Have torch compile the model: for long trials on a GPU. Takes a minute or so where it is not in torch's cache."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """How often a trial is restarted from its last checkpoint before it counts as failed."""
    max_concurrent_trials: int = Field(default=1024, ge=1, le=100_000)
    """At most this many trials at once, even where more would fit."""
    early_stop: tuple[EarlyStop, ...] = ()
    """End trials early that can no longer matter, for these reasons. They are measured where they end, under a learning
    rate that has not come to its end, and are finished like any other; a stack ends when all of its trials may."""
    checkpoint_every_s: float = Field(default=60.0, gt=0, le=1e6)
    """Seconds between checkpoints, beside those at evaluations."""

    def workers_on(self, cpus: float, gpus: float) -> float:
        """How many workers one machine holds. A share of a GPU lies on a single one: at 0.6 each holds one worker."""
        room = [cpus / self.cpus_per_worker]
        if self.gpus_per_worker >= 1:
            room.append(gpus / self.gpus_per_worker)
        elif self.gpus_per_worker:
            room.append(gpus * math.floor(1 / self.gpus_per_worker + 1e-9))
        most = min(room)
        return math.floor(most + 1e-9) if math.isfinite(most) else most

    @field_validator("gpus_per_worker")
    @classmethod
    def _fraction_is_alone(cls, gpus: float, info: Any) -> float:
        if gpus != int(gpus) and (gpus > 1 or info.data.get("num_workers", 1) > 1):
            raise broken_rule(
                "a fraction of a GPU needs num_workers: 1 and stays below 1 (one worker per GPU), got {got}", got=gpus
            )
        return gpus


class TrackingSpec(Spec):
    """Where MLflow keeps the runs."""

    uri: Text = "sqlite:///mlflow.db"
    """An MLflow tracking URI; a relative sqlite path is taken from the working directory."""
    experiment: Text = Field(default="raycap", max_length=256)
    """Name of the MLflow experiment, of as many characters as its database holds."""
    register_models: bool = False
    """Log the models of finished trials as artifacts and register them, as versions of `raycap-<sweep>`."""


class SweepSpec(Spec):
    """A sweep: one question, asked of many trials."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the sweep and of its folder under storage."""
    trial: dict[str, Any] = {}
    """The TrialSpec that every trial starts from; checked together with the grid, point by point."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted path into trial -> values; the sweep is their cartesian product."""
    analysis: AnalysisSpec = AnalysisSpec()
    execution: ExecutionSpec = ExecutionSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: Text = "runs"
    """Folder or URI (s3://, gs://) that holds trials and sweeps."""

    @field_validator("name")
    @classmethod
    def _not_the_trials_folder(cls, name: str) -> str:
        if name.lower() == "trials":  # some file systems do not tell them apart
            raise broken_rule("'{name}' is the folder of the trials themselves; choose another name", name=name)
        return name

    @field_validator("storage")
    @classmethod
    def _scheme_is_known(cls, storage: str) -> str:
        scheme, is_uri, place = storage.partition("://")
        relative = scheme == "file" and not place.startswith("/")
        if is_uri and (scheme not in STORAGE_SCHEMES or not place or relative):
            raise broken_rule(
                "must be a folder, file:///folder, or a URI of {schemes}, got '{got}'",
                schemes=", ".join(STORAGE_SCHEMES[1:]),
                got=storage,
            )
        return storage


def not_allowed(trial: TrialSpec, sweep: SweepSpec) -> Iterator[str]:
    """What of a trial the sweep's execution or analysis cannot do, as field and rule."""
    training, execution = trial.training, sweep.execution
    if training.batch_size < execution.num_workers:
        rule = f"must be at least execution.num_workers = {execution.num_workers}, got {training.batch_size}"
        yield f"training.batch_size: {rule}"
    if isinstance(training.packing, Windows) and training.packing.attend_across and execution.num_workers > 1:
        rule = "workers fill windows of their own, so texts would see others than with one; set num_workers: 1"
        yield f"training.packing.attend_across: {rule}"
    if sweep.analysis.accounting is Accounting.OBSERVED and (unknown := _unknown_to_the_reference(trial)):
        yield f"{unknown}; set analysis.accounting: exact"
    if training.precision is Precision.FP16 and not execution.gpus_per_worker:
        yield "training.precision: fp16 needs CUDA; set execution.gpus_per_worker, or take bf16"


def _unknown_to_the_reference(trial: TrialSpec) -> str | None:
    """What of a trial the reference's accounting has no formula for."""
    if any(kind not in (Kind.ONE_HOP, Kind.TWO_HOP) for kind in trial.questions.kinds):
        return "questions: observed accounting knows one- and two-hop questions only"
    if trial.questions.held_out.second_subjects:
        return "questions.held_out.second_subjects: observed accounting needs a loss of every subject"
    if trial.questions.chain_of_thought:
        return "questions.chain_of_thought: observed accounting knows latent answers only"
    if trial.fill:
        return "fill: observed accounting knows one population only"
    if isinstance(trial.profiles, RandomPairs | RandomStrings):
        return "profiles: observed accounting knows people only"
    if getattr(trial.profiles, "structure", RelationStructure.UNIFORM) is not RelationStructure.UNIFORM:
        return "profiles.structure: observed accounting knows uniform relations only"
    return None
