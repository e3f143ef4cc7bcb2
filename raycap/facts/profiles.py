"""People as integer arrays: what a profile holds (Schema), and who there is (Profiles).

names       (N, 3)  first, middle, last: indices into the schema's name pools
attributes  (N, 4)  indices into the values of each attribute
relations   (N, R)  the person each relation points to, or NOBODY

Random data have this form too: keys are people whose names are given, strings are names of many parts.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.names import BIRTH_CITIES, EMPLOYERS, RELATIONS, UNIVERSITIES, census_first_names, census_last_names
from raycap.facts.relations import NO_PERSON, draw_relations
from raycap.results import ObservedFacts, PopulationFacts
from raycap.spec import NamePools, RelationStructure

IntArray = NDArray[np.int32]

FIRST_YEAR, LAST_YEAR, DAYS_PER_MONTH = 1900, 2099, 28


@dataclass(frozen=True)
class Attribute:
    """An attribute and the distribution it is drawn from: value i with probability weights[i] / sum(weights).

    Sampler and entropy read these same integers, so they cannot disagree.
    """

    name: str
    values: tuple[str, ...]
    weights: NDArray[np.int64]

    @classmethod
    def uniform(cls, name: str, values: tuple[str, ...]) -> "Attribute":
        """Every value equally likely."""
        return cls(name, values, np.ones(len(values), np.int64))

    @property
    def entropy_bits(self) -> float:
        """H = log2 T - sum_i w_i log2 w_i / T with T = sum_i w_i."""
        total = int(self.weights.sum())
        return float(np.log2(total) - (self.weights * np.log2(self.weights)).sum() / total)

    def sample(self, num: int, *, rng: np.random.Generator) -> IntArray:
        """Indices of `num` independent draws, shape (num,)."""
        cumulated = np.cumsum(self.weights)
        return np.searchsorted(cumulated, rng.integers(cumulated[-1], size=num), side="right").astype(np.int32)


@dataclass(frozen=True)
class Schema:
    """What every profile holds: a pool for each part of a name, attributes, and the relations in order."""

    name_pools: tuple[tuple[str, ...], ...]
    attributes: tuple[Attribute, ...]
    relations: tuple[str, ...]
    structure: RelationStructure = RelationStructure.UNIFORM
    self_relations: bool = True
    names_given: bool = False
    num_taken: int = 0
    """Names that the pools make but others have: a second population beside a first draws from the rest."""

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """What can be asked about a person: the attributes, then the relations."""
        return (*(attribute.name for attribute in self.attributes), *self.relations)

    @property
    def num_names(self) -> int:
        """M, the number of possible full names."""
        return math.prod(map(len, self.name_pools)) - self.num_taken

    def facts(self, num_profiles: int) -> PopulationFacts:
        """The numbers that code lengths are computed from, for a population of this schema."""
        entropies = {attribute.name: attribute.entropy_bits for attribute in self.attributes}
        return PopulationFacts(
            num_profiles=num_profiles,
            num_names=self.num_names,
            attribute_entropies_bits=entropies,
            relations=self.relations,
            structure=self.structure,
            self_relations=self.self_relations,
            names_given=self.names_given,
        )


@dataclass(frozen=True)
class Profiles:
    """A population. Rows of all arrays are people, in the order of their index."""

    schema: Schema
    names: IntArray
    attributes: IntArray
    relations: IntArray
    bios: tuple[str, ...] | None = None
    """A text about each person, kept for whoever wrote it; nothing here reads it."""

    @property
    def num_profiles(self) -> int:
        """N."""
        return len(self.names)

    @property
    def facts(self) -> PopulationFacts:
        """The numbers that code lengths are computed from, and what of the possible values occurs."""
        return self.schema.facts(self.num_profiles).model_copy(update={"observed": self._observed})

    @cached_property
    def _observed(self) -> ObservedFacts:
        columns = zip(self.schema.relations, self.relations.T, strict=True)
        led_to = {relation: _occurring(column[column != NO_PERSON], self.num_profiles) for relation, column in columns}
        num_values = {a.name: len(used) for a, used in zip(self.schema.attributes, self.used_values, strict=True)}
        return ObservedFacts(
            num_values=num_values | {relation: len(people) for relation, people in led_to.items()},
            num_names=self._num_names_made_of(np.arange(self.num_profiles)),
            num_answered_names={relation: self._num_names_made_of(people) for relation, people in led_to.items()},
        )

    def _num_names_made_of(self, people: NDArray[np.integer]) -> int:
        """How many names the parts of some people's names make."""
        columns = zip(self.names[people].T, self.schema.name_pools, strict=True)
        return math.prod(len(_occurring(parts, len(pool))) for parts, pool in columns)

    def name_parts(self, person: int) -> tuple[str, ...]:
        """First, middle and last name of a person."""
        return tuple(pool[index] for pool, index in zip(self.schema.name_pools, self.names[person], strict=True))

    def full_name(self, person: int) -> str:
        """Full name of a person."""
        return " ".join(self.name_parts(person))

    def attribute_value(self, person: int, attribute: int) -> str:
        """Value of an attribute, as text."""
        return self.schema.attributes[attribute].values[self.attributes[person, attribute]]

    @cached_property
    def used_values(self) -> tuple[IntArray, ...]:
        """For each attribute the indices of the values that occur: there are 67,200 dates, and few of them do."""
        columns = zip(self.attributes.T, self.schema.attributes, strict=True)
        return tuple(_occurring(column, len(attribute.values)).astype(np.int32) for column, attribute in columns)

    @cached_property
    def answers(self) -> IntArray:
        """(N, subjects): the answer to each one-hop question as a row of one list: all people, then all used values.

        NOBODY where there is none.
        """
        columns, begin = [], self.num_profiles
        for column, used in zip(self.attributes.T, self.used_values, strict=True):
            columns.append(begin + np.searchsorted(used, column))
            begin += len(used)
        return np.concatenate([np.array(columns, np.int32).reshape(-1, self.num_profiles).T, self.relations], axis=1)

    @property
    def answers_are_whole(self) -> bool:
        """Whether every one-hop question has an answer."""
        return bool((self.relations != NO_PERSON).all())


@cache
def birth_dates() -> Attribute:
    """Birth dates as the reference draws them, so that populations compare (SCIENCE, Data).

    A day in 1900-01-01 .. 2099-12-30 uniformly, then the day of the month clipped to 28: 67,200 values, 15.95 bits.
    Value index = 336 (year - 1900) + 28 (month - 1) + (day - 1).
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
    """The schema of generated populations: the most frequent census names, the four attributes, R relations."""
    attributes = (
        birth_dates(),
        Attribute.uniform("birth_city", BIRTH_CITIES),
        Attribute.uniform("university", UNIVERSITIES),
        Attribute.uniform("employer", EMPLOYERS),
    )
    first_names = census_first_names()
    name_pools = (first_names[: pools.first], first_names[: pools.middle], census_last_names()[: pools.last])
    return Schema(name_pools, attributes, RELATIONS[:num_relations], structure, self_relations)


def generate(schema: Schema, num_profiles: int, *, seed: int, taken: "Profiles | None" = None) -> Profiles:
    """Draw a population: unique full names, independent attributes, relations as the schema's structure says.

    Names, each attribute and each relation have random streams of their own, so adding a relation changes nothing else.
    Nobody gets a name of `taken`, and the schema's number of names is less by those. Raises ValueError if there are fewer
    possible names than people, or an odd number of them is to be paired up.
    """
    taken_ids = _name_ids(schema, taken) if taken else np.empty(0, np.int64)
    schema = replace(schema, num_taken=len(taken_ids))
    if num_profiles > schema.num_names:
        raise ValueError(f"num_profiles must not exceed the {schema.num_names} possible names, got {num_profiles}")

    def stream(purpose: str) -> np.random.Generator:
        return np.random.default_rng([seed, *purpose.encode()])

    name_ids = _distinct(schema.num_names + schema.num_taken, num_profiles, taken_ids, rng=stream("names"))
    names = np.stack(np.unravel_index(name_ids, [len(pool) for pool in schema.name_pools]), axis=1).astype(np.int32)
    attributes = [attribute.sample(num_profiles, rng=stream(attribute.name)) for attribute in schema.attributes]
    relations = draw_relations(schema.relations, num_profiles, schema.structure, schema.self_relations, stream)
    return Profiles(schema, names, np.stack(attributes, axis=1), relations)


def _name_ids(schema: Schema, people: "Profiles") -> NDArray[np.int64]:
    """Which of a schema's possible names some people have; names that are not possible there are left out."""
    columns = []
    for pool, own, column in zip(schema.name_pools, people.schema.name_pools, people.names.T, strict=True):
        places = {part: place for place, part in enumerate(pool)}
        columns.append(np.array([places.get(part, -1) for part in own])[column])
    possible = np.min(columns, axis=0) >= 0
    return np.ravel_multi_index([c[possible] for c in columns], [len(pool) for pool in schema.name_pools])


def _distinct(num_values: int, num: int, taken: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """`num` different integers below `num_values`, none of them taken, every ordered choice equally likely; (num,)."""
    if num_values <= 4 * (num + len(taken)):
        order = rng.permutation(num_values)
        return order[~np.isin(order, taken)][:num]
    # The first `num` distinct values of a sequence of independent draws are a uniform draw without replacement.
    drawn = np.empty(0, np.int64)
    while True:
        more = rng.integers(num_values, size=num, dtype=np.int64)
        drawn = np.concatenate([drawn, more[~np.isin(more, taken)]])
        first_places = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first_places) >= num:
            return drawn[first_places[:num]]


def _occurring(indices: NDArray[np.integer], num_values: int) -> NDArray[np.int64]:
    """Which of the first integers occur among some, ascending. A mark for each is far faster than sorting millions."""
    marks = np.zeros(num_values, bool)
    marks[indices] = True
    return np.flatnonzero(marks)
