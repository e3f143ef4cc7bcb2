"""Specs of training: length, optimizer and schedule, curriculum, packing, evaluation and early stopping."""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.base import Seed, Spec, Weight, broken_rule, by_kind
from raycap.spec.user_code import UserCode


class Schedule(StrEnum):
    """Learning rate schedule after the linear warm-up."""

    LINEAR = "linear"
    """Linear decay to zero at the last step."""
    COSINE = "cosine"
    """Cosine decay to zero at the last step."""
    WSD = "wsd"
    """Warmup-stable-decay: constant, then linear decay to zero over the last `decay_share` of all steps."""
    CONSTANT = "constant"
    """Constant."""


class UserSchedule(UserCode):
    """A learning rate schedule of the user's own module (docs/architecture.md#your-own-code).

    The function is called with a step, counted from 0, and the number of all steps. It returns the learning rate as a
    fraction of its peak for a step after the warm-up.
    """

    arguments: ClassVar[tuple[str, ...]] = ("step", "num_steps")


ScheduleSpec = Annotated[
    Annotated[Schedule, Tag("<name>")] | Annotated[UserSchedule, Tag("<function>")],
    Discriminator(lambda v: "<function>" if isinstance(v, (dict, UserSchedule)) else "<name>"),
]


def describe_schedule(schedule: Schedule | UserSchedule) -> str:
    """Return the name of a schedule, or module:attribute of one of the user's own."""
    return schedule.function if isinstance(schedule, UserSchedule) else str(schedule)


class Precision(StrEnum):
    """Number format of the forward and backward pass. Weights and optimizer state are always float32."""

    FP32 = "fp32"
    """float32, without autocast."""
    BF16 = "bf16"
    """Autocast to bfloat16."""
    FP16 = "fp16"
    """Autocast to float16 with loss scaling. Requires CUDA."""


class Exposures(Spec):
    """Training length in exposures: the mean number of uses per fact. A k-hop question uses k facts."""

    exposures: float = Field(default=100.0, gt=0, le=1e9)
    """Number of exposures. With one-hop questions alone it is the number of epochs. With `fill`, the facts of the
    second population are counted."""


class Tokens(Spec):
    """Training length in tokens, without padding."""

    tokens: int = Field(gt=0, le=10**15)
    """Number of tokens in questions and answers."""


class TokensPerParam(Spec):
    """Training length in tokens per parameter of the model."""

    tokens_per_param: float = Field(gt=0, le=1e9)
    """Number of tokens in questions and answers, without padding, per parameter of the model, embeddings included. `plan`
    computes the number of tokens."""


class Steps(Spec):
    """Training length in optimizer steps."""

    steps: int = Field(gt=0, le=10**9)
    """Number of optimizer steps. Each step trains on batch_size questions."""


class LossBelow(Spec):
    """End of a phase at a given training loss."""

    loss_below_bits: float = Field(gt=0)
    """The phase ends when the mean training loss per question of the last 100 steps falls below this number of bits."""


def _length_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"<{type(value).__name__.lower()}>"
    keys = value if isinstance(value, dict) else {}
    names = {
        "tokens": "<tokens>",
        "tokens_per_param": "<tokensperparam>",
        "steps": "<steps>",
        "loss_below_bits": "<lossbelow>",
    }
    return next((tag for name, tag in names.items() if name in keys), "<exposures>")


_Length = (
    Annotated[Exposures, Tag("<exposures>")] | Annotated[Tokens, Tag("<tokens>")] | Annotated[Steps, Tag("<steps>")]
)
LengthSpec = Annotated[_Length | Annotated[TokensPerParam, Tag("<tokensperparam>")], Discriminator(_length_kind)]
PhaseEndSpec = Annotated[_Length | Annotated[LossBelow, Tag("<lossbelow>")], Discriminator(_length_kind)]


class Phase(Spec):
    """A phase of training with its own mix of questions. After the last phase, the mix of `questions` applies."""

    weights: tuple[Weight, ...]
    """Relative weight of each number of hops in this phase, in the order of questions.hops."""
    until: PhaseEndSpec
    """End of the phase: {exposures: x}, {tokens: n} or {steps: n}, counted from the start of the phase, or
    {loss_below_bits: x}."""


class Plateau(Spec):
    """Stop training when the training loss no longer decreases."""

    window_exposures: float = Field(default=50.0, gt=0, le=1e9)
    """Length of the comparison windows in exposures. The mean training loss over the last window is compared with that
    over the window before it."""
    min_improvement: float = Field(default=0.01, gt=0, lt=1)
    """Training stops when the loss has decreased by less than this fraction from one window to the next."""


class OnePerRow(Spec):
    """One question per row, padded to the length of the longest question."""

    kind: Literal["rows"] = "rows"
    """One question per row."""


class Windows(Spec):
    """Several questions per row: questions are concatenated to windows of a fixed length.

    Questions are not split. A question that does not fit into the rest of a window starts the next one.
    """

    kind: Literal["windows"]
    """Several questions per row."""
    length: int = Field(default=512, ge=16, le=4096)
    """Length of a window in tokens."""
    attend_across: bool = True
    """Whether a question attends to earlier questions in its window, as in the reference implementation. If false, the
    result is the same as with one question per row."""


PackingSpec = Annotated[Annotated[OnePerRow, Tag("<rows>")] | Annotated[Windows, Tag("<windows>")], by_kind("rows")]


class WeightDecay(Spec):
    """Decoupled weight decay by parameter group. A single number sets both matrices and embeddings."""

    matrices: float = Field(default=0.1, ge=0)
    """Weight decay of the attention and MLP matrices."""
    embeddings: float = Field(default=0.1, ge=0)
    """Weight decay of the embedding and the output layer."""
    gains: float = Field(default=0.0, ge=0)
    """Weight decay of the gains of the normalization layers."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"matrices": value, "embeddings": value}
        return value


class _Optimizer(Spec):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate. With muon, that of the parameters that AdamW updates."""
    weight_decay: WeightDecay = WeightDecay()
    """Decoupled weight decay by parameter group. A single number sets both matrices and embeddings."""
    warmup_steps: int = Field(default=100, ge=0, le=10**9)
    """Number of steps of the linear warm-up. It is limited to half of all steps."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient. Gradients with a larger norm are scaled down to it."""


class _Scheduled(_Optimizer):
    schedule: ScheduleSpec = Schedule.LINEAR
    """Learning rate schedule after the warm-up: a name, or {function: module:attribute} for one of your own."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Fraction of all steps, at the end, over which the learning rate decays. Only used by schedule wsd."""

    @field_validator("decay_share")
    @classmethod
    def _only_with_wsd(cls, decay_share: float, info: Any) -> float:
        schedule = info.data.get("schedule", Schedule.WSD)
        if decay_share != 0.2 and schedule is not Schedule.WSD:
            raise broken_rule(
                "has no effect with schedule {schedule}; remove it or set schedule: wsd",
                schedule=describe_schedule(schedule),
            )
        return decay_share


class _AdamBetas(_Optimizer):
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the estimates of the first and second moment."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise broken_rule("must both be in [0, 1), got {got}", got=str(list(betas)))
        return betas


class AdamW(_Scheduled, _AdamBetas):
    """AdamW (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """AdamW."""


class ScheduleFree(_AdamBetas):
    """Schedule-free AdamW (arXiv 2405.15682).

    The learning rate is constant after the warm-up. Models are evaluated and saved with the averaged weights.
    """

    kind: Literal["schedule_free"]
    """Schedule-free AdamW."""

    @field_validator("betas")
    @classmethod
    def _interpolates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if betas[0] == 0:
            raise broken_rule(
                "the first must be positive because schedule_free interpolates weights with it, got {got}",
                got=str(list(betas)),
            )
        return betas


class Muon(_Scheduled, _AdamBetas):
    """Muon for the attention and MLP matrices, AdamW for all other parameters. See docs/science.md#optimizers."""

    kind: Literal["muon"]
    """Muon."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of the matrices. Their updates are scaled to the root mean square of typical AdamW updates."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of the matrices."""


class UserOptimizer(_Scheduled, UserCode):
    """An optimizer of the user's own module.

    The function is called with parameter groups of torch and returns a `torch.optim.Optimizer` for them. See
    docs/architecture.md#your-own-code.
    """

    kind: Literal["custom"]
    """An optimizer of your own module."""

    arguments: ClassVar[tuple[str, ...]] = ("groups",)


OptimizerSpec = Annotated[
    Annotated[AdamW, Tag("<adamw>")]
    | Annotated[ScheduleFree, Tag("<schedule_free>")]
    | Annotated[Muon, Tag("<muon>")]
    | Annotated[UserOptimizer, Tag("<custom>")],
    by_kind("adamw"),
]


class EvaluationPlaces(StrEnum):
    """Steps of training at which the population is evaluated. The last step is always one of them."""

    DOUBLINGS = "doublings"
    """At the last step, at half of the steps, at a quarter, and so on."""
    LINEAR = "linear"
    """At equal distances."""


def _check_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    if not shares or any(later <= earlier for earlier, later in pairwise((0.0, *shares))) or shares[-1] > 1:
        raise broken_rule("must be ascending fractions of all steps in (0, 1], got {got}", got=str(list(shares)))
    return shares


EvaluationPlacesSpec = Annotated[
    Annotated[EvaluationPlaces, Tag("<name>")]
    | Annotated[tuple[float, ...], AfterValidator(_check_shares), Field(max_length=100), Tag("<list>")],
    Discriminator(lambda v: "<list>" if isinstance(v, (list, tuple)) else "<name>"),
]


class TrainingSpec(Spec):
    """Training of the model and its evaluation."""

    length: LengthSpec = Exposures()
    """Training length: {exposures: x}, {tokens: n}, {tokens_per_param: x} or {steps: n}."""
    batch_size: int = Field(default=512, ge=1, le=10_000_000)
    """Number of questions per optimizer step, summed over all workers."""
    optimizer: OptimizerSpec = AdamW()
    """Optimizer and learning rate schedule: adamw, schedule_free, muon, or custom for one of your own."""
    precision: Precision = Precision.FP32
    """Number format of the forward and backward pass. bf16 can reduce time and memory on GPUs."""
    packing: PackingSpec = OnePerRow()
    """Arrangement of questions in the rows of a batch: one per row, or several in a window. Evaluation always uses one
    per row."""
    curriculum: tuple[Phase, ...] = ()
    """Phases of training before the mix of `questions` applies, each with its own mix and end. `length` includes
    them."""
    stop: Plateau | None = None
    """Stop at a plateau of the training loss, if one is reached before the full length. Requires a constant learning
    rate."""
    num_evaluations: int = Field(default=8, ge=1, le=100)
    """Number of evaluations of the whole population. It has no effect if `evaluate_at` is a list."""
    evaluate_at: EvaluationPlacesSpec = EvaluationPlaces.DOUBLINGS
    """Steps at which the population is evaluated: doublings (the last step, half of the steps, a quarter, and so on), linear
    (at equal distances), or a list of fractions of all steps, such as [0.01, 0.1, 0.5]. The last step is always included."""
    evaluation_sample: int = Field(default=100_000, ge=100, le=10**9)
    """Largest number of questions of two or more hops per split that an evaluation uses. Larger splits are evaluated on
    a random sample of this size, and the standard error of the loss is reported."""
    seed: Seed = 0
    """Random seed of the initial weights. Vary it to measure the spread over initializations."""
    order_seed: Seed = Field(default_factory=lambda data: data.get("seed", 0))
    """Random seed of the order of the questions and of the evaluation samples. The default is `seed`."""

    @field_validator("precision")
    @classmethod
    def _muon_does_not_scale(cls, precision: Precision, info: Any) -> Precision:
        if precision is Precision.FP16 and isinstance(info.data.get("optimizer"), Muon):
            raise broken_rule(
                "muon consists of two optimizers, which cannot skip an fp16 step together if it overflows; use bf16"
            )
        return precision

    @field_validator("stop")
    @classmethod
    def _plateaus_need_a_rate_that_stays(cls, stop: Plateau | None, info: Any) -> Plateau | None:
        optimizer = info.data.get("optimizer")
        if stop and isinstance(optimizer, _Scheduled) and optimizer.schedule is not Schedule.CONSTANT:
            raise broken_rule(
                "a plateau is not meaningful while schedule {schedule} decays the learning rate; set "
                "optimizer.schedule: constant, or use schedule_free",
                schedule=describe_schedule(optimizer.schedule),
            )
        return stop

    def evaluation_steps(self, num_steps: int) -> set[int]:
        """Return the steps after which to evaluate, for a number of all steps."""
        number = self.num_evaluations
        if self.evaluate_at is EvaluationPlaces.DOUBLINGS:
            shares = [0.5**i for i in range(number)]
        elif self.evaluate_at is EvaluationPlaces.LINEAR:
            shares = [(i + 1) / number for i in range(number)]
        else:
            shares = [*self.evaluate_at, 1.0]
        return {max(1, round(num_steps * share)) for share in shares}
