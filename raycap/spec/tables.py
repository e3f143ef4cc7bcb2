"""Specs of a population that is a table of the user's own: its columns, the distributions of its facts, its wording."""

import math
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag, model_validator

from raycap.spec.base import Spec, Text, broken_rule, by_kind
from raycap.spec.document import did_you_mean
from raycap.spec.frequencies import TableFrequenciesSpec
from raycap.spec.locations import LocalLocation

TABLE_FORMATS = (".csv", ".parquet", ".jsonl")
"""Endings of the files that can be read as tables."""
MAX_SUBJECTS = 100
"""Largest number of subjects of a table. Labels of measures are bytes, and a chain of thought has two per subject."""
MAX_PHRASINGS = 50
"""Largest number of phrasings of a question, and of leads of a sentence."""
MAX_NAMES = 2**53
"""Largest number of possible names that can be declared. All readers of JSON represent it exactly."""
NAME_PLACE = "{name}"
"""Part of a question that the name of a person, or of the second person, replaces."""
RESERVED = ("name", "names", "total")
"""Subjects that results use for the names and the sum of all subjects."""


class LoadedProfiles(Spec):
    """Fields of all loaded populations."""

    path: str
    """Place of the data."""
    fingerprint: str | None = None
    """SHA-256 of the population's content. `plan` fills it in, so that a trial is identified by its data and not by
    their path. Set it to refuse data with different content."""


class Distribution(StrEnum):
    """The distribution that prices the facts of a table about one subject. See docs/science.md#tables."""

    EMPIRICAL = "empirical"
    """The frequencies of the values in the table."""
    UNIFORM = "uniform"
    """Equally likely values."""
    GIVEN = "given"
    """Probabilities that the spec gives."""


class EmpiricalDistribution(Spec):
    """The frequencies of the values in the table. A fact costs their entropy. The frequencies themselves are taken as
    known; the bits that state them are reported beside the code length."""

    kind: Literal["empirical"] = "empirical"
    """Price facts by the frequencies in the table."""


class UniformDistribution(Spec):
    """Equally likely values from a pool: log2 of its size per fact."""

    kind: Literal["uniform"]
    """Price facts by the size of a pool."""
    num_values: int | None = Field(default=None, ge=1)
    """Number of values in the pool, at least as many as occur. Required for attributes. The default for a relation is
    the number of people."""


def _sum_to_one(probabilities: dict[str, float]) -> dict[str, float]:
    if not math.isclose(total := math.fsum(probabilities.values()), 1.0, rel_tol=0, abs_tol=1e-6):
        raise broken_rule("must add up to 1, got a sum of {total}", total=f"{total:.6g}")
    return probabilities


class GivenDistribution(Spec):
    """Given probabilities. A fact whose value has probability p costs -log2 p bits."""

    kind: Literal["given"]
    """Price facts by `probabilities`."""
    probabilities: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_sum_to_one)
    ]
    """Probability of each value, as it is written in the table. They add up to 1, and every value that occurs has one."""


DistributionSpec = Annotated[
    Annotated[EmpiricalDistribution, Tag("<empirical>")]
    | Annotated[UniformDistribution, Tag("<uniform>")]
    | Annotated[GivenDistribution, Tag("<given>")],
    by_kind("empirical"),
]


def _check_question(template: str) -> str:
    before, place, after = template.partition(NAME_PLACE)
    if (
        not place
        or NAME_PLACE in after
        or not after.startswith((" ", "?", "'s "))
        or not after.endswith("?")
        or (before and not before.endswith(" "))
    ):
        raise broken_rule(
            'must contain {place} once, between spaces or before "\'s" or the question mark, and end with a question '
            "mark, such as 'Where was {place} born?', got '{got}'",
            place=NAME_PLACE,
            got=template,
        )
    return template


QuestionTemplate = Annotated[Text, AfterValidator(_check_question)]


class Subject(Spec):
    """Settings of one subject of a table: of an attribute, or of a relation."""

    distribution: DistributionSpec = EmpiricalDistribution()
    """Distribution that prices the facts."""
    missing: Literal["refuse", "void"] = "refuse"
    """Treatment of missing values: empty fields in CSV, null or absent keys in JSONL, null in Parquet. `void` states that
    the person has no such fact, so there is no text about it. By default a missing value is an error."""
    unknown: Literal["refuse", "void"] = "refuse"
    """Treatment of values of a relation that are no name of the table. `void` states that the person has no such
    relation. By default an unknown name is an error."""
    phrase: Text | None = None
    """Noun that denotes the subject after a possessive, as in "A's best friend". The default is the subject with spaces
    in place of underscores."""
    questions: tuple[QuestionTemplate, ...] = Field(default=(), max_length=MAX_PHRASINGS)
    """Phrasings of the question, such as "Where was {name} born?". {name} stands for the person; in questions of several
    hops, for "A's parent". Every fact is asked in every phrasing. The default is "What was {name}'s PHRASE?"."""
    leads: tuple[Text, ...] = Field(default=(), max_length=MAX_PHRASINGS)
    """Phrasings of the sentence in a biography: the text between the name (or "They") and the value, such as "came
    from". The verb must fit both. Each biography uses one of them. The default is at least 20 leads, most of which
    contain the phrase."""


def _check_table_path(path: str) -> str:
    if not path.lower().endswith(TABLE_FORMATS):
        raise broken_rule("must end in {formats}, got '{got}'", formats=" or ".join(TABLE_FORMATS), got=path)
    return path


def _check_subject(name: str) -> str:
    if name in RESERVED or not re.fullmatch(r"[^\W_][\w '’().,&/+%-]*", name):
        raise broken_rule(
            "cannot be used as a subject, got '{got}'; it must begin with a letter or digit, contain only letters, digits, "
            "spaces and _'().,&/+%-, and not be one of {reserved}; rename the column",
            got=name,
            reserved=", ".join(RESERVED),
        )
    return name


SubjectName = Annotated[Text, AfterValidator(_check_subject)]


class ProfilesFromTable(LoadedProfiles):
    """A population from a table of any facts: one row per person (or other thing), one column per attribute or relation."""

    source: Literal["table"]
    """Load the facts from the table `path`."""
    path: Annotated[LocalLocation, AfterValidator(_check_table_path)]
    """Path of a .csv, .parquet or .jsonl file. Every field of a CSV file is text, and an empty field is a missing value. A
    path in the form file:///... states that every machine of the cluster has the file at that path."""
    name: Text
    """Column of the names. They are unique and consist of any number of words."""
    attributes: tuple[SubjectName, ...] = ()
    """Columns of the attributes. The name of a column is the subject of its questions."""
    relations: dict[SubjectName, Text] = {}
    """Columns of the relations, by subject. A value is the name of another row, or of the same."""
    subjects: dict[str, Subject] = {}
    """Settings of attributes and relations: the distribution that prices them, missing values and wording."""
    frequencies: TableFrequenciesSpec | None = None
    """How often the people occur in the training texts, relative to each other: zipf, classes, or a column of the table. By
    default all occur equally often. See docs/science.md#frequencies."""
    num_names: int | None = Field(default=None, ge=1, le=MAX_NAMES)
    """M, the number of possible names. By default it is computed from the frequencies of the words of the names
    (docs/science.md#tables)."""

    @model_validator(mode="after")
    def _columns_fit_together(self) -> "ProfilesFromTable":
        known = (*self.attributes, *self.relations)
        if not 0 < len(known) <= MAX_SUBJECTS:
            raise broken_rule(
                "attributes and relations must be 1 to {most} in total, got {num}", most=MAX_SUBJECTS, num=len(known)
            )
        for field, columns in (
            ("attributes and relations", known),
            ("columns", (self.name, *self.attributes, *self.relations.values())),
        ):
            if repeated := _repeated(columns):
                raise broken_rule("{field}: {repeated} occur more than once", field=field, repeated=str(repeated))
        for name, subject in self.subjects.items():
            if name not in known:
                raise broken_rule(
                    "subjects.{name}: is neither an attribute nor a relation{hint}",
                    name=name,
                    hint=did_you_mean(name, known) or f"; known are: {', '.join(known)}",
                )
            if name in self.attributes and subject.unknown != "refuse":
                raise broken_rule("subjects.{name}.unknown: applies to relations only; remove it", name=name)
            distribution = subject.distribution
            if (
                isinstance(distribution, UniformDistribution)
                and distribution.num_values is None
                and name in self.attributes
            ):
                raise broken_rule("subjects.{name}.distribution.num_values: is required for an attribute", name=name)
        return self

    def __hash__(self) -> int:  # the hash that Pydantic generates fails for mappings
        return hash(self.model_dump_json())

    def subject(self, name: str) -> Subject:
        """Return the settings of a subject."""
        return self.subjects.get(name, Subject())

    @property
    def num_phrasings(self) -> int:
        """Number of phrasings in which every question is asked: the largest number of any subject."""
        return max([1, *(len(subject.questions) for subject in self.subjects.values())])


def _repeated(names: Iterable[str]) -> list[str]:
    names = list(names)
    return sorted({name for name in names if names.count(name) > 1})
