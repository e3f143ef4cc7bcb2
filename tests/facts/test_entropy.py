"""Code lengths, compared with enumeration and with the written-out formulas."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.facts.entropy import code_length_bits, fact_bits, name_set_bits, unordered_bits
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import birth_dates
from raycap.results import PopulationFacts
from raycap.spec import EncodingScheme, Kind, RelationStructure, SelectionScheme


def population(num_profiles: int, num_names: int, num_relations: int = 3) -> PopulationFacts:
    return PopulationFacts(
        num_profiles=num_profiles,
        num_names=num_names,
        attribute_entropies_bits={"birth_date": 15.95, "employer": 6.25},
        relations=RELATIONS[:num_relations],
    )


@pytest.mark.parametrize(("num_profiles", "num_names"), [(1, 5), (3, 7), (6, 12), (5, 5)])
def test_the_set_of_names_costs_log2_of_the_number_of_sets(num_profiles: int, num_names: int) -> None:
    num_sets = sum(1 for _ in combinations(range(num_names), num_profiles))
    bits = name_set_bits(population(num_profiles, num_names), SelectionScheme.SET)
    assert bits == pytest.approx(math.log2(num_sets), rel=1e-12)


def test_the_set_of_names_is_exact_for_the_census_pool() -> None:
    num_names, num_profiles = 5163 * 5163 * 88_799, 2_000
    exact = math.log2(math.comb(num_names, num_profiles))  # exact integer arithmetic
    assert name_set_bits(population(num_profiles, num_names), SelectionScheme.SET) == pytest.approx(exact, rel=1e-13)
    textbook = num_profiles * (math.log2(num_names) - math.log2(num_profiles))
    assert exact - textbook == pytest.approx(num_profiles / math.log(2), rel=0.01)  # the term that the reference omits


@given(st.integers(2, 500), st.integers(1, 17), st.sampled_from(SelectionScheme))
def test_every_scheme_follows_its_formula(num_profiles: int, num_relations: int, selection: SelectionScheme) -> None:
    facts = population(num_profiles, 10_000, num_relations)
    names = name_set_bits(facts, selection)
    a = sum(facts.attribute_entropies_bits.values())
    per_name = math.log2(10_000 if selection is SelectionScheme.INDEPENDENT else num_profiles)
    once = names + num_profiles * (a + num_relations * per_name)
    subjects = (*facts.attribute_entropies_bits, *facts.relations)
    for scheme in EncodingScheme:
        assert code_length_bits(facts, scheme, selection, Kind.ONE_HOP) == pytest.approx(once)
    two_hop = {
        EncodingScheme.OPTIMAL: once,
        EncodingScheme.TWO_HOP_DOUBLE: names + num_profiles * (a + 2 * num_relations * per_name),
        EncodingScheme.TWO_HOP_BIG_HASH: names + 0.5 * num_profiles * num_relations * (a + num_relations * per_name),
    }
    three_hop = {
        EncodingScheme.OPTIMAL: once,
        EncodingScheme.TWO_HOP_DOUBLE: names + num_profiles * (a + 3 * num_relations * per_name),
        EncodingScheme.TWO_HOP_BIG_HASH: names + 0.5 * num_profiles * num_relations**2 * (a + num_relations * per_name),
    }
    for scheme, bits in three_hop.items():
        half = dict.fromkeys(subjects, 0.5 * num_profiles * num_relations**2)
        got = code_length_bits(facts, scheme, selection, Kind.THREE_HOP, num_trained=half)
        assert got == pytest.approx(bits)
    assert code_length_bits(facts, EncodingScheme.OPTIMAL, selection, Kind.NAME) == names
    for scheme, bits in two_hop.items():
        half = dict.fromkeys(subjects, 0.5 * num_profiles * num_relations)
        assert code_length_bits(facts, scheme, selection, Kind.TWO_HOP, num_trained=half) == pytest.approx(bits)


@given(st.integers(1, 400))
def test_a_list_of_names_costs_more_than_a_set_by_the_bits_of_the_order(num_profiles: int) -> None:
    facts = population(num_profiles, 1_000)
    listed, unordered = (name_set_bits(facts, s) for s in (SelectionScheme.ENUMERATE, SelectionScheme.SET))
    with_repeats = num_profiles * math.log2(1_000)
    without_repeats = sum(math.log2(1_000 - i) for i in range(num_profiles))
    order = math.lgamma(num_profiles + 1) / math.log(2)
    assert listed - unordered == pytest.approx(order + with_repeats - without_repeats, rel=1e-9, abs=1e-9)


def test_numbers_of_names_beyond_the_range_of_floats_and_given_names() -> None:
    """Random strings have 2^704 names; the keys of random pairs are all there are."""
    strings = population(100, 2048**64, 0)
    assert name_set_bits(strings, SelectionScheme.ENUMERATE) == 100 * 64 * 11
    assert name_set_bits(strings, SelectionScheme.SET) == pytest.approx(100 * 64 * 11 - unordered_bits(100))
    keys = population(5, 5, 0).model_copy(update={"names_given": True})
    assert [name_set_bits(keys, selection) for selection in SelectionScheme] == [0, 0, 0]


def test_without_self_relations_an_answer_has_one_choice_less() -> None:
    facts = population(100, 10_000, 1)
    others = facts.model_copy(update={"self_relations": False})
    before, after = (fact_bits(f, SelectionScheme.SET)["parent"] for f in (facts, others))
    assert (before, after) == pytest.approx((100 * math.log2(100), 100 * math.log2(99)))


def test_facts_that_no_question_requires_are_not_counted() -> None:
    """A subject without training questions takes no bits, and a relation is stored only for its uses."""
    facts = population(100, 10_000, 4)
    names, each = name_set_bits(facts, SelectionScheme.SET), 100 * math.log2(100)
    trained = {"birth_date": 300, "parent": 300, "child": 300, "best_friend": 300}  # neither employer nor worst_enemy
    attributes = 100 * 15.95

    def bits(scheme: EncodingScheme, followed: float) -> float:
        kind = Kind.TWO_HOP
        return (
            code_length_bits(facts, scheme, SelectionScheme.SET, kind, num_trained=trained, followed=followed) - names
        )

    assert bits(EncodingScheme.OPTIMAL, 0.75) == pytest.approx(attributes + (3 + 0.75) * each)
    assert bits(EncodingScheme.TWO_HOP_DOUBLE, 0.75) == pytest.approx(attributes + (3 + 4 * 0.75) * each)
    assert bits(EncodingScheme.TWO_HOP_BIG_HASH, 0.75) == pytest.approx(300 * 15.95 + 3 * 300 * math.log2(100))


def every_relation(num: int, kind: str) -> int:
    """Return the number of possible relations between `num` people, by enumeration."""
    if kind == "uniform":
        return sum(1 for _ in product(range(num), repeat=num))
    if kind == "others":
        return sum(all(t != i for i, t in enumerate(to)) for to in product(range(num), repeat=num))
    if kind == "matching":  # an involution without fixed points
        return sum(all(to[to[i]] == i != to[i] for i in range(num)) for to in permutations(range(num)))
    children = combinations(range(num), num // 2)  # each half, and each bijection from it to the other
    return sum(1 for half in children for _ in permutations(set(range(num)) - set(half)))


@pytest.mark.parametrize("num", [2, 4, 6])
def test_relations_cost_log2_of_the_number_of_possible_relations(num: int) -> None:
    """Enumerates functions, functions without fixed points, perfect matchings and bijections between halves."""
    relations = ("parent", "child", "best_friend", "sibling")
    facts = population(num, 1_000).model_copy(update={"relations": relations})
    paired = facts.model_copy(update={"structure": RelationStructure.BIPARTITE})
    uniform, bipartite = (fact_bits(f, SelectionScheme.SET) for f in (facts, paired))
    others = fact_bits(facts.model_copy(update={"self_relations": False}), SelectionScheme.SET)
    close = {"rel": 1e-12, "abs": 1e-12}
    assert uniform["parent"] == pytest.approx(math.log2(every_relation(num, "uniform")), **close)
    assert others["parent"] == pytest.approx(math.log2(every_relation(num, "others")), **close)
    assert bipartite["sibling"] == uniform["sibling"]
    assert bipartite["best_friend"] == pytest.approx(math.log2(every_relation(num, "matching")), **close)
    together = bipartite["parent"] + bipartite["child"]
    assert together == pytest.approx(math.log2(every_relation(num, "inverses")), **close)


@pytest.mark.parametrize("self_relations", [True, False])
def test_a_population_costs_log2_of_the_number_of_possible_populations(self_relations: bool) -> None:
    """Enumerates all sets of names, attributes and relations of three people."""
    names, cities, num = 5, 3, 3
    num_populations = sum(
        1
        for _ in combinations(range(names), num)
        for _ in product(range(cities), repeat=num)
        for to in product(range(num), repeat=num)
        if self_relations or all(t != i for i, t in enumerate(to))
    )
    facts = PopulationFacts(
        num_profiles=num,
        num_names=names,
        attribute_entropies_bits={"birth_city": math.log2(cities)},
        relations=("parent",),
        self_relations=self_relations,
    )
    bits = code_length_bits(facts, EncodingScheme.OPTIMAL, SelectionScheme.SET)
    assert bits == pytest.approx(math.log2(num_populations), rel=1e-12)


def test_the_entropy_of_birth_dates_is_that_of_their_distribution() -> None:
    """Enumerates all 73,048 days, because clipping makes the distribution non-uniform."""
    dates = birth_dates()
    days = np.repeat(np.arange(len(dates.weights)), dates.weights)
    assert len(days) == 73_048
    _, counts = np.unique(days, return_counts=True)
    shares = counts / len(days)
    assert dates.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)
    assert dates.entropy_bits == pytest.approx(15.95, abs=0.005)
