"""What can be asked: the sweep file as frozen Pydantic models, every knob documented, and the identity of a trial.

The identity of a trial is its *resolved* TrialSpec alone: what is learned, by which model, how it is trained. Where it
runs, where it is stored and what it is called live in ExecutionSpec, TrackingSpec and SweepSpec and never enter it.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

NUM_RELATIONS_KNOWN = 17
"""How many relations there are to choose from (`facts.names.RELATIONS`)."""
NUM_CENSUS_FIRST_NAMES = 5_163
NUM_CENSUS_LAST_NAMES = 88_799


class EncodingScheme(StrEnum):
    """How a model might store the facts it answers questions about (SCIENCE: code lengths in bits)."""

    OPTIMAL = "optimal"
    """Recurrent composition, each fact once: names + N (A + R log2 N)."""
    TWO_HOP_DOUBLE = "2-hop-double"
    """Two-function composition, relations stored twice: names + N (A + 2 R log2 N)."""
    TWO_HOP_BIG_HASH = "2-hop-big-hash"
    """Every trained two-hop answer memorised by itself: names + f2 N R (A + R log2 N)."""


class SelectionScheme(StrEnum):
    """How a model might store which N of the M possible names exist."""

    SET = "set"
    """The set without order, log2 C(M, N)."""
    ENUMERATE = "enumerate"
    """A list of names, N log2 M."""
    INDEPENDENT = "independent"
    """Nothing for the set, but log2 M instead of log2 N for every name-valued answer."""


class Schedule(StrEnum):
    """How the learning rate goes on after its linear warm-up."""

    LINEAR = "linear"
    """Straight down to zero at the last step."""
    COSINE = "cosine"
    """Half a cosine down to zero at the last step."""
    CONSTANT = "constant"
    """Stays."""


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; weights and optimizer state are fp32 in both."""

    FP32 = "fp32"
    BF16 = "bf16"
    """Autocast to bfloat16."""


class Spec(BaseModel):
    """Frozen, no unknown fields, no conversions between types, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def _error(rule: str, **values: object) -> PydanticCustomError:
    return PydanticCustomError("raycap_rule", rule, values)  # type: ignore[arg-type]


# --- profiles: who there is -------------------------------------------------------------------------------------------


class NamePools(Spec):
    """How many census names full names are drawn from; the defaults are the whole lists (log2 M = 41.11 bits)."""

    first: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of first names, the most frequent ones."""
    middle: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of middle names, from the same list as the first names."""
    last: int = Field(default=NUM_CENSUS_LAST_NAMES, ge=1, le=NUM_CENSUS_LAST_NAMES)
    """Number of last names."""

    @property
    def num_names(self) -> int:
        """M, the number of different full names."""
        return self.first * self.middle * self.last


class _Generated(Spec):
    source: Literal["generate"] = "generate"
    """Draw the people here, from `seed`."""
    num_relations: int = Field(default=4, ge=0, le=NUM_RELATIONS_KNOWN)
    """R: how many of the 17 relations each person has, the first R in their fixed order."""
    structure: Literal["uniform"] = "uniform"
    """uniform: each relation of each person is an independent uniform draw over all people, self included."""
    names: NamePools = NamePools()
    """The pools the full names are drawn from."""
    seed: int = Field(default=0, ge=0)
    """Seed of the population: names, attributes and relations."""


class ProfilesByCount(_Generated):
    """A generated population of a given size."""

    num_profiles: int = Field(default=1000, ge=1)
    """N: how many people."""

    @field_validator("num_profiles")
    @classmethod
    def _names_suffice(cls, num_profiles: int, info: Any) -> int:
        pools = info.data.get("names")
        if pools is not None and num_profiles > pools.num_names:
            raise _error(
                "{n} people need {n} different full names, but the pools make only {m}; enlarge profiles.names or lower "
                "num_profiles",
                n=num_profiles,
                m=pools.num_names,
            )
        return num_profiles


class ProfilesByBits(_Generated):
    """A generated population as large as a code length allows; the plan solves for num_profiles."""

    target_bits: float = Field(gt=0)
    """The number of people is the largest whose code length, one-hop, stays within this many bits."""
    scheme: EncodingScheme = EncodingScheme.OPTIMAL
    """The encoding scheme the target is counted in."""
    selection: SelectionScheme = SelectionScheme.ENUMERATE
    """The selection scheme the target is counted in."""


class ProfilesFromDisk(Spec):
    """A population in the hosted dataset schema, from a file or folder."""

    source: Literal["disk"]
    """Read the people from `path`."""
    path: str
    """A parquet file, or a folder written by datasets' save_to_disk."""


class ProfilesFromHub(Spec):
    """A population in the hosted dataset schema, from the Hugging Face hub."""

    source: Literal["hub"]
    """Read the people from the dataset `path` on the hub."""
    path: str
    """Dataset name, owner/name."""
    split: str = "train"
    """Split of the dataset."""
    revision: str = "main"
    """Commit or branch; a commit keeps the trial reproducible."""


def _profiles_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return {ProfilesByBits: "<bits>", ProfilesFromDisk: "<disk>", ProfilesFromHub: "<hub>"}.get(type(value), "<count>")
    if not isinstance(value, dict):
        return "<count>"
    source = value.get("source", "generate")
    if source in ("disk", "hub"):
        return f"<{source}>"
    return "<bits>" if "target_bits" in value else "<count>"


ProfilesSpec = Annotated[
    Annotated[ProfilesByCount, Tag("<count>")]
    | Annotated[ProfilesByBits, Tag("<bits>")]
    | Annotated[ProfilesFromDisk, Tag("<disk>")]
    | Annotated[ProfilesFromHub, Tag("<hub>")],
    Discriminator(_profiles_kind),
]


# --- questions: what is asked -----------------------------------------------------------------------------------------


def _default_one_hop_share(data: dict[str, Any]) -> float:
    return {(1,): 1.0, (2,): 0.0}.get(data.get("hops", (1,)), 1 / 11)


class QuestionsSpec(Spec):
    """Which questions are asked of the population."""

    hops: tuple[Literal[1, 2], ...] = (1,)
    """[1]: "What was A's employer?"; [2]: "What was A's parent's employer?"; [1, 2]: both."""
    one_hop_share: float = Field(default_factory=_default_one_hop_share, ge=0, le=1)
    """Share of one-hop questions among the trained ones. Default 1/11 where both are asked (the reference's 1 : 10)."""

    @field_validator("hops")
    @classmethod
    def _sorted_and_unique(cls, hops: tuple[int, ...]) -> tuple[int, ...]:
        if not hops or tuple(sorted(set(hops))) != hops:
            raise _error("must be [1], [2] or [1, 2], got {got}", got=str(list(hops)))
        return hops

    @field_validator("one_hop_share")
    @classmethod
    def _share_fits_hops(cls, share: float, info: Any) -> float:
        hops = info.data.get("hops")
        if hops is None:
            return share
        if len(hops) == 1 and share != _default_one_hop_share(info.data):
            raise _error("has no effect when only {hops}-hop questions are asked; remove it or set hops: [1, 2]", hops=hops[0])
        if len(hops) == 2 and not 0 < share < 1:
            raise _error("must lie strictly between 0 and 1 when hops is [1, 2], got {got}", got=share)
        return share


# --- tokenizer and model ----------------------------------------------------------------------------------------------


class WordTokenizer(Spec):
    """One token per name part, attribute value and subject (dates: year, month, day); vocabulary = the pools."""

    kind: Literal["word"] = "word"
    """Whole words, known in advance, so that the vocabulary tells nothing about the people."""


class BpeTokenizer(Spec):
    """Byte-level BPE trained on the questions, as the reference does."""

    kind: Literal["bpe"]
    """Byte-level byte-pair encoding."""
    vocab_size: int = Field(default=3000, ge=300)
    """Number of tokens, and rows of the embedding."""


TokenizerSpec = Annotated[WordTokenizer | BpeTokenizer, Field(discriminator="kind")]


class HeadSize(Spec):
    """Attention heads of a fixed size; their number follows the width."""

    head_size: int = Field(default=16, ge=2, multiple_of=2)
    """Size of a head; even, for rotary positions; must divide hidden_size."""


class NumHeads(Spec):
    """A fixed number of attention heads; their size follows the width."""

    num_heads: int = Field(ge=1)
    """Number of heads; must divide hidden_size into even sizes."""


HeadsSpec = Annotated[
    Annotated[HeadSize, Tag("<size>")] | Annotated[NumHeads, Tag("<num>")],
    Discriminator(
        lambda v: "<num>" if isinstance(v, NumHeads) or (isinstance(v, dict) and "num_heads" in v) else "<size>"
    ),
]


class _Llama(Spec):
    num_layers: int = Field(default=4, ge=1)
    """L: number of transformer blocks; the MLP is 4 times as wide as the model."""
    tie_embeddings: bool = False
    """Use the embedding as the output layer too."""
    heads: HeadsSpec = HeadSize()
    """How the width is cut into attention heads."""

    def head_size_at(self, hidden_size: int) -> int:
        """Size of an attention head at a width; raises where heads do not divide it evenly."""
        if isinstance(self.heads, HeadSize):
            if hidden_size % self.heads.head_size:
                raise _error(
                    "heads of size {size} do not divide hidden_size {h}; choose a multiple of {size}, or give num_heads "
                    "instead of head_size under model.heads",
                    size=self.heads.head_size,
                    h=hidden_size,
                )
            return self.heads.head_size
        if hidden_size % (2 * self.heads.num_heads):
            raise _error(
                "{k} heads do not divide hidden_size {h} into even sizes; choose a multiple of {m}",
                k=self.heads.num_heads,
                h=hidden_size,
                m=2 * self.heads.num_heads,
            )
        return hidden_size // self.heads.num_heads


class ModelByWidth(_Llama):
    """A Llama of a given width."""

    hidden_size: int = Field(default=64, ge=2)
    """h: width of the residual stream."""

    @field_validator("hidden_size")
    @classmethod
    def _heads_divide(cls, hidden_size: int, info: Any) -> int:
        if "heads" in info.data:
            _Llama(heads=info.data["heads"]).head_size_at(hidden_size)
        return hidden_size

    @property
    def head_size(self) -> int:
        """Size of an attention head."""
        return self.head_size_at(self.hidden_size)


class ModelByParams(_Llama):
    """A Llama of about a given size; the plan solves for the width and reports the real count."""

    num_params: int = Field(gt=0)
    """Target number of parameters, embeddings included; the nearest possible width is taken."""


ModelSpec = Annotated[
    Annotated[ModelByWidth, Tag("<width>")] | Annotated[ModelByParams, Tag("<params>")],
    Discriminator(
        lambda v: "<params>" if isinstance(v, ModelByParams) or (isinstance(v, dict) and "num_params" in v) else "<width>"
    ),
]


# --- training ---------------------------------------------------------------------------------------------------------


class Exposures(Spec):
    """Length of training as the mean number of times a fact is used; a k-hop question uses k facts."""

    exposures: float = Field(default=100.0, gt=0)
    """With one-hop questions alone this is the number of epochs."""


class Tokens(Spec):
    """Length of training in tokens, padding not counted."""

    tokens: int = Field(gt=0)
    """Number of question and answer tokens."""


class Steps(Spec):
    """Length of training in optimizer steps."""

    steps: int = Field(gt=0)
    """Number of steps of batch_size questions each."""


def _length_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return {Tokens: "<tokens>", Steps: "<steps>"}.get(type(value), "<exposures>")
    keys = value if isinstance(value, dict) else {}
    return "<tokens>" if "tokens" in keys else "<steps>" if "steps" in keys else "<exposures>"


LengthSpec = Annotated[
    Annotated[Exposures, Tag("<exposures>")] | Annotated[Tokens, Tag("<tokens>")] | Annotated[Steps, Tag("<steps>")],
    Discriminator(_length_kind),
]


class AdamWSpec(Spec):
    """AdamW; weight decay on matrices, not on norm gains."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the first and second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    schedule: Schedule = Schedule.LINEAR
    """The learning rate after warm-up."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; longer gradients are scaled down to it."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise _error("must both lie in [0, 1), got {got}", got=str(list(betas)))
        return betas


class TrainingSpec(Spec):
    """How the model is trained and how often it is measured."""

    length: LengthSpec = Exposures()
    """How long: {exposures: x}, {tokens: n} or {steps: n}."""
    batch_size: int = Field(default=512, ge=1)
    """Questions per step, over all workers together."""
    optimizer: AdamWSpec = AdamWSpec()
    """The optimizer and its schedule."""
    precision: Precision = Precision.FP32
    """Arithmetic of the forward and backward pass."""
    num_evaluations: int = Field(default=8, ge=1)
    """How often the whole population is evaluated, at log-spaced steps, the last at the end."""
    evaluation_sample: int = Field(default=100_000, ge=100)
    """Two-hop questions beyond this number are evaluated on a seeded sample of this size, with its standard error."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights and of the order of the questions."""


class TrialSpec(Spec):
    """One trial: a population, the questions about it, a model and its training."""

    profiles: ProfilesSpec = ProfilesByCount()
    questions: QuestionsSpec = QuestionsSpec()
    tokenizer: TokenizerSpec = WordTokenizer()
    model: ModelSpec = ModelByWidth()
    training: TrainingSpec = TrainingSpec()

    @model_validator(mode="after")
    def _two_hops_need_relations(self) -> "TrialSpec":
        if isinstance(self.profiles, _Generated) and self.profiles.num_relations == 0 and 2 in self.questions.hops:
            raise _error("two-hop questions need at least one relation, but profiles.num_relations is 0")
        return self

    @property
    def trial_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of this spec, which must be resolved."""
        assert isinstance(self.model, ModelByWidth), "trial_id of an unresolved model; use plan.expand"
        assert not isinstance(self.profiles, ProfilesByBits), "trial_id of an unresolved population; use plan.expand"
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


# --- around the trials ------------------------------------------------------------------------------------------------


class AnalysisSpec(Spec):
    """How the losses are read. Changing it retrains nothing."""

    schemes: tuple[EncodingScheme, ...] = (EncodingScheme.OPTIMAL,)
    """Encoding schemes to compute capacities for."""
    selections: tuple[SelectionScheme, ...] = tuple(SelectionScheme)
    """Selection schemes to compute capacities for."""

    @field_validator("schemes", "selections")
    @classmethod
    def _unique(cls, members: tuple[Any, ...]) -> tuple[Any, ...]:
        if not members or len(set(members)) != len(members):
            raise _error("must name at least one, each once, got {got}", got=str([str(m) for m in members]))
        return members

    @property
    def headline(self) -> tuple[EncodingScheme, SelectionScheme]:
        """The reading shown first: the first scheme, with the names enumerated if that is asked for."""
        enumerated = SelectionScheme.ENUMERATE in self.selections
        return self.schemes[0], SelectionScheme.ENUMERATE if enumerated else self.selections[0]


class ExecutionSpec(Spec):
    """Where and how trials run; never part of a trial's identity."""

    num_workers: int = Field(default=1, ge=1)
    """Workers per trial; each takes its share of every batch."""
    cpus_per_worker: float = Field(default=1.0, gt=0.25)
    """CPUs a worker takes, the quarter of one included that its Ray Data reader takes."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs a worker takes; a fraction shares a GPU between trials and needs num_workers: 1."""
    max_failures: int = Field(default=3, ge=0)
    """How often a trial is restarted from its last checkpoint before it counts as failed."""
    max_concurrent_trials: int = Field(default=1024, ge=1)
    """At most this many trials at once, even where more would fit."""
    checkpoint_every_steps: int = Field(default=5_000, ge=1)
    """Steps between checkpoints, beside those at evaluations."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _fraction_is_alone(cls, gpus: float, info: Any) -> float:
        if gpus != int(gpus) and (gpus > 1 or info.data.get("num_workers", 1) > 1):
            raise _error("a fraction of a GPU needs num_workers: 1 and stays below 1 (one worker per GPU), got {got}", got=gpus)
        return gpus


class TrackingSpec(Spec):
    """Where MLflow keeps the runs."""

    uri: str = "sqlite:///mlflow.db"
    """An MLflow tracking URI; a relative sqlite path is taken from the working directory."""
    experiment: str = "raycap"
    """Name of the MLflow experiment."""


class SweepSpec(Spec):
    """A sweep: one question, asked of many trials."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the sweep and of its folder under storage."""
    trial: dict[str, Any] = {}
    """The TrialSpec that every trial starts from; checked together with the grid, point by point."""
    grid: dict[str, list[Any]] = {}
    """Dotted path into trial -> values; the sweep is their cartesian product."""
    analysis: AnalysisSpec = AnalysisSpec()
    execution: ExecutionSpec = ExecutionSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: str = "runs"
    """Folder or URI (s3://, gs://) that holds trials and sweeps."""

    @field_validator("name")
    @classmethod
    def _not_the_trials_folder(cls, name: str) -> str:
        if name == "trials":
            raise _error("'trials' is the folder of the trials themselves; choose another name")
        return name

    @field_validator("grid")
    @classmethod
    def _axes_have_values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for path, values in grid.items():
            if not values:
                raise _error("grid axis {path} has no values", path=path)
        return grid
