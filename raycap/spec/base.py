"""What every spec is made of: the frozen base model, its errors, and the schemes that readings are named by."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict
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
