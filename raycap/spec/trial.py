"""The TrialSpec, which determines the result of a trial, and the trial's identity."""

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.adapter import LoraAdapter
from raycap.spec.base import Kind, Spec, Weight, broken_rule
from raycap.spec.facts import (
    NUM_ATTRIBUTES,
    GeneratedProfiles,
    ProfilesByCount,
    ProfilesSpec,
    RandomPairs,
    RandomStrings,
    SolvedProfiles,
)
from raycap.spec.learner import (
    BpeTokenizer,
    ModelByWidth,
    ModelSpec,
    PretrainedTokenizer,
    ResolvedModel,
    TokenizerSpec,
    WordTokenizer,
)
from raycap.spec.locations import Location
from raycap.spec.questions import Biographies, NamesOnly, QuestionsByShare, QuestionsSpec, UserTexts, check_weights
from raycap.spec.tables import LoadedProfiles, ProfilesFromTable
from raycap.spec.training import EvaluationPlaces, TokensPerParam, TrainingSpec
from raycap.spec.transformers_models import PretrainedModel
from raycap.spec.user_code import UserCode


class ParentTrial(Spec):
    """A finished trial of the same storage, used as the parent."""

    trial_id: str = Field(pattern="^[0-9a-f]{12}$")
    """Identity of the parent trial. `profiles`, `tokenizer` and `model` are taken from it. If they are also given here,
    they must be equal to the parent's."""


class ParentModel(Spec):
    """A saved model, used as the parent, such as the folder `model` of a finished trial."""

    path: Location
    """Folder or URI that contains config.json, model.safetensors and tokenizer.json. The architecture must be that of
    `model`."""
    sha256: str | None = None
    """SHA-256 of the concatenation of config.json, model.safetensors and tokenizer.json. `plan` fills it in. Set it to
    refuse a model with different content."""


ParentSpec = Annotated[
    Annotated[ParentTrial, Tag("<trial>")] | Annotated[ParentModel, Tag("<model>")],
    Discriminator(
        lambda v: "<model>" if isinstance(v, ParentModel) or (isinstance(v, dict) and "path" in v) else "<trial>"
    ),
]
MAX_QUESTIONS = 250_000_000
"""Largest number of questions of one kind, or of biography sentences, about one population. Held-out splits and orders
need memory in proportion to it."""
MIN_SHARE = 1e-6
"""Smallest weight of the second population relative to the first."""


class Fill(Spec):
    """Continued training from a trained model with a second population in addition to the first.

    It measures how much a model that already stores one population can still store. See docs/science.md#fill.
    """

    parent: ParentSpec
    """Model to start from: {trial_id: ...} or {path: ...}."""
    profiles: ProfilesSpec
    """The second population. The first is `profiles` of the trial."""
    weights: tuple[Weight, Weight] = (0.5, 0.5)
    """Relative numbers of questions about the first and the second population. [0, 1] trains only on the second, which
    measures forgetting of the first."""
    loss_weights: tuple[Weight, Weight] = (1.0, 1.0)
    """Factors of the training losses of questions about the first and the second population."""

    @field_validator("weights", "loss_weights")
    @classmethod
    def _the_second_counts(cls, weights: tuple[float, float]) -> tuple[float, float]:
        if weights[1] < MIN_SHARE * max(weights[0], MIN_SHARE):
            raise broken_rule(
                "the second weight must be at least a millionth of the first, got {got}",
                got=str(list(weights)),
            )
        return weights

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the two populations among the training questions."""
        first, second = self.weights
        return first / (first + second), second / (first + second)


def check_number(profiles: ProfilesSpec, questions: QuestionsSpec) -> None:
    """Raise PydanticCustomError if there are too many questions about a population of known size.

    Populations by `target_bits` pass, because their size is not known yet.
    """
    if not isinstance(profiles, ProfilesByCount):
        return
    hops, people, subjects = questions.kinds[-1].hops, profiles.num_profiles, NUM_ATTRIBUTES + profiles.num_relations
    factors = [people, *[profiles.num_relations] * (hops - 1), *[subjects] * (hops > 0)]
    if isinstance(questions, Biographies | UserTexts):
        factors.append(questions.per_person)
    if math.prod(factors) > MAX_QUESTIONS:
        raise broken_rule(
            "{product} = {total} questions or sentences exceed {most}; decrease num_profiles, num_relations or hops",
            product=" x ".join(f"{factor:,}" for factor in factors),
            total=f"{math.prod(factors):,}",
            most=f"{MAX_QUESTIONS:,}",
        )


def check_population(profiles: ProfilesSpec, questions: QuestionsSpec, tokenizer: TokenizerSpec) -> None:
    """Raise PydanticCustomError if a population does not support the questions or the tokenizer."""
    check_number(profiles, questions)
    if max(kind.hops for kind in questions.kinds) > 1:
        if isinstance(profiles, GeneratedProfiles) and profiles.num_relations == 0:
            raise broken_rule(
                "two-hop questions need at least one relation, but profiles.num_relations is 0; increase it or set "
                "questions.hops: [1]"
            )
        if isinstance(profiles, ProfilesFromTable) and not profiles.relations:
            raise broken_rule(
                "two-hop questions need at least one relation, but profiles.relations is empty; add a relation or set "
                "questions.hops: [1]"
            )
        if isinstance(profiles, RandomPairs):
            raise broken_rule("random pairs have no relations to follow; set questions.hops: [1] with source: pairs")
    if isinstance(profiles, RandomStrings) and not isinstance(questions, NamesOnly):
        raise broken_rule(
            "there are no questions about random strings; set questions: {kind: names} with source: strings"
        )
    if isinstance(profiles, RandomPairs) and questions.kinds != (Kind.ONE_HOP,):
        raise broken_rule("random pairs support only one-hop questions; remove questions with source: pairs")
    if isinstance(profiles, (RandomPairs, RandomStrings)) and not isinstance(tokenizer, WordTokenizer):
        raise broken_rule(
            "random data consist of single tokens; set tokenizer: {kind: word} with source: pairs or strings"
        )


class TrialSpec(Spec):
    """One trial: a population, the questions about it, a model and its training."""

    profiles: ProfilesSpec = ProfilesByCount()
    """The population whose facts are learned, or random data."""
    questions: QuestionsSpec = QuestionsByShare()
    """The texts that the model is trained on: questions, biographies or names."""
    tokenizer: TokenizerSpec = WordTokenizer()
    """The tokenizer of the texts."""
    model: ModelSpec = ModelByWidth()
    """The architecture: the Llama of raycap or a model of transformers, by width or by number of parameters, or a saved
    model to start from."""
    adapter: LoraAdapter | None = None
    """Train an adapter of a pretrained model, whose own weights are frozen; null to train the model itself."""
    training: TrainingSpec = TrainingSpec()
    """Training of the model and its evaluation."""
    fill: Fill | None = None
    """Continue training from a trained model, with a second population in addition to the first."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "TrialSpec":
        kinds = self.questions.kinds
        for profiles in (self.profiles, *([self.fill.profiles] if self.fill else [])):
            check_population(profiles, self.questions, self.tokenizer)
        if self.adapter and not isinstance(self.model, PretrainedModel):
            raise broken_rule(
                "an adapter needs a trained model, whose weights are frozen, but model.kind is {kind}; set model: {{kind: "
                "pretrained, path: ...}}, or remove adapter",
                kind=self.model.kind,
            )
        if isinstance(self.model, PretrainedModel):
            if self.fill:
                raise broken_rule(
                    "fill starts from the weights of fill.parent, so the model must not be pretrained; remove fill, or "
                    "model.kind: pretrained"
                )
            if isinstance(self.tokenizer, BpeTokenizer):
                raise broken_rule(
                    "tokenizer.kind: bpe trains a tokenizer, whose tokens a pretrained model does not have; set tokenizer: "
                    "{kind: pretrained, path: ...} to the tokenizer.json of the model"
                )
        if (
            self.fill
            and isinstance(self.profiles, ProfilesFromTable)
            and isinstance(self.fill.profiles, GeneratedProfiles)
        ):
            raise broken_rule("fill.profiles: people cannot be generated beside those of a table; load a second table")
        if self.training.curriculum and len(kinds) == 1:
            raise broken_rule(
                "training.curriculum requires several kinds of text, but there is only one; set questions.hops: [1, 2]"
            )
        for number, phase in enumerate(self.training.curriculum):
            try:
                check_weights(phase.weights, len(kinds), "questions.hops")
            except Exception as error:
                raise broken_rule("training.curriculum.{n}.weights: {reason}", n=number, reason=str(error)) from None
        return self

    @property
    def user_code(self) -> tuple[UserCode, ...]:
        """The parts of the trial that are defined in modules of the user."""
        optimizer = self.training.optimizer
        parts = (self.questions, optimizer, getattr(optimizer, "schedule", None))
        return tuple(part for part in parts if isinstance(part, UserCode))

    @property
    def trial_id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON of `identity`."""
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def identity(self) -> dict[str, Any]:
        """Fields that identify the trial, as JSON values.

        The spec must be resolved (see plan.expand). Loaded data enter by their digests and not by their paths.
        """
        assert isinstance(self.model, ResolvedModel), "trial_id of an unresolved model; use plan.expand"
        populations = (self.profiles, *([self.fill.profiles] if self.fill else []))
        assert not any(isinstance(p, SolvedProfiles) for p in populations), "unresolved population; use plan.expand"
        assert not isinstance(self.training.length, TokensPerParam), "unresolved length; use plan.expand"
        tree = self.model_dump(mode="json")
        # Fields that were added later; without them, older trials keep their ids.
        if isinstance(self.model, ModelByWidth):
            for name in ("kind", "loop", "mlp", "parallel"):
                if getattr(self.model, name) == ModelByWidth.model_fields[name].default:
                    del tree["model"][name]
        if self.adapter is None:
            del tree["adapter"]
        if self.training.evaluate_at is EvaluationPlaces.DOUBLINGS:
            del tree["training"]["evaluate_at"]
        if not self.questions.held_out.people and "held_out" in tree["questions"]:
            del tree["questions"]["held_out"]["people"]
        parts = ("profiles", "tokenizer", "model")
        loaded: list[tuple[Spec, Any]] = [(getattr(self, name), tree[name]) for name in parts]
        if self.fill:
            loaded += [(self.fill.profiles, tree["fill"]["profiles"]), (self.fill.parent, tree["fill"]["parent"])]
        for part, fields in loaded:
            if fields.get("frequencies") is None:
                fields.pop("frequencies", None)
            if isinstance(part, (LoadedProfiles, ParentModel, PretrainedModel, PretrainedTokenizer)):
                for name in ("source", "path", "hub", "split", "revision"):
                    fields.pop(name, None)
        return tree
