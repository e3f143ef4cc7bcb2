"""Specs of the training texts: questions of one or more hops, biographies, and names alone."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from raycap.spec.base import Kind, Seed, Spec, Split, Weight, broken_rule
from raycap.spec.user_code import UserCode

Hops = Literal[1, 2, 3]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class HeldOut(Spec):
    """Components of questions that are excluded from the training questions of two or more hops.

    In "What was A's relation's subject?", A is the first person and A's relation is the second person. Each fraction is
    applied to the set of all components of its kind. One-hop questions are always trained, so the facts themselves are
    learned. A three-hop question is held out if one of its two-hop parts is. See docs/science.md#splits.
    """

    first_people: Fraction = 0.0
    """Fraction of the people who never occur as first person."""
    people: Fraction = 0.0
    """Fraction of the people whose facts are never composed: they occur neither as first nor as second person. They may be
    the answer, which is a fact about another person."""
    relations: Fraction = 0.0
    """Fraction of the relations that are never followed."""
    first_pairs: Fraction = 0.0
    """Fraction of the (first person, relation) pairs that never occur."""
    second_people: Fraction = 0.0
    """Fraction of the people who never occur as second person."""
    second_subjects: Fraction = 0.0
    """Fraction of the subjects that are never asked about a second person."""
    second_pairs: Fraction = 0.0
    """Fraction of the (second person, subject) pairs that never occur."""
    tuples: Fraction = 0.0
    """Fraction of the (first person, relation, subject) triples, that is of complete questions, that never occur."""
    seed: Seed = 0
    """Random seed of the held-out components. Each kind has its own random stream: adding one does not change the
    others."""

    @property
    def fractions(self) -> dict[Split, float]:
        """Fractions that are not zero, by kind of component."""
        kinds = (split for split in Split if split not in (Split.TRAIN, Split.SEVERAL))
        return {split: fraction for split in kinds if (fraction := getattr(self, split)) > 0}


class _Questions(Spec):
    kind: Literal["hops"] = "hops"
    """Questions with the numbers of hops in `hops`."""
    hops: tuple[Hops, ...] = (1,)
    """Numbers of hops, each 1, 2 or 3, in ascending order. One hop: "What was A's employer?"; two hops: "What was A's
    parent's employer?"; [1, 2] trains on both. The result of a trial is read from the questions with the most hops."""
    chain_of_thought: bool = False
    """Whether answers to questions of two or more hops contain the name at every intermediate step before the final
    answer. The losses of the intermediate steps and of the final answer are reported separately."""
    held_out: HeldOut = HeldOut()
    """Components that are excluded from the training questions of two or more hops."""

    @field_validator("hops")
    @classmethod
    def _sorted_and_unique(cls, hops: tuple[int, ...]) -> tuple[int, ...]:
        if not hops or tuple(sorted(set(hops))) != hops:
            raise broken_rule("must be one or more of 1, 2, 3 in ascending order, got {got}", got=str(list(hops)))
        return hops

    @field_validator("chain_of_thought")
    @classmethod
    def _chains_need_links(cls, chain_of_thought: bool, info: Any) -> bool:
        if chain_of_thought and max(info.data.get("hops", (2,))) == 1:
            raise broken_rule("has no effect on one-hop questions; remove it or set hops: [1, 2]")
        return chain_of_thought

    @field_validator("held_out")
    @classmethod
    def _single_hops_are_never_held_out(cls, held_out: HeldOut, info: Any) -> HeldOut:
        if held_out.fractions and max(info.data.get("hops", (2,))) == 1:
            raise broken_rule(
                "applies to questions of two or more hops, but hops is [1]; remove it or set hops: [1, 2]"
            )
        return held_out

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of the questions for each number of hops."""
        return tuple(Kind.of_hops(hops) for hops in self.hops)


def _default_one_hop_share(data: dict[str, Any]) -> float:
    hops = data.get("hops", (1,))
    return 1.0 if hops == (1,) else 1 / 11 if 1 in hops else 0.0


class QuestionsByShare(_Questions):
    """Questions with a given share of one-hop questions. The other numbers of hops share the rest equally."""

    one_hop_share: float = Field(default_factory=_default_one_hop_share, ge=0, le=1)
    """Share of one-hop questions among the training questions. The default is 1/11 if hops contains 1 and more, as in
    the reference implementation (1 : 10). Set it only if hops contains 1 and another number."""

    @field_validator("one_hop_share")
    @classmethod
    def _share_fits_hops(cls, share: float, info: Any) -> float:
        hops = info.data.get("hops")
        if hops is None:
            return share
        if (hops == (1,) or 1 not in hops) and share != _default_one_hop_share(info.data):
            raise broken_rule("has no effect if hops is {hops}; remove it or set hops: [1, 2]", hops=str(list(hops)))
        if 1 in hops and len(hops) > 1 and not 0 < share < 1:
            raise broken_rule(
                "must be greater than 0 and less than 1 if hops is {hops}, got {got}", got=share, hops=str(list(hops))
            )
        return share

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each kind among the trained questions."""
        longer = sum(hops > 1 for hops in self.hops)
        return tuple(self.one_hop_share if hops == 1 else (1 - self.one_hop_share) / longer for hops in self.hops)


class QuestionsByWeights(_Questions):
    """Questions with a given weight for each number of hops."""

    weights: tuple[Weight, ...]
    """Relative weight of each number of hops, in the order of `hops`. A weight divided by the sum of all weights is the
    share of those questions among the training questions. The last weight must be positive."""

    @field_validator("weights")
    @classmethod
    def _one_for_each(cls, weights: tuple[float, ...], info: Any) -> tuple[float, ...]:
        hops = info.data.get("hops")
        if hops is not None:
            check_weights(weights, len(hops), "hops")
            if weights[-1] == 0:
                raise broken_rule(
                    "the last weight must be positive, got {got}; results are read from the most hops",
                    got=str(list(weights)),
                )
        return weights

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each kind among the trained questions."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def check_weights(weights: tuple[float, ...], num: int, things: str) -> None:
    """Raise PydanticCustomError unless there are `num` weights, of which at least one is positive."""
    if len(weights) != num or not sum(weights) > 0:
        raise broken_rule(
            "must be {num} weights, one for each of {things}, not all 0, got {got}",
            num=num,
            things=things,
            got=str(list(weights)),
        )


class _OneKind(Spec):
    """Texts of a single kind without held-out components."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the single kind."""
        return (1.0,)

    @property
    def held_out(self) -> HeldOut:
        """No held-out components."""
        return HeldOut()

    @property
    def chain_of_thought(self) -> bool:
        """False: there are no intermediate steps."""
        return False


class _AboutPeople(_OneKind):
    """Texts that each state the facts about one person."""

    per_person: int = Field(default=1, ge=1, le=1000)
    """k, the number of different texts of each person."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind BIOGRAPHY."""
        return (Kind.BIOGRAPHY,)


class Biographies(_AboutPeople):
    """Biographies: one templated sentence for each fact about a person, as in bioS (arXiv 2404.05405, section 2)."""

    kind: Literal["biographies"]
    """Biographies instead of questions."""
    permute: bool = False
    """Whether each biography has its sentences in a random order. If false, all biographies use the same order."""
    seed: Seed = 0
    """Random seed of the templates and the sentence orders."""


class UserTexts(_AboutPeople, UserCode):
    """Texts about people that the user's own module writes. They are analysed as biographies.

    The function is called with the population and the number of texts per person, and returns a corpus. See
    docs/architecture.md#your-own-code.
    """

    kind: Literal["custom"]
    """Texts of your own module instead of questions."""

    arguments: ClassVar[tuple[str, ...]] = ("profiles", "per_person")


class NamesOnly(_OneKind):
    """Names alone, or random strings: the loss of the names is measured instead of inferred from questions."""

    kind: Literal["names"]
    """Names without questions."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind NAME."""
        return (Kind.NAME,)


def _questions_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "<hops/weights>" if isinstance(value, QuestionsByWeights) else f"<{getattr(value, 'kind', 'none')}>"
    fields = value if isinstance(value, dict) else {}
    kind = fields.get("kind", "hops")
    return "<hops/weights>" if kind == "hops" and "weights" in fields else f"<{kind}>"


QuestionsSpec = Annotated[
    Annotated[QuestionsByShare, Tag("<hops>")]
    | Annotated[QuestionsByWeights, Tag("<hops/weights>")]
    | Annotated[Biographies, Tag("<biographies>")]
    | Annotated[NamesOnly, Tag("<names>")]
    | Annotated[UserTexts, Tag("<custom>")],
    Discriminator(_questions_kind),
]
