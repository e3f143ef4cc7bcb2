"""What every spec is made of: the frozen base model, its errors, and the names that specs and results share."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Frozen, no unknown fields, no conversions between types, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def broken_rule(rule: str, **values: object) -> PydanticCustomError:
    return PydanticCustomError("raycap_rule", rule, values)


def _without_blanks_around(text: str) -> str:
    if not text or text != text.strip():
        raise broken_rule("must not be empty, nor begin or end with a blank, got '{got}'", got=text)
    return text


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Text = Annotated[str, AfterValidator(_without_blanks_around)]
"""A name or a place that is not in this file."""


def by_kind(default: str) -> Discriminator:
    """Which member of a union a value is, by its `kind`; tags are written "<kind>", so that they are no places in a file."""

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return f"<{kind}>"

    return Discriminator(tag)


class EncodingScheme(StrEnum):
    """How a model might store the facts it answers questions about (SCIENCE: code lengths in bits)."""

    OPTIMAL = "optimal"
    """Recurrent composition, each fact once: names + N (A + R log2 N)."""
    TWO_HOP_DOUBLE = "2-hop-double"
    """Two-function composition, relations stored twice: names + N (A + 2 R log2 N)."""
    TWO_HOP_BIG_HASH = "2-hop-big-hash"
    """Every trained two-hop answer memorised by itself: names + the bits of every answer, f2 N R (A + R log2 N) if the
    share f2 of the questions is trained."""


class SelectionScheme(StrEnum):
    """How a model might store which N of the M possible names exist."""

    SET = "set"
    """The set without order, log2 C(M, N)."""
    ENUMERATE = "enumerate"
    """A list of names, N log2 M."""
    INDEPENDENT = "independent"
    """Nothing for the set, but log2 M instead of log2 N for every name-valued answer."""


class Accounting(StrEnum):
    """Where code lengths take their entropies from."""

    EXACT = "exact"
    """From the distributions that the data are drawn from."""
    OBSERVED = "observed"
    """From the distinct values that happen to occur, as the reference does: to compare with its numbers, quirks and all."""


class Kind(StrEnum):
    """What a text asks or tells, in the order in which kinds speak for a trial: the last one trained is its headline."""

    NAME = "name"
    """A name and nothing else (or a random string)."""
    BIOGRAPHY = "biography"
    """Sentences about one person."""
    ONE_HOP = "one_hop"
    TWO_HOP = "two_hop"
    THREE_HOP = "three_hop"

    @classmethod
    def of_hops(cls, hops: int) -> "Kind":
        """The kind of a k-hop question."""
        return (cls.ONE_HOP, cls.TWO_HOP, cls.THREE_HOP)[hops - 1]

    @property
    def hops(self) -> int:
        """Facts an answer follows from, one after the other; a name is an answer to nothing."""
        return {Kind.NAME: 0, Kind.TWO_HOP: 2, Kind.THREE_HOP: 3}.get(self, 1)

    @property
    def names_are_measured(self) -> bool:
        """Whether such texts tell the loss of names themselves, which questions leave to inference."""
        return self in (Kind.NAME, Kind.BIOGRAPHY)


class Split(StrEnum):
    """Which component of a two-hop question "What was A's relation's subject?" is never trained in such questions."""

    TRAIN = "train"
    """None: the question is trained."""
    FIRST_PEOPLE = "first_people"
    """The person asked about, A."""
    RELATIONS = "relations"
    """The relation that is followed."""
    FIRST_PAIRS = "first_pairs"
    """Person and relation together."""
    SECOND_PEOPLE = "second_people"
    """The person the relation leads to."""
    SECOND_SUBJECTS = "second_subjects"
    """What is asked of the second person."""
    SECOND_PAIRS = "second_pairs"
    """Second person and subject together."""
    TUPLES = "tuples"
    """Person, relation and subject together, and nothing less."""
    SEVERAL = "several"
    """More than one of the above independently."""


class RelationStructure(StrEnum):
    """How relations are drawn."""

    UNIFORM = "uniform"
    """Each relation of each person is an independent uniform draw over all people."""
    BIPARTITE = "bipartite"
    """parent and child are inverse bijections between two halves (parents have no parent, children no child), best_friend
    and worst_enemy are perfect matchings, the other relations uniform. Needs an even number of people."""
