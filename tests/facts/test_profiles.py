"""Generated populations: distributions, seeds and unique names."""

import datetime
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings

from raycap.facts.names import BIRTH_CITIES, EMPLOYERS, RELATIONS, UNIVERSITIES
from raycap.facts.profiles import Attribute, Profiles, birth_dates, census_schema, generate
from raycap.spec import NamePools
from tests.support.strategies import populations

SMALL = NamePools(first=20, middle=20, last=40)


def test_the_pools_have_the_documented_sizes_and_no_value_is_a_prefix_of_another() -> None:
    assert [len(pool) for pool in (BIRTH_CITIES, UNIVERSITIES, EMPLOYERS)] == [223, 100, 73]
    for pool in (BIRTH_CITIES, UNIVERSITIES, EMPLOYERS):
        ordered = sorted(pool)
        assert not any(b.startswith(a) for a, b in pairwise(ordered))


def test_birth_dates_are_days_of_two_centuries_clipped_to_28() -> None:
    dates = birth_dates()
    days = [datetime.date(1900, 1, 1) + datetime.timedelta(n) for n in range(73_048)]
    assert days[-1] == datetime.date(2099, 12, 30)
    counts: dict[str, int] = {}
    for day in days:
        value = day.replace(day=min(day.day, 28)).isoformat()
        counts[value] = counts.get(value, 0) + 1
    assert dict(zip(dates.values, dates.weights.tolist(), strict=True)) == counts
    assert len(dates.values) == 67_200
    assert dates.entropy_bits == pytest.approx(15.95, abs=0.005)


def test_attribute_entropies_add_up_to_the_published_sum() -> None:
    entropies = census_schema(NamePools(), 4).facts(10).attribute_entropies_bits
    assert sum(entropies.values()) == pytest.approx(36.58, abs=0.01)
    assert np.log2(census_schema(NamePools(), 4).num_names) == pytest.approx(41.11, abs=0.005)


def test_samples_have_the_distribution_that_the_entropy_is_computed_from() -> None:
    attribute = Attribute("colour", ("red", "green", "blue"), np.array([1, 2, 5]))
    drawn = np.bincount(attribute.sample(200_000, rng=np.random.default_rng(0)), minlength=3) / 200_000
    assert drawn == pytest.approx(attribute.weights / 8, abs=0.005)
    assert -(drawn * np.log2(drawn)).sum() == pytest.approx(attribute.entropy_bits, abs=0.01)


def test_names_are_unique_even_when_the_pool_is_exhausted() -> None:
    for num_profiles in (100, 9_000, 16_000):
        profiles = generate(census_schema(SMALL, 2), num_profiles, seed=0)
        assert len({profiles.full_name(person) for person in range(num_profiles)}) == num_profiles
    with pytest.raises(ValueError, match=r"16000.*got 16001"):
        generate(census_schema(SMALL, 2), 16_001, seed=0)


def test_names_attributes_and_relations_are_uniform() -> None:
    profiles = generate(census_schema(SMALL, 4), 8_000, seed=3)
    for column, size in zip(profiles.names.T, (20, 20, 40), strict=True):
        assert np.bincount(column, minlength=size).std() < 3 * np.sqrt(8_000 / size)
    in_degree = np.bincount(profiles.relations[:, 0], minlength=8_000)  # Poisson(1)
    assert in_degree.var() == pytest.approx(1, abs=0.1)
    assert (profiles.relations[:, 0] == profiles.relations[:, 1]).mean() < 0.005


def test_a_seed_determines_a_population_and_adding_relations_changes_nothing_else() -> None:
    def equal(a: Profiles, b: Profiles) -> bool:
        return all(np.array_equal(x, y) for x, y in ((a.names, b.names), (a.attributes, b.attributes)))

    base = generate(census_schema(SMALL, 4), 500, seed=1)
    assert equal(base, generate(census_schema(SMALL, 4), 500, seed=1))
    assert not equal(base, generate(census_schema(SMALL, 4), 500, seed=2))
    more = generate(census_schema(SMALL, len(RELATIONS)), 500, seed=1)
    assert equal(base, more)
    assert np.array_equal(base.relations, more.relations[:, :4])


@settings(max_examples=30, deadline=None)
@given(populations())
def test_indices_stay_in_their_ranges(profiles: Profiles) -> None:
    schema = profiles.schema
    assert profiles.relations.shape == (profiles.num_profiles, len(schema.relations))
    for column, attribute in zip(profiles.attributes.T, schema.attributes, strict=True):
        assert ((column >= 0) & (column < len(attribute.values))).all()
    assert ((profiles.relations >= 0) & (profiles.relations < profiles.num_profiles)).all()


@pytest.mark.parametrize("num_profiles", [100, 7_000])
def test_a_second_population_does_not_use_the_names_of_the_first(num_profiles: int) -> None:
    """Tested with few and with nearly all names in use. Names outside of the second population's pools are not
    excluded."""
    first = generate(census_schema(NamePools(first=21, middle=20, last=40), 2), 8_000, seed=0)
    second = generate(census_schema(SMALL, 2), num_profiles, seed=1, exclude=first)
    first_names, second_names = (
        {people.full_name(p) for p in range(people.num_profiles)} for people in (first, second)
    )
    assert not first_names & second_names
    assert len(second_names) == num_profiles
    num_excluded = len(first_names & {" ".join(n) for n in product(*census_schema(SMALL, 2).name_pools)})
    assert second.facts.num_names == 16_000 - num_excluded
    with pytest.raises(ValueError, match="num_profiles"):
        generate(census_schema(SMALL, 2), 16_001 - num_excluded, seed=1, exclude=first)
