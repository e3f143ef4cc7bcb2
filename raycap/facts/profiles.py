"""Populations as integer arrays: the schema of a profile (Schema), the people (Profiles), and their generation.

    names       (N, 3)  first, middle and last name as indices into the schema's name pools
    attributes  (N, 4)  indices into the values of each attribute, or NO_VALUE
    relations   (N, R)  index of the person that each relation leads to, or NO_PERSON

Random data and tables use the same arrays. The keys of random pairs are people whose names are given, and random strings
are names with many parts. Names of a table have as many parts as its longest name; the parts that a shorter name lacks
are empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.fit import entropy_bits
from raycap.facts.frequencies import Frequencies
from raycap.facts.names import BIRTH_CITIES, EMPLOYERS, RELATIONS, UNIVERSITIES, census_first_names, census_last_names
from raycap.facts.relations import NO_PERSON, draw_relations
from raycap.facts.wordings import Wording
from raycap.results import ObservedFacts, PopulationFacts, SubjectPrice
from raycap.spec import NamePools, RelationStructure

IntArray = NDArray[np.int32]

NO_VALUE = -1
"""Index of the value of an attribute that a person does not have, which only tables contain."""
FIRST_YEAR, LAST_YEAR, DAYS_PER_MONTH = 1900, 2099, 28
"""Range of birth dates. Days of the month are clipped to 28."""


@dataclass(frozen=True)
class Attribute:
    """An attribute and its distribution: value i has probability weights[i] / sum(weights).

    Sampling and entropy use the same integer weights, so they are consistent.
    """

    name: str
    values: tuple[str, ...]
    weights: NDArray[np.int64]
    declared_bits: float | None = None
    """Bits of an answer under the distribution that the spec of a table declares, if any."""

    @classmethod
    def uniform(cls, name: str, values: tuple[str, ...]) -> "Attribute":
        """Return an attribute with equally likely values."""
        return cls(name, values, np.ones(len(values), np.int64))

    @property
    def entropy_bits(self) -> float:
        """Entropy H = log2 T - sum_i w_i log2 w_i / T in bits, where T = sum_i w_i, unless the bits are declared."""
        return entropy_bits(self.weights) if self.declared_bits is None else self.declared_bits

    @cached_property
    def are_dates(self) -> bool:
        """Whether all values have the form of a date, 1950-01-02."""
        return all(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value) for value in self.values)

    def words(self, value: str) -> tuple[str, ...]:
        """Return the words of a value for the word tokenizer: the value, or year, month and day if all are dates.

        One word per possible date would add 67,200 tokens to the vocabulary. One word per date that occurs would add
        fewer, but then the vocabulary would contain information about the population.
        """
        return (value[:4], value[4:7], value[7:]) if self.are_dates else (value,)

    def sample(self, num: int, *, rng: np.random.Generator) -> IntArray:
        """Draw `num` independent values and return their indices, shape (num,)."""
        cumulative = np.cumsum(self.weights)
        return np.searchsorted(cumulative, rng.integers(cumulative[-1], size=num), side="right").astype(np.int32)


@dataclass(frozen=True)
class Schema:
    """The name pools, attributes and relations of a population, and how they are distributed."""

    name_pools: tuple[tuple[str, ...], ...]
    attributes: tuple[Attribute, ...]
    relations: tuple[str, ...]
    structure: RelationStructure = RelationStructure.UNIFORM
    self_relations: bool = True
    names_given: bool = False
    """Whether names cost no bits because all possible names occur, as for the keys of random pairs."""
    num_excluded: int = 0
    """Number of names that the pools contain but that were excluded, because a first population uses them."""
    num_loaded_names: int | None = None
    """M of loaded names that were not drawn from the census lists; see docs/science.md#loaded."""
    relation_entropies_bits: Mapping[str, float] = field(default_factory=dict)
    """Entropy of an answer about each loaded relation that is not a uniform draw; see docs/science.md#loaded."""
    prices: Mapping[str, SubjectPrice] = field(default_factory=dict)
    """How the facts of a table are priced, by subject."""
    wordings: Mapping[str, Wording] = field(default_factory=dict)
    """Wording of the subjects that have another one than the default."""

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of questions about a person: the attributes, then the relations."""
        return (*(attribute.name for attribute in self.attributes), *self.relations)

    def wording(self, subject: str) -> Wording:
        """Return the wording of the texts about a subject."""
        return self.wordings.get(subject) or Wording.of(subject)

    def leads(self, subject: str) -> tuple[str, ...]:
        """Return the leads of sentences about a subject in biographies."""
        return self.wording(subject).leads(subject, is_relation=subject in self.relations)

    @property
    def num_phrasings(self) -> int:
        """Number of phrasings in which each question is asked."""
        return max([1, *(len(wording.questions) for wording in self.wordings.values())])

    @property
    def num_names(self) -> int:
        """M, the number of possible full names."""
        return (self.num_loaded_names or math.prod(map(len, self.name_pools))) - self.num_excluded

    def facts(self, num_profiles: int) -> PopulationFacts:
        """Return the sizes and entropies that code lengths are computed from, for a population of this schema."""
        entropies = {attribute.name: attribute.entropy_bits for attribute in self.attributes}
        return PopulationFacts(
            num_profiles=num_profiles,
            num_names=self.num_names,
            attribute_entropies_bits=entropies,
            relations=self.relations,
            relation_entropies_bits=dict(self.relation_entropies_bits),
            structure=self.structure,
            self_relations=self.self_relations,
            names_given=self.names_given,
            prices=dict(self.prices),
            num_phrasings=self.num_phrasings,
        )


@dataclass(frozen=True)
class Profiles:
    """A population. The rows of all arrays are people."""

    schema: Schema
    names: IntArray
    attributes: IntArray
    relations: IntArray
    bios: tuple[str, ...] | None = None
    """The column `bio` of a loaded dataset, kept only to be exported again."""
    unused_columns: tuple[str, ...] = ()
    """Other columns of a loaded dataset, which are neither trained on nor exported."""
    frequencies: Frequencies | None = None
    """How often the people occur in the training texts; None if all occur equally often."""

    @property
    def num_profiles(self) -> int:
        """Number of people, N."""
        return len(self.names)

    @property
    def facts(self) -> PopulationFacts:
        """The sizes and entropies that code lengths are computed from, and the numbers of distinct values that
        occur."""
        classes = self.frequencies.classes if self.frequencies else ()
        return self.schema.facts(self.num_profiles).model_copy(
            update={"observed": self._observed, "frequencies": classes}
        )

    @cached_property
    def _observed(self) -> ObservedFacts:
        columns = zip(self.schema.relations, self.relations.T, strict=True)
        targets = {relation: _occurring(column[column != NO_PERSON], self.num_profiles) for relation, column in columns}
        num_values = {a.name: len(used) for a, used in zip(self.schema.attributes, self.used_values, strict=True)}
        return ObservedFacts(
            num_values=num_values | {relation: len(people) for relation, people in targets.items()},
            num_names=self._num_combinations(np.arange(self.num_profiles)),
            num_answered_names={relation: self._num_combinations(people) for relation, people in targets.items()},
        )

    def _num_combinations(self, people: NDArray[np.integer]) -> int:
        """Return the number of full names that can be formed from the name parts of some people."""
        columns = zip(self.names[people].T, self.schema.name_pools, strict=True)
        return math.prod(len(_occurring(parts, len(pool))) for parts, pool in columns)

    def name_parts(self, person: int) -> tuple[str, ...]:
        """Return the first, middle and last name of a person, or the words of a name of a table."""
        parts = (pool[index] for pool, index in zip(self.schema.name_pools, self.names[person], strict=True))
        return tuple(filter(None, parts))

    def full_name(self, person: int) -> str:
        """Return the full name of a person."""
        return " ".join(self.name_parts(person))

    def attribute_value(self, person: int, attribute: int) -> str | None:
        """Return the value of a person's attribute as text, or None if there is none."""
        value = int(self.attributes[person, attribute])
        return None if value == NO_VALUE else self.schema.attributes[attribute].values[value]

    @cached_property
    def used_values(self) -> tuple[IntArray, ...]:
        """Indices of the values that occur, in ascending order, for each attribute. Few of the 67,200 dates occur."""
        columns = zip(self.attributes.T, self.schema.attributes, strict=True)
        return tuple(
            _occurring(column[column != NO_VALUE], len(attribute.values)).astype(np.int32)
            for column, attribute in columns
        )

    @cached_property
    def answers(self) -> IntArray:
        """Answer to each one-hop question, shape (N, S) for S subjects, or NO_PERSON if there is none.

        An answer is an index into the concatenation of all people and the `used_values` of each attribute.
        """
        columns, begin = [], self.num_profiles
        for column, used in zip(self.attributes.T, self.used_values, strict=True):
            columns.append(np.where(column == NO_VALUE, NO_PERSON, begin + np.searchsorted(used, column)))
            begin += len(used)
        return np.concatenate([np.array(columns, np.int32).reshape(-1, self.num_profiles).T, self.relations], axis=1)

    @property
    def untrained_columns(self) -> tuple[str, ...]:
        """Columns of a loaded dataset that no text is made of."""
        return (*self.unused_columns, *(("bio",) if self.bios is not None else ()))

    @property
    def all_answers_exist(self) -> bool:
        """Whether every one-hop question has an answer."""
        return bool((self.relations != NO_PERSON).all() and (self.attributes != NO_VALUE).all())


@cache
def birth_dates() -> Attribute:
    """Return the attribute birth_date, with the distribution of the reference implementation.

    A day is drawn uniformly from 1900-01-01 .. 2099-12-30 and its day of the month is clipped to 28. There are 67,200
    values with an entropy of 15.95 bits. The index of a value is 336 (year - 1900) + 28 (month - 1) + (day - 1). See
    docs/science.md#entropies.
    """
    days = np.arange(np.datetime64("1900-01-01"), np.datetime64("2099-12-31"))
    years = days.astype("datetime64[Y]").astype(int) + 1970 - FIRST_YEAR
    months = days.astype("datetime64[M]").astype(int) % 12
    day_of_month = (days - days.astype("datetime64[M]")).astype(int)
    index = (years * 12 + months) * DAYS_PER_MONTH + np.minimum(day_of_month, DAYS_PER_MONTH - 1)
    values = tuple(
        f"{year}-{month:02}-{day:02}"
        for year in range(FIRST_YEAR, LAST_YEAR + 1)
        for month in range(1, 13)
        for day in range(1, DAYS_PER_MONTH + 1)
    )
    return Attribute("birth_date", values, np.bincount(index, minlength=len(values)))


def census_schema(
    pools: NamePools,
    num_relations: int,
    structure: RelationStructure = RelationStructure.UNIFORM,
    self_relations: bool = True,
) -> Schema:
    """Return the schema of generated populations: census names, four attributes and R relations."""
    attributes = (
        birth_dates(),
        Attribute.uniform("birth_city", BIRTH_CITIES),
        Attribute.uniform("university", UNIVERSITIES),
        Attribute.uniform("employer", EMPLOYERS),
    )
    first_names = census_first_names()
    name_pools = (first_names[: pools.first], first_names[: pools.middle], census_last_names()[: pools.last])
    return Schema(name_pools, attributes, RELATIONS[:num_relations], structure, self_relations)


def generate(schema: Schema, num_profiles: int, *, seed: int, exclude: "Profiles | None" = None) -> Profiles:
    """Generate a population with unique full names, independent attributes and relations of the schema's structure.

    Names, each attribute and each relation have separate random streams, so adding a relation changes nothing else.

    Args:
        schema: Name pools, attributes and relations.
        num_profiles: Number of people.
        seed: Random seed.
        exclude: Population whose names are not used.

    Raises:
        ValueError: There are fewer possible names than people, or relations are bipartite and num_profiles is odd.
    """
    excluded_ids = _name_ids(schema, exclude) if exclude else np.empty(0, np.int64)
    schema = replace(schema, num_excluded=len(excluded_ids))
    if num_profiles > schema.num_names:
        raise ValueError(
            f"num_profiles: must be at most {schema.num_names}, the number of possible names, got {num_profiles}"
        )

    def stream(purpose: str) -> np.random.Generator:
        return np.random.default_rng([seed, *purpose.encode()])

    name_ids = _distinct(schema.num_names + schema.num_excluded, num_profiles, excluded_ids, rng=stream("names"))
    names = np.stack(np.unravel_index(name_ids, [len(pool) for pool in schema.name_pools]), axis=1).astype(np.int32)
    attributes = [attribute.sample(num_profiles, rng=stream(attribute.name)) for attribute in schema.attributes]
    relations = draw_relations(schema.relations, num_profiles, schema.structure, schema.self_relations, stream)
    return Profiles(schema, names, np.stack(attributes, axis=1), relations)


def _name_ids(schema: Schema, people: "Profiles") -> NDArray[np.int64]:
    """Return the names of some people as indices into the schema's possible names, without names outside of its
    pools."""
    columns = []
    for pool, own, column in zip(schema.name_pools, people.schema.name_pools, people.names.T, strict=True):
        index_of = {part: index for index, part in enumerate(pool)}
        columns.append(np.array([index_of.get(part, -1) for part in own])[column])
    possible = np.min(columns, axis=0) >= 0
    shape = [len(pool) for pool in schema.name_pools]
    return np.asarray(np.ravel_multi_index([c[possible] for c in columns], shape), np.int64)


def _distinct(num_values: int, num: int, excluded: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `num` distinct integers in 0 .. num_values - 1 without the excluded ones, uniformly over ordered choices."""
    if num_values <= 4 * (num + len(excluded)):
        order = rng.permutation(num_values)
        return order[~np.isin(order, excluded)][:num]
    # The first `num` distinct values of a sequence of independent draws are a uniform draw without replacement. A
    # permutation would need memory in proportion to num_values, which is 2e12 for the census names.
    drawn = np.empty(0, np.int64)
    while True:
        more = rng.integers(num_values, size=num, dtype=np.int64)
        drawn = np.concatenate([drawn, more[~np.isin(more, excluded)]])
        first_indices = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first_indices) >= num:
            return drawn[first_indices[:num]]


def _occurring(indices: NDArray[np.integer], num_values: int) -> NDArray[np.int64]:
    """Return the distinct integers in `indices`, ascending. Marking them is much faster than sorting, as np.unique
    does."""
    marks = np.zeros(num_values, bool)
    marks[indices] = True
    return np.flatnonzero(marks)
