"""How it is trained: optimizers, length, phases, packing, and when to stop."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.base import Seed, Spec, Weight, broken_rule, by_kind


class Schedule(StrEnum):
    """How the learning rate goes on after its linear warm-up."""

    LINEAR = "linear"
    """Straight down to zero at the last step."""
    COSINE = "cosine"
    """Half a cosine down to zero at the last step."""
    WSD = "wsd"
    """Warm-up, stable, decay: stays, then straight down to zero over the last `decay_share` of all steps."""
    CONSTANT = "constant"
    """Stays."""


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; weights and optimizer state are fp32 in all of them."""

    FP32 = "fp32"
    BF16 = "bf16"
    """Autocast to bfloat16."""
    FP16 = "fp16"
    """Autocast to float16 with a scaled loss; CUDA only."""


class Exposures(Spec):
    """Length of training as the mean number of times a fact is used; a k-hop question uses k facts."""

    exposures: float = Field(default=100.0, gt=0, le=1e9)
    """With one-hop questions alone this is the number of epochs. Under fill: of the second population's facts."""


class Tokens(Spec):
    """Length of training in tokens, padding not counted."""

    tokens: int = Field(gt=0, le=10**15)
    """Number of question and answer tokens."""


class Steps(Spec):
    """Length of training in optimizer steps."""

    steps: int = Field(gt=0, le=10**9)
    """Number of steps of batch_size questions each."""


class LossBelow(Spec):
    """The end of a phase by what was learned."""

    loss_below_bits: float = Field(gt=0)
    """Mean training loss per question, over the last 100 steps, below which the phase ends."""


def _length_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"<{type(value).__name__.lower()}>"
    keys = value if isinstance(value, dict) else {}
    names = {"tokens": "<tokens>", "steps": "<steps>", "loss_below_bits": "<lossbelow>"}
    return next((tag for name, tag in names.items() if name in keys), "<exposures>")


_Length = (
    Annotated[Exposures, Tag("<exposures>")] | Annotated[Tokens, Tag("<tokens>")] | Annotated[Steps, Tag("<steps>")]
)
LengthSpec = Annotated[_Length, Discriminator(_length_kind)]
PhaseEndSpec = Annotated[_Length | Annotated[LossBelow, Tag("<lossbelow>")], Discriminator(_length_kind)]


class Phase(Spec):
    """A part of training with a mix of its own, before the questions' own mix takes over."""

    weights: tuple[Weight, ...]
    """Weights in the order of questions.hops; their proportions are the shares of the trained questions."""
    until: PhaseEndSpec
    """When the next phase begins: {loss_below_bits: x}, or after {exposures: x}, {tokens: n} or {steps: n} of its own."""


class Plateau(Spec):
    """Stop where nothing more is learned."""

    window_exposures: float = Field(default=50.0, gt=0, le=1e9)
    """The training loss over this many exposures is compared with that over as many before."""
    min_improvement: float = Field(default=0.01, gt=0, lt=1)
    """Training stops when the loss has fallen by less than this share."""


class OnePerRow(Spec):
    """One question per row, padded to the longest."""

    kind: Literal["rows"] = "rows"
    """Every question by itself."""


class Windows(Spec):
    """The questions of a step one after the other in windows, never cut; what does not fit begins the next window."""

    kind: Literal["windows"]
    """Many questions in one row."""
    length: int = Field(default=512, ge=16, le=4096)
    """Tokens per window."""
    attend_across: bool = True
    """Whether a question sees those before it in its window, as in the reference; if not, it is as alone as in a row."""


PackingSpec = Annotated[Annotated[OnePerRow, Tag("<rows>")] | Annotated[Windows, Tag("<windows>")], by_kind("rows")]


class WeightDecay(Spec):
    """Decoupled weight decay by group of parameters. A single number stands for matrices and embeddings alike."""

    matrices: float = Field(default=0.1, ge=0)
    """Of the matrices of attention and MLP."""
    embeddings: float = Field(default=0.1, ge=0)
    """Of the embedding and the output layer."""
    gains: float = Field(default=0.0, ge=0)
    """Of the norms' gains."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"matrices": value, "embeddings": value}
        return value


class _Optimizer(Spec):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate (of the AdamW part)."""
    weight_decay: WeightDecay = WeightDecay()
    """Decoupled weight decay by group; a number stands for matrices and embeddings."""
    warmup_steps: int = Field(default=100, ge=0, le=10**9)
    """Steps of linear warm-up; at most half of all steps."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; longer gradients are scaled down to it."""


class _AdamBetas(_Optimizer):
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the first and second moment."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise broken_rule("must both lie in [0, 1), got {got}", got=str(list(betas)))
        return betas


class _Scheduled(_AdamBetas):
    schedule: Schedule = Schedule.LINEAR
    """The learning rate after warm-up."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """With schedule wsd: the share of all steps, at the end, over which the learning rate falls."""

    @field_validator("decay_share")
    @classmethod
    def _only_with_wsd(cls, decay_share: float, info: Any) -> float:
        if decay_share != 0.2 and info.data.get("schedule", Schedule.WSD) is not Schedule.WSD:
            raise broken_rule("has no effect with schedule {schedule}; remove it or set schedule: wsd", **info.data)
        return decay_share


class AdamW(_Scheduled):
    """AdamW (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer."""


class ScheduleFree(_AdamBetas):
    """Schedule-free AdamW (arXiv 2405.15682): no decay; evaluated and saved at its averaged weights."""

    kind: Literal["schedule_free"]
    """The optimizer."""

    @field_validator("betas")
    @classmethod
    def _interpolates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if betas[0] == 0:
            raise broken_rule(
                "must begin with a positive number: schedule-free interpolates by it, got {got}", got=str(list(betas))
            )
        return betas


class Muon(_Scheduled):
    """Muon for the matrices of attention and MLP, AdamW for embeddings and gains."""

    kind: Literal["muon"]
    """The optimizer."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the Muon part; updates have the root mean square of AdamW's."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of the Muon part."""


OptimizerSpec = Annotated[
    Annotated[AdamW, Tag("<adamw>")] | Annotated[ScheduleFree, Tag("<schedule_free>")] | Annotated[Muon, Tag("<muon>")],
    by_kind("adamw"),
]


class TrainingSpec(Spec):
    """How the model is trained and how often it is measured."""

    length: LengthSpec = Exposures()
    """How long: {exposures: x}, {tokens: n} or {steps: n}."""
    batch_size: int = Field(default=512, ge=1, le=10_000_000)
    """Questions per step, over all workers together."""
    optimizer: OptimizerSpec = AdamW()
    """The optimizer and its schedule: adamw, schedule_free or muon."""
    precision: Precision = Precision.FP32
    """Arithmetic of the forward and backward pass."""
    packing: PackingSpec = OnePerRow()
    """How questions lie in rows: one each, or many in a window. Evaluation always takes one each."""
    curriculum: tuple[Phase, ...] = ()
    """Phases before the questions' own mix, each with a mix and an end of its own; `length` bounds them all together."""
    stop: Plateau | None = None
    """Stop on a plateau of the training loss instead of at the full length."""
    num_evaluations: int = Field(default=8, ge=1, le=100)
    """How often the whole population is evaluated: at the end, at half the steps, at a quarter, and so on."""
    evaluation_sample: int = Field(default=100_000, ge=100, le=10**9)
    """Where a split has more questions of two or more hops than this, it is evaluated on a seeded sample of this size,
    with its standard error."""
    seed: Seed = 0
    """Seed of the weights."""
    order_seed: Seed = Field(default_factory=lambda data: data.get("seed", 0))
    """Seed of the order of the questions and of evaluation samples; by default that of the weights."""

    @field_validator("precision")
    @classmethod
    def _muon_does_not_scale(cls, precision: Precision, info: Any) -> Precision:
        if precision is Precision.FP16 and isinstance(info.data.get("optimizer"), Muon):
            raise broken_rule("two optimizers cannot leave out an overflowing fp16 step as one; take bf16 with muon")
        return precision

    @field_validator("stop")
    @classmethod
    def _plateaus_need_a_rate_that_stays(cls, stop: Plateau | None, info: Any) -> Plateau | None:
        optimizer = info.data.get("optimizer")
        if stop and isinstance(optimizer, _Scheduled) and optimizer.schedule is not Schedule.CONSTANT:
            raise broken_rule(
                "a plateau says nothing while schedule {schedule} lowers the learning rate towards a fixed last step; set "
                "optimizer.schedule: constant, or take schedule_free",
                schedule=str(optimizer.schedule),
            )
        return stop
