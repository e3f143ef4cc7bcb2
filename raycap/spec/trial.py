"""How it is trained, and the TrialSpec: all that makes a trial this trial and no other."""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.base import Spec, broken_rule
from raycap.spec.facts import GeneratedProfiles, ProfilesByBits, ProfilesByCount, ProfilesSpec, QuestionsSpec
from raycap.spec.learner import ModelByWidth, ModelSpec, TokenizerSpec, WordTokenizer


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
        return f"<{type(value).__name__.lower()}>"
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
            raise broken_rule("must both lie in [0, 1), got {got}", got=str(list(betas)))
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
    """How often the whole population is evaluated: at the end, at half the steps, at a quarter, and so on."""
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
        if (
            isinstance(self.profiles, GeneratedProfiles)
            and self.profiles.num_relations == 0
            and 2 in self.questions.hops
        ):
            raise broken_rule("two-hop questions need at least one relation, but profiles.num_relations is 0")
        return self

    @property
    def trial_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of this spec, which must be resolved."""
        assert isinstance(self.model, ModelByWidth), "trial_id of an unresolved model; use plan.expand"
        assert not isinstance(self.profiles, ProfilesByBits), "trial_id of an unresolved population; use plan.expand"
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
