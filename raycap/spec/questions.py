"""What is asked of the people, or told about them: questions of one or more hops, biographies, names alone."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from raycap.spec.base import Kind, Seed, Spec, Split, Weight, broken_rule

Hops = Literal[1, 2, 3]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class HeldOut(Spec):
    """Components that questions of two or more hops never show in training, each a fraction of its own population.

    Single hops are always trained. A question of three hops is held out with the first of its two-hop parts that is.
    """

    first_people: Fraction = 0.0
    """Of the people: never asked about."""
    relations: Fraction = 0.0
    """Of the relations: never followed."""
    first_pairs: Fraction = 0.0
    """Of the (person, relation) pairs: never followed from there."""
    second_people: Fraction = 0.0
    """Of the people: never led to."""
    second_subjects: Fraction = 0.0
    """Of the subjects: never asked of the second person."""
    second_pairs: Fraction = 0.0
    """Of the (second person, subject) pairs: never asked for."""
    tuples: Fraction = 0.0
    """Of the complete (person, relation, subject) questions."""
    seed: Seed = 0
    """Seed of what is held out; each kind has a stream of its own, so one can be added without moving the others."""

    @property
    def fractions(self) -> dict[Split, float]:
        """The kinds that hold something out."""
        kinds = (split for split in Split if split not in (Split.TRAIN, Split.SEVERAL))
        return {split: fraction for split in kinds if (fraction := getattr(self, split)) > 0}


class _Questions(Spec):
    kind: Literal["hops"] = "hops"
    """Questions that follow so many facts to their answer."""
    hops: tuple[Hops, ...] = (1,)
    """[1]: "What was A's employer?"; [2]: "What was A's parent's employer?"; [1, 2]: both; up to 3."""
    chain_of_thought: bool = False
    """Let answers to questions of two or more hops spell every step before the last; its loss is reported apart."""
    held_out: HeldOut = HeldOut()
    """What questions of two or more hops never show in training."""

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
            raise broken_rule("has no effect on one-hop questions alone; remove it or set hops: [1, 2]")
        return chain_of_thought

    @field_validator("held_out")
    @classmethod
    def _single_hops_are_never_held_out(cls, held_out: HeldOut, info: Any) -> HeldOut:
        if held_out.fractions and max(info.data.get("hops", (2,))) == 1:
            raise broken_rule("holds out questions of two or more hops, but hops is [1]; remove it or set hops: [1, 2]")
        return held_out

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """One kind per number of hops."""
        return tuple(Kind.of_hops(hops) for hops in self.hops)


def _default_one_hop_share(data: dict[str, Any]) -> float:
    hops = data.get("hops", (1,))
    return 1.0 if hops == (1,) else 1 / 11 if 1 in hops else 0.0


class QuestionsByShare(_Questions):
    """Questions whose mix is given by the share of one-hop questions; more hops share the rest evenly."""

    one_hop_share: float = Field(default_factory=_default_one_hop_share, ge=0, le=1)
    """Share of one-hop questions among the trained ones. Default 1/11 where both are asked (the reference's 1 : 10)."""

    @field_validator("one_hop_share")
    @classmethod
    def _share_fits_hops(cls, share: float, info: Any) -> float:
        hops = info.data.get("hops")
        if hops is None:
            return share
        if (hops == (1,) or 1 not in hops) and share != _default_one_hop_share(info.data):
            raise broken_rule("has no effect when hops is {hops}; remove it or set hops: [1, 2]", hops=str(list(hops)))
        if 1 in hops and len(hops) > 1 and not 0 < share < 1:
            raise broken_rule(
                "must lie strictly between 0 and 1 when hops is {hops}, got {got}", got=share, hops=str(list(hops))
            )
        return share

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each kind among the trained questions."""
        longer = sum(hops > 1 for hops in self.hops)
        return tuple(self.one_hop_share if hops == 1 else (1 - self.one_hop_share) / longer for hops in self.hops)


class QuestionsByWeights(_Questions):
    """Questions whose mix is given by a weight for each number of hops."""

    weights: tuple[Weight, ...]
    """Weights in the order of hops; their proportions are the shares of the trained questions."""

    @field_validator("weights")
    @classmethod
    def _one_for_each(cls, weights: tuple[float, ...], info: Any) -> tuple[float, ...]:
        hops = info.data.get("hops")
        if hops is not None:
            check_weights(weights, len(hops), "hops")
            if weights[-1] == 0:
                raise broken_rule(
                    "must be positive for the most hops, which capacities are read from; got {got}: leave them out of hops",
                    got=str(list(weights)),
                )
        return weights

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each kind among the trained questions."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def check_weights(weights: tuple[float, ...], num: int, things: str) -> None:
    """Raise unless there are `num` weights and one is positive."""
    if len(weights) != num or not sum(weights) > 0:
        raise broken_rule(
            "must be {num} weights, one for each of {things}, not all 0, got {got}",
            num=num,
            things=things,
            got=str(list(weights)),
        )


class _OneKind(Spec):
    """Texts of one kind, of which nothing is held out."""

    @property
    def shares(self) -> tuple[float, ...]:
        """All of them are of the one kind."""
        return (1.0,)

    @property
    def held_out(self) -> HeldOut:
        """Nothing."""
        return HeldOut()

    @property
    def chain_of_thought(self) -> bool:
        """No steps before an answer."""
        return False


class Biographies(_OneKind):
    """Sentences about every subject of a person, from templates, in the manner of bioS (A-Z)."""

    kind: Literal["biographies"]
    """Texts about people instead of questions."""
    per_person: int = Field(default=1, ge=1, le=1000)
    """k: different biographies of each person."""
    permute: bool = False
    """Put the sentences of each biography in an order of its own."""
    seed: Seed = 0
    """Seed of templates and orders."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Biographies alone."""
        return (Kind.BIOGRAPHY,)


class NamesOnly(_OneKind):
    """The names themselves, or random strings: their loss measured, not inferred."""

    kind: Literal["names"]
    """Names without any question."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Names alone."""
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
    | Annotated[NamesOnly, Tag("<names>")],
    Discriminator(_questions_kind),
]
