"""The TrialSpec: all that makes a trial this trial and no other."""

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.base import Kind, Spec, Text, Weight, broken_rule
from raycap.spec.facts import (
    NUM_ATTRIBUTES,
    GeneratedProfiles,
    LoadedProfiles,
    ProfilesByBits,
    ProfilesByCount,
    ProfilesSpec,
    RandomPairs,
    RandomStrings,
)
from raycap.spec.learner import BpeTokenizer, ModelByWidth, ModelSpec, TokenizerSpec, WordTokenizer
from raycap.spec.questions import Biographies, NamesOnly, QuestionsByShare, QuestionsSpec, check_weights
from raycap.spec.training import TrainingSpec


class ParentTrial(Spec):
    """A trained trial of the same storage."""

    trial_id: str = Field(pattern="^[0-9a-f]{12}$")
    """Its identity. Profiles, tokenizer and model are taken from it, and must agree with it where they are given."""


class ParentModel(Spec):
    """A saved model, as a trial leaves it in its folder `model`."""

    path: Text
    """The folder that holds config.json, model.safetensors and tokenizer.json; its shape must be that of `model`."""
    sha256: str | None = None
    """SHA-256 of config.json, model.safetensors and tokenizer.json in a row. The plan fills it in; given, it must be met."""


ParentSpec = Annotated[
    Annotated[ParentTrial, Tag("<trial>")] | Annotated[ParentModel, Tag("<model>")],
    Discriminator(
        lambda v: "<model>" if isinstance(v, ParentModel) or (isinstance(v, dict) and "path" in v) else "<trial>"
    ),
]
MAX_QUESTIONS = 250_000_000
"""Of one kind about one population, or sentences of biographies: each has a place in memory when it is held out or drawn."""
MIN_SHARE = 1e-6


class Fill(Spec):
    """Training goes on from a trained model with a second population beside the first."""

    parent: ParentSpec
    """Where the weights come from: {trial_id: ...} or {path: ...}."""
    profiles: ProfilesSpec
    """The second population; the first is the trial's own `profiles`."""
    weights: tuple[Weight, Weight] = (0.5, 0.5)
    """How much of the questions is about the first and the second population."""
    loss_weights: tuple[Weight, Weight] = (1.0, 1.0)
    """What the losses of the first and the second population are multiplied by in training."""

    @field_validator("weights", "loss_weights")
    @classmethod
    def _the_second_counts(cls, weights: tuple[float, float]) -> tuple[float, float]:
        if weights[1] < MIN_SHARE * max(weights[0], MIN_SHARE):
            raise broken_rule(
                "must give the second population at least a millionth of the first one's, got {got}",
                got=str(list(weights)),
            )
        return weights

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the two populations among the trained questions."""
        first, second = self.weights
        return first / (first + second), second / (first + second)


def check_number(profiles: ProfilesSpec, questions: QuestionsSpec) -> None:
    """Raise if there would be too many questions about a generated population; one still to be solved passes."""
    if not isinstance(profiles, ProfilesByCount):
        return
    hops, people, subjects = questions.kinds[-1].hops, profiles.num_profiles, NUM_ATTRIBUTES + profiles.num_relations
    factors = [people, *[profiles.num_relations] * (hops - 1), *[subjects] * (hops > 0)]
    if isinstance(questions, Biographies):
        factors.append(questions.per_person)
    if math.prod(factors) > MAX_QUESTIONS:
        raise broken_rule(
            "{product} = {total} questions or sentences, more than {most}; take fewer people, relations or hops",
            product=" x ".join(f"{factor:,}" for factor in factors),
            total=f"{math.prod(factors):,}",
            most=f"{MAX_QUESTIONS:,}",
        )


class TrialSpec(Spec):
    """One trial: a population, what is asked about it, a model and its training."""

    profiles: ProfilesSpec = ProfilesByCount()
    questions: QuestionsSpec = QuestionsByShare()
    tokenizer: TokenizerSpec = WordTokenizer()
    model: ModelSpec = ModelByWidth()
    training: TrainingSpec = TrainingSpec()
    fill: Fill | None = None
    """Start from a trained model and train on a second population beside the first."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "TrialSpec":
        kinds = self.questions.kinds
        for profiles in (self.profiles, *([self.fill.profiles] if self.fill else [])):
            check_number(profiles, self.questions)
            if max(kind.hops for kind in kinds) > 1:
                if isinstance(profiles, GeneratedProfiles) and profiles.num_relations == 0:
                    raise broken_rule("two-hop questions need at least one relation, but profiles.num_relations is 0")
                if isinstance(profiles, RandomPairs):
                    raise broken_rule("the values of pairs lead nowhere: questions.hops must be [1] with source: pairs")
            if isinstance(profiles, RandomStrings) and not isinstance(self.questions, NamesOnly):
                raise broken_rule(
                    "random strings can only be recited: set questions: {kind: names} with source: strings"
                )
            if isinstance(profiles, RandomPairs) and kinds != (Kind.ONE_HOP,):
                raise broken_rule("pairs can only be asked for: leave questions as they are with source: pairs")
            if isinstance(profiles, (RandomPairs, RandomStrings)) and isinstance(self.tokenizer, BpeTokenizer):
                raise broken_rule("random tokens are words already: set tokenizer: {kind: word} with random data")
        if self.training.curriculum and len(kinds) == 1:
            raise broken_rule("training.curriculum mixes kinds of text, but there is one; set questions.hops: [1, 2]")
        for number, phase in enumerate(self.training.curriculum):
            try:
                check_weights(phase.weights, len(kinds), "questions.hops")
            except Exception as error:
                raise broken_rule("training.curriculum.{n}.weights: {told}", n=number, told=str(error)) from None
        return self

    @property
    def trial_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of this spec, which must be resolved.

        Loaded data enter by their digests; where they lay does not.
        """
        assert isinstance(self.model, ModelByWidth), "trial_id of an unresolved model; use plan.expand"
        populations = (self.profiles, *([self.fill.profiles] if self.fill else []))
        assert not any(isinstance(p, ProfilesByBits) for p in populations), "unresolved population; use plan.expand"
        tree = self.model_dump(mode="json")
        loaded: list[tuple[Spec, Any]] = [(self.profiles, tree["profiles"])]
        if self.fill:
            loaded += [(self.fill.profiles, tree["fill"]["profiles"]), (self.fill.parent, tree["fill"]["parent"])]
        for part, fields in loaded:
            if isinstance(part, (LoadedProfiles, ParentModel)):
                for place in ("source", "path", "split", "revision"):
                    fields.pop(place, None)
        canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
