"""The SweepSpec and its sections that are not part of a trial: analysis, execution and tracking."""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

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
from raycap.spec.inspections import InspectedModels, InspectSpec, LocaliseSpec, unsupported_by_transformers
from raycap.spec.locations import check_tracking_uri, local_path, raise_broken_rule
from raycap.spec.probes import ProbesSpec
from raycap.spec.tables import ProfilesFromTable
from raycap.spec.training import Muon, Precision, ScheduleFree, TrainingSpec, UserOptimizer, Windows
from raycap.spec.transformers_models import ModelOfTransformers
from raycap.spec.trial import TrialSpec
from raycap.spec.uris import NO_CREDENTIALS, has_password, without_password

STORAGE_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")


class Calibration(Spec):
    """Capacity of the same models measured on random strings or pairs, taken from the report of another sweep.

    No encoding scheme changes the code length of random data, so this capacity is known without assuming a scheme.
    """

    bits_per_param: float = Field(gt=0, le=1000)
    """Estimated bits per parameter."""
    standard_error: float = Field(gt=0, le=1000)
    """Standard error of the estimate: a quarter of the width of its 95 % interval."""


class AnalysisSpec(Spec):
    """Analysis of the losses: encoding schemes, selection schemes and entropies. Changing it does not retrain any
    trial."""

    schemes: tuple[EncodingScheme, ...] = (EncodingScheme.OPTIMAL,)
    """Encoding schemes for which capacities are computed. The first one is the headline."""
    selections: tuple[SelectionScheme, ...] = tuple(SelectionScheme)
    """Selection schemes for which capacities are computed. The headline uses enumerate if it is among them, otherwise
    the first."""
    accounting: Accounting = Accounting.EXACT
    """Source of the entropies in code lengths."""
    per_subject: bool = True
    """Whether learned bits are computed for each subject from its own loss. If false, the mean loss over all subjects
    is used and every subject is assumed to lose the same fraction of its entropy."""
    incremental: bool = False
    """Whether to add the bits of the facts that one-hop questions require to those of questions with more hops,
    counting the names once ("2.1 hops"). See docs/science.md#incremental."""
    calibration: Calibration | None = None
    """Capacity of these models for random data. It makes the comparison of encoding schemes more decisive."""
    nuisance: tuple[Text, ...] = ()
    """Axes of grid or points that are settings of training, of which the best value by learned bits matters. By default: the
    optimizer and its settings, length, batch size, precision and packing. Seeds and sizes need not be listed."""
    compare: tuple[Text, ...] = ()
    """Axes of grid or points whose values are compared. By default: all axes that are neither sizes nor seeds nor
    nuisances."""

    @field_validator("schemes", "selections")
    @classmethod
    def _unique(cls, members: tuple[Any, ...]) -> tuple[Any, ...]:
        if not members or len(set(members)) != len(members):
            raise broken_rule(
                "must have at least one element and no duplicates, got {got}", got=str([str(m) for m in members])
            )
        return members

    @field_validator("nuisance", "compare")
    @classmethod
    def _not_seeds(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path.endswith("seed"):
                raise broken_rule("seeds repeat trials and have no other role, got '{got}'; remove it", got=path)
        return paths

    @model_validator(mode="after")
    def _one_role_per_axis(self) -> "AnalysisSpec":
        if twice := [path for path in self.nuisance if path in self.compare]:
            raise broken_rule("'{path}' is in both nuisance and compare; remove it from one of them", path=twice[0])
        return self

    @model_validator(mode="after")
    def _observed_double_needs_subjects(self) -> "AnalysisSpec":
        mean_alone = self.accounting is Accounting.OBSERVED and not self.per_subject
        if mean_alone and EncodingScheme.TWO_HOP_DOUBLE in self.schemes:
            raise broken_rule(
                "observed accounting supports 2-hop-double only with per_subject: true; set it or remove 2-hop-double"
            )
        return self

    @property
    def headline(self) -> tuple[EncodingScheme, SelectionScheme]:
        """The reading that reports show first: the first encoding scheme, with the selection enumerate if it is
        listed."""
        enumerated = SelectionScheme.ENUMERATE in self.selections
        return self.schemes[0], SelectionScheme.ENUMERATE if enumerated else self.selections[0]


class EarlyStop(StrEnum):
    """Reason to end a trial before its full length."""

    EXHAUSTED = "exhausted"
    """The trial has learned its data: its loss is less than 1 % of the entropy of the answers."""
    PLATEAU = "plateau"
    """The learned bits grew by less than 1 % while the exposures doubled, and at least a quarter of the length is
    done."""


class KeptModels(StrEnum):
    """Models of a trial that are stored beside the final one."""

    FINAL = "final"
    """None."""
    EVALUATIONS = "evaluations"
    """The model of every evaluation."""


def _form_of_kept_models(value: Any) -> str:
    return "<exposures>" if isinstance(value, list | tuple) else "<when>"


KeepModels = Annotated[
    Annotated[KeptModels, Tag("<when>")]
    | Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Field(max_length=1000), Tag("<exposures>")],
    Discriminator(_form_of_kept_models),
]


class ExecutionSpec(Spec):
    """Resources and execution of trials. These settings are not part of a trial's identity."""

    num_workers: int = Field(default=1, ge=1, le=10_000)
    """Number of workers per trial (data parallel). Each worker computes an equal part of every batch."""
    cpus_per_worker: float = Field(default=1.0, gt=0.25, le=1024)
    """Number of CPUs per worker. It includes 0.25 CPUs for the process that prepares the worker's batches."""
    gpus_per_worker: float = Field(default=0.0, ge=0, le=64)
    """Number of GPUs per worker. With a fraction, trials share a GPU; this requires num_workers: 1."""
    replicas: int = Field(default=1, ge=1, le=1000)
    """Largest number of trials that train together as one stack on the same workers. Trials of a stack may differ in
    learning rate, weight decay, training seeds and the seed of the population. Each has its own result, checkpoints and
    MLflow run. Increase it when models are too small to use a GPU or CPU fully."""
    compile: bool = False
    """Whether to compile the model with torch.compile. Compilation takes about a minute unless it is cached, so enable
    it for long trials on GPUs."""
    cuda_graph: bool = False
    """Whether to run each training step as a CUDA graph, with batches that are built on the GPU. This is faster for models
    whose kernels take less time than their launches. Steps with fp16, schedule-free AdamW, packing in windows or several
    workers cannot be recorded."""
    reuse_workers: bool = True
    """Whether a trial takes over the worker processes of the trial before it, which saves 30 s on two cores. This uses
    internals of Ray Train. If false, or with a version of Ray it was not tested with, every trial starts new processes."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """Number of restarts of a trial from its last checkpoint before it is marked as failed."""
    max_concurrent_trials: int = Field(default=1024, ge=1, le=100_000)
    """Largest number of trials that run at the same time. The cluster's resources may allow fewer."""
    early_stop: tuple[EarlyStop, ...] = ()
    """Reasons to end a trial before its full length. Such a trial is evaluated where it ends, before the learning rate
    has decayed completely, and counts as finished. A stack ends when all of its trials meet one of the reasons."""
    checkpoint_every_s: float = Field(default=60.0, gt=0, le=1e6)
    """Seconds between checkpoints. A checkpoint is also saved at every evaluation."""
    keep_models: KeepModels = KeptModels.FINAL
    """Models that are stored for later analysis: final, evaluations (also the model of every evaluation) or a list of
    exposures (also the models at the first steps with as many exposures). The final model is always stored. Models of
    steps that have been trained already are not stored later."""
    prices: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = {}
    """Price of a machine in US dollars per hour, by its type: the label machine-type of the node in Ray. The type default
    stands for all others. With prices, `raycap status` shows what the runs of a sweep have cost, and `--budget 50usd` stops
    a run at this sum. See docs/clusters.md#money."""

    def workers_on(self, cpus: float, gpus: float) -> float:
        """Return the number of workers that fit on a machine with the given numbers of CPUs and GPUs.

        A fractional GPU share cannot span GPUs, so with gpus_per_worker = 0.6 each GPU holds one worker.
        """
        room = [cpus / self.cpus_per_worker]
        if self.gpus_per_worker >= 1:
            room.append(gpus / self.gpus_per_worker)
        elif self.gpus_per_worker:
            room.append(gpus * math.floor(1 / self.gpus_per_worker + 1e-9))
        limit = min(room)
        return math.floor(limit + 1e-9) if math.isfinite(limit) else limit

    @field_validator("gpus_per_worker")
    @classmethod
    def _fraction_is_alone(cls, gpus: float, info: Any) -> float:
        if gpus != int(gpus) and (gpus > 1 or info.data.get("num_workers", 1) > 1):
            raise broken_rule(
                "a fraction of a GPU must be less than 1 and requires num_workers: 1, got {got}", got=gpus
            )
        return gpus


class TrackingSpec(Spec):
    """Tracking of trials with MLflow."""

    uri: Text | None = None
    """MLflow tracking URI: sqlite:///FILE, http://HOST:PORT or a database (postgresql://, mysql://, mssql://). A relative
    file starts at the working directory. If null, the environment variable MLFLOW_TRACKING_URI, or sqlite:///mlflow.db if
    that is not set. Set the URI of a tracking server to share runs."""
    experiment: Text = Field(default="raycap", max_length=256)
    """Name of the MLflow experiment."""
    register_models: bool = False
    """Whether to log the models of finished trials as artifacts and register them as versions of `raycap-<sweep>`."""

    @field_validator("uri")
    @classmethod
    def _is_well_formed(cls, uri: str | None) -> str | None:
        if uri is not None:
            with raise_broken_rule():
                check_tracking_uri(uri)
        return uri


class Pool(Spec):
    """Trials of other sweeps, which are analysed together. A pool trains nothing. See docs/analysis.md#pools."""

    sweeps: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Folders or URIs of sweeps, such as runs/grid. A trial of several of them counts once."""
    where: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted path of a field of a trial -> values. Only trials that have one of the values in every field are included."""


class SweepSpec(Spec):
    """A sweep: a set of trials that answer one question."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the sweep and of its folder in storage. The default is the name of the file without its extension."""
    trial: dict[str, Any] = {}
    """Base TrialSpec of all trials. It is validated together with the values of the grid, once for every point."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted path into `trial` -> list of values. The sweep runs all combinations."""
    points: list[dict[str, Any]] = []
    """List of mappings from dotted paths to a value or a list of values. The sweep runs the grid once per entry, with the
    axes of the entry added to those of the grid or in place of them."""
    exclude: list[Annotated[dict[str, Any], Field(min_length=1)]] = []
    """List of mappings from dotted paths to a value or a list of values. Points that have one of the values of every path
    of an entry are not run."""
    pool: Pool | None = None
    """Analyse the trials of other sweeps instead of training trials. `trial`, `grid` and `execution` must not be set."""
    analysis: AnalysisSpec = AnalysisSpec()
    """Analysis of the losses. Changing it does not retrain any trial."""
    execution: ExecutionSpec = ExecutionSpec()
    """Resources and execution of trials. Changing it does not retrain any trial."""
    tracking: TrackingSpec = TrackingSpec()
    """Tracking of trials with MLflow."""
    inspect: InspectSpec = InspectSpec()
    """Analyses of the stored models that the sweep runs after its trials. Changing it does not retrain any trial."""
    probes: ProbesSpec = ProbesSpec()
    """Targets, tokens and layers that `raycap probe` reads from trained models. Changing it does not retrain any trial."""
    localise: LocaliseSpec = LocaliseSpec()
    """Ablations of the parts of trained models, for `raycap localise`. Changing it does not retrain any trial."""
    storage: Text = "runs"
    """Folder or URI (such as s3:// or gs://) that stores trials and sweeps. On a cluster all machines must reach it."""

    @field_validator("name")
    @classmethod
    def _not_the_trials_folder(cls, name: str) -> str:
        if name.lower() == "trials":  # some file systems are case-insensitive
            raise broken_rule(
                "'{name}' is the name of the folder that stores the trials; choose another name", name=name
            )
        return name

    @model_validator(mode="after")
    def _pool_trains_nothing(self) -> "SweepSpec":
        own = type(self).model_fields.keys() - {"name", "pool", "analysis", "tracking", "storage"}
        is_set = sorted(name for name in own if getattr(self, name) != type(self).model_fields[name].default)
        if self.pool and is_set:
            raise broken_rule("a pool has only trials of other sweeps; remove {field} or pool", field=is_set[0])
        return self

    @model_validator(mode="after")
    def _earlier_models_are_stored(self) -> "SweepSpec":
        if self.inspect.models is InspectedModels.ALL and self.execution.keep_models is KeptModels.FINAL:
            raise broken_rule(
                "inspect.models: all requires the models of earlier steps; set execution.keep_models to evaluations or a "
                "list of exposures, or set inspect.models: final"
            )
        return self

    @field_validator("storage")
    @classmethod
    def _scheme_is_known(cls, storage: str) -> str:
        if has_password(storage):
            raise broken_rule(f"{NO_CREDENTIALS}, got '{{got}}'", got=without_password(storage))
        with raise_broken_rule():
            is_local = local_path(storage) is not None
        scheme, _, path = storage.partition("://")
        if not is_local and (scheme not in STORAGE_SCHEMES or not path):
            raise broken_rule(
                "must be a folder, file:///folder or a URI with the scheme {schemes}, got '{got}'",
                schemes=", ".join(STORAGE_SCHEMES[1:]),
                got=storage,
            )
        return storage


def find_conflicts(trial: TrialSpec, sweep: SweepSpec) -> Iterator[str]:
    """Yield the conflicts of a trial with the sweep's execution or analysis, each as "field: rule"."""
    training, execution = trial.training, sweep.execution
    if training.batch_size < execution.num_workers:
        rule = f"must be at least execution.num_workers = {execution.num_workers}, got {training.batch_size}"
        yield f"training.batch_size: {rule}; increase it, or decrease execution.num_workers"
    if isinstance(training.packing, Windows) and training.packing.attend_across and execution.num_workers > 1:
        rule = (
            "each worker fills its own windows, so the result would depend on execution.num_workers; set num_workers: 1"
        )
        yield f"training.packing.attend_across: {rule}"
    if sweep.analysis.accounting is Accounting.OBSERVED and (unsupported := _unsupported_by_observed(trial)):
        yield f"{unsupported}; set analysis.accounting: exact"
    if execution.cuda_graph and (obstacle := _not_recordable(training, execution)):
        yield f"{obstacle}; set execution.cuda_graph: false"
    if training.precision is Precision.FP16 and not execution.gpus_per_worker:
        yield "training.precision: fp16 requires CUDA; set execution.gpus_per_worker or use bf16"
    if isinstance(trial.model, ModelOfTransformers):
        yield from _unsupported_by_transformers(trial.model, training, execution)
        yield from unsupported_by_transformers(trial.model.kind, sweep.inspect)


def _unsupported_by_transformers(
    model: ModelOfTransformers, training: TrainingSpec, execution: ExecutionSpec
) -> Iterator[str]:
    """Yield the settings that models of transformers do not support, each as "field: rule"."""
    kind = f"models of kind {model.kind}"
    if execution.replicas > 1:
        yield f"execution.replicas: {kind} cannot be stacked, got {execution.replicas}; set execution.replicas: 1"
    if execution.compile:
        yield f"execution.compile: {kind} are not compiled; set execution.compile: false"
    if execution.cuda_graph:
        yield f"execution.cuda_graph: steps of {kind} are not recorded; set execution.cuda_graph: false"
    if isinstance(training.optimizer, Muon):
        yield f"training.optimizer.kind: muon needs separate projections, which {kind} may not have; use adamw"
    if isinstance(training.packing, Windows) and not training.packing.attend_across:
        yield (
            f"training.packing.attend_across: {kind} attend to the whole window; set packing: {{kind: rows}}, which has the "
            "result of attend_across: false"
        )


def _not_recordable(training: TrainingSpec, execution: ExecutionSpec) -> str | None:
    """Return the first property of a trial whose steps cannot be recorded as CUDA graphs, as "field: rule", or None."""
    if not execution.gpus_per_worker:
        return "execution.gpus_per_worker: CUDA graphs require a GPU"
    if execution.num_workers > 1:
        return "execution.num_workers: CUDA graphs support only one worker per trial"
    if training.precision is Precision.FP16:
        return "training.precision: the loss scale of fp16 depends on each step, which a CUDA graph cannot contain"
    if isinstance(training.optimizer, ScheduleFree):
        return "training.optimizer.kind: schedule-free AdamW computes on the host, which a CUDA graph cannot contain"
    if isinstance(training.optimizer, UserOptimizer):
        return "training.optimizer.kind: optimizers of your own cannot be contained in a CUDA graph"
    if isinstance(training.packing, Windows):
        return "training.packing.kind: CUDA graphs support only one text per row"
    return None


def _unsupported_by_observed(trial: TrialSpec) -> str | None:
    """Return the first property of a trial that observed accounting has no formula for, as "field: rule", or None."""
    if any(kind not in (Kind.ONE_HOP, Kind.TWO_HOP) for kind in trial.questions.kinds):
        return "questions: observed accounting supports only one- and two-hop questions"
    if trial.questions.held_out.second_subjects:
        return "questions.held_out.second_subjects: observed accounting requires a loss for every subject"
    if trial.questions.chain_of_thought:
        return "questions.chain_of_thought: observed accounting does not support chains of thought"
    if trial.fill:
        return "fill: observed accounting supports only one population"
    if isinstance(trial.profiles, RandomPairs | RandomStrings):
        return "profiles: observed accounting does not support random data"
    if isinstance(trial.profiles, ProfilesFromTable):
        return "profiles: observed accounting does not support tables, whose distributions are declared"
    if getattr(trial.profiles, "structure", RelationStructure.UNIFORM) is not RelationStructure.UNIFORM:
        return "profiles.structure: observed accounting supports only uniform relations"
    return None
