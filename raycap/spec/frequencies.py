"""Specs of how often the people of a population occur in the training texts."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag

from raycap.spec.base import Seed, Spec, Text, broken_rule, by_kind

MAX_CLASSES = 20
"""Largest number of classes that a spec can list."""
MAX_RATIO = 1e6
"""Largest ratio of two frequencies."""


class ZipfFrequencies(Spec):
    """Frequencies that fall with a power of the rank: the person of rank r occurs in proportion to r^-exponent.

    Results are reported by octaves of the frequency: each class has the ranks within a factor of two.
    """

    kind: Literal["zipf"]
    """A power law of the rank."""
    exponent: float = Field(default=1.0, ge=0, le=2)
    """Exponent of the power law. With 0 all people are equally frequent."""
    seed: Seed = 0
    """Random seed of the ranks."""


class FrequencyClassSpec(Spec):
    """A class of people who occur equally often."""

    name: Text
    """Name of the class in results, such as useful or junk."""
    share: float = Field(gt=0, lt=1)
    """Fraction of the people who are in the class."""
    multiplicity: float = Field(gt=0, le=MAX_RATIO)
    """How often a text about them occurs, relative to the multiplicities of the other classes."""


def _check_classes(classes: tuple[FrequencyClassSpec, ...]) -> tuple[FrequencyClassSpec, ...]:
    names = [each.name for each in classes]
    if len(set(names)) != len(names):
        raise broken_rule("must have different names, got {got}", got=str(names))
    if not math.isclose(total := math.fsum(each.share for each in classes), 1.0, rel_tol=0, abs_tol=1e-6):
        raise broken_rule("shares must add up to 1, got a sum of {total}", total=f"{total:.6g}")
    return classes


class FrequencyClasses(Spec):
    """Classes of people, each with a share of the people and a multiplicity, such as useful and junk facts."""

    kind: Literal["classes"]
    """Classes with shares and multiplicities."""
    classes: Annotated[
        tuple[FrequencyClassSpec, ...], Field(min_length=2, max_length=MAX_CLASSES), AfterValidator(_check_classes)
    ]
    """The classes. Their shares add up to 1."""
    seed: Seed = 0
    """Random seed that assigns people to classes."""


class FrequencyColumn(Spec):
    """A column of a table with the frequency of each person."""

    kind: Literal["column"]
    """A column of the table."""
    column: Text
    """Column of positive numbers. A text about a person occurs in proportion to it. Each number is a class of results, or
    each octave if there are more than 16 different numbers."""


FrequenciesSpec = Annotated[
    Annotated[ZipfFrequencies, Tag("<zipf>")] | Annotated[FrequencyClasses, Tag("<classes>")], by_kind("zipf")
]
TableFrequenciesSpec = Annotated[
    Annotated[ZipfFrequencies, Tag("<zipf>")]
    | Annotated[FrequencyClasses, Tag("<classes>")]
    | Annotated[FrequencyColumn, Tag("<column>")],
    by_kind("zipf"),
]


class Population(Spec):
    """Fields of all populations and random data."""

    frequencies: FrequenciesSpec | None = None
    """How often the people, keys or strings occur in the training texts, relative to each other: zipf or classes. By default
    all occur equally often. See docs/science.md#frequencies."""
