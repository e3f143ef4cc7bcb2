"""Base class of all specs, shared field types, and the enumerations that specs and results have in common."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Base class of specs: frozen, without unknown fields, type conversions, NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def broken_rule(rule: str, **values: object) -> PydanticCustomError:
    """Return the error of a value that breaks a rule; `values` fill the placeholders of `rule`."""
    return PydanticCustomError("raycap_rule", rule, values)


def _check_stripped(text: str) -> str:
    if not text or text != text.strip():
        raise broken_rule("must not be empty and must not begin or end with whitespace, got '{got}'", got=text)
    return text


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Text = Annotated[str, AfterValidator(_check_stripped)]
"""Non-empty text without surrounding whitespace, such as a path or a name."""


def by_kind(default: str) -> Discriminator:
    """Return a discriminator that selects the member of a union by the field `kind`.

    Tags have the form "<kind>". Pydantic puts tags into the location of an error, and the angle brackets distinguish
    them there from field names (see faults.py).
    """

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return f"<{kind}>"

    return Discriminator(tag)


class EncodingScheme(StrEnum):
    """A way to encode the facts that questions ask for. Each scheme assigns a code length to a population.

    N is the number of people, A the entropy of one person's attributes in bits, R the number of relations, and "names"
    the bits of the set of names under the selection scheme. See docs/science.md#schemes.
    """

    OPTIMAL = "optimal"
    """Each fact is stored once and composed recurrently: names + N (A + R log2 N)."""
    TWO_HOP_DOUBLE = "2-hop-double"
    """Composition of two functions, so that relations are stored twice: names + N (A + 2 R log2 N)."""
    TWO_HOP_BIG_HASH = "2-hop-big-hash"
    """Every trained two-hop answer is stored separately: names + f N R (A + R log2 N), where f is the fraction of
    two-hop questions that is trained."""


class SelectionScheme(StrEnum):
    """How a model might encode which N of the M possible names occur. See docs/science.md#selections."""

    SET = "set"
    """As a set without order: log2 C(M, N) bits."""
    ENUMERATE = "enumerate"
    """As a list of names: N log2 M bits."""
    INDEPENDENT = "independent"
    """Not at all: 0 bits for the set, but log2 M instead of log2 N bits for every answer that is a name."""


class Accounting(StrEnum):
    """The source of the entropies in code lengths."""

    EXACT = "exact"
    """The distributions that the data are drawn from. For loaded data see docs/science.md#loaded."""
    OBSERVED = "observed"
    """The number of distinct values that occur in the data, as in the reference implementation. Use it only to compare
    with published numbers of the reference; see docs/science.md#observed."""


class Kind(StrEnum):
    """The kind of a text, in order of precedence: the last kind that a trial trains on is its headline kind."""

    NAME = "name"
    """A full name alone, or a random string."""
    BIOGRAPHY = "biography"
    """Sentences that state every fact about one person."""
    ONE_HOP = "one_hop"
    """A question about one fact, "What was A's employer?"."""
    TWO_HOP = "two_hop"
    """A question that follows one relation, "What was A's parent's employer?"."""
    THREE_HOP = "three_hop"
    """A question that follows two relations."""

    @classmethod
    def of_hops(cls, hops: int) -> "Kind":
        """Return the kind of questions of `hops` hops, 1 to 3."""
        return (cls.ONE_HOP, cls.TWO_HOP, cls.THREE_HOP)[hops - 1]

    @property
    def hops(self) -> int:
        """Number of facts that an answer is derived from: 1 to 3 for questions, 1 for biographies, 0 for names."""
        return {Kind.NAME: 0, Kind.TWO_HOP: 2, Kind.THREE_HOP: 3}.get(self, 1)

    @property
    def names_are_measured(self) -> bool:
        """Whether the loss of the names themselves is measured. Questions contain names only as input."""
        return self in (Kind.NAME, Kind.BIOGRAPHY)


class Split(StrEnum):
    """The component of a two-hop question "What was A's relation's subject?" that training questions never show.

    Every question belongs to exactly one split. See docs/science.md#splits.
    """

    TRAIN = "train"
    """No component: the question is a training question."""
    FIRST_PEOPLE = "first_people"
    """The person that the question names, A."""
    PEOPLE = "people"
    """The person that the question names or the second person, who take part in no training question of two or more hops."""
    RELATIONS = "relations"
    """The relation that the question follows."""
    FIRST_PAIRS = "first_pairs"
    """The pair of person and relation."""
    SECOND_PEOPLE = "second_people"
    """The second person, to whom the relation leads."""
    SECOND_SUBJECTS = "second_subjects"
    """The subject that is asked about the second person."""
    SECOND_PAIRS = "second_pairs"
    """The pair of second person and subject."""
    TUPLES = "tuples"
    """The triple of person, relation and subject, while each smaller component occurs in training."""
    SEVERAL = "several"
    """Two or more of the components above independently."""


class RelationStructure(StrEnum):
    """The distribution of relations. See docs/science.md#relations."""

    UNIFORM = "uniform"
    """Each relation of each person is drawn independently and uniformly from all people."""
    BIPARTITE = "bipartite"
    """parent and child are inverse bijections between two halves of the people, so that parents have no parent and
    children no child. best_friend and worst_enemy are perfect matchings. Other relations are uniform. The number of
    people must be even."""
