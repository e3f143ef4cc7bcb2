"""Relations: uniform draws from all possible tables, code lengths by enumeration, and checks of the structure."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from raycap.facts.entropy import fact_bits
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import census_schema, generate
from raycap.facts.relations import INVERSES, MATCHINGS, NO_PERSON, IntArray, broken_structure, draw_relations
from raycap.results import PopulationFacts
from raycap.spec import NamePools, RelationStructure, SelectionScheme

UNIFORM, BIPARTITE = RelationStructure
MIN_P_VALUE = 1e-3  # seeds are fixed, so the tests are deterministic


def drawn(
    names: tuple[str, ...], num_profiles: int, structure: RelationStructure, self_relations: bool = True, seed: int = 0
) -> IntArray:
    return draw_relations(
        names, num_profiles, structure, self_relations, lambda purpose: np.random.default_rng([seed, *purpose.encode()])
    )


def bits(num_profiles: int, names: tuple[str, ...], structure: RelationStructure, self_relations: bool = True) -> float:
    facts = PopulationFacts(
        num_profiles=num_profiles,
        num_names=1000,
        attribute_entropies_bits={},
        relations=names,
        structure=structure,
        self_relations=self_relations,
    )
    return sum(fact_bits(facts, SelectionScheme.SET).values())


@pytest.mark.parametrize("self_relations", [True, False])
def test_uniform_relations_lead_to_all_people_equally_often(self_relations: bool) -> None:
    tables = np.stack([drawn(("hero",), 10, UNIFORM, self_relations, seed)[:, 0] for seed in range(1000)])
    for person, targets in enumerate(tables.T):
        counts = np.bincount(targets, minlength=10)
        assert self_relations or counts[person] == 0
        assert chisquare(counts if self_relations else np.delete(counts, person)).pvalue > MIN_P_VALUE


def matchings(num_profiles: int) -> set[tuple[int, ...]]:
    """Return all perfect matchings, as tables from person to friend."""
    return {
        table
        for table in product(range(num_profiles), repeat=num_profiles)
        if all(table[friend] == person != friend for person, friend in enumerate(table))
    }


def bijections(num_profiles: int) -> set[tuple[int, ...]]:
    """Return all bijections from one half of the people to the other half, as tables from person to parent."""
    tables = set()
    for table in product(range(-1, num_profiles), repeat=num_profiles):
        parents = [parent for parent in table if parent != NO_PERSON]
        half = {person for person, parent in enumerate(table) if parent == NO_PERSON}
        if len(half) == len(parents) == num_profiles // 2 and set(parents) == half:
            tables.add(table)
    return tables


def inverse(table: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(table.index(person) if person in table else NO_PERSON for person in range(len(table)))


@pytest.mark.parametrize(("relation", "num_profiles"), [("parent", 4), ("child", 4), ("best_friend", 6)])
def test_every_bipartite_table_is_drawn_equally_often(relation: str, num_profiles: int) -> None:
    possible = matchings(num_profiles) if relation in MATCHINGS else bijections(num_profiles)
    counts = Counter(
        tuple(drawn((relation,), num_profiles, BIPARTITE, seed=seed)[:, 0].tolist()) for seed in range(3000)
    )
    assert counts.keys() == possible
    assert chisquare(list(counts.values())).pvalue > MIN_P_VALUE


@pytest.mark.parametrize("num_profiles", [2, 4, 6])
def test_bipartite_relations_cost_log2_of_the_number_of_tables(num_profiles: int) -> None:
    both = {(parent, inverse(parent)) for parent in bijections(num_profiles)}
    assert bits(num_profiles, INVERSES, BIPARTITE) == pytest.approx(math.log2(len(both)), abs=1e-9)
    assert bits(num_profiles, INVERSES[:1], BIPARTITE) == pytest.approx(math.log2(len(both)), abs=1e-9)
    paired = len(matchings(num_profiles))
    assert bits(num_profiles, MATCHINGS[:1], BIPARTITE) == pytest.approx(math.log2(paired), abs=1e-9)
    assert bits(num_profiles, RELATIONS[:5], BIPARTITE) == pytest.approx(
        math.log2(len(both) * paired**2 * num_profiles**num_profiles), abs=1e-9
    )


@pytest.mark.parametrize("num_profiles", [2, 3, 5])
def test_uniform_relations_cost_log2_of_the_number_of_tables(num_profiles: int) -> None:
    tables = list(product(range(num_profiles), repeat=num_profiles))
    others = [table for table in tables if all(target != person for person, target in enumerate(table))]
    assert bits(num_profiles, ("hero",), UNIFORM) == pytest.approx(math.log2(len(tables)), abs=1e-9)
    assert bits(num_profiles, ("hero",), UNIFORM, False) == pytest.approx(math.log2(len(others)), abs=1e-9)
    assert len(others) == (num_profiles - 1) ** num_profiles  # N log2(N - 1)


@pytest.mark.parametrize("num_profiles", [2, 4])
def test_the_check_accepts_exactly_the_possible_tables(num_profiles: int) -> None:
    tables = np.array(list(product(range(-1, num_profiles), repeat=num_profiles)), np.int32)

    def accepted(relation: str) -> set[tuple[int, ...]]:
        fits = [t for t in tables if broken_structure((relation,), t[:, None], BIPARTITE, True) is None]
        return {tuple(table.tolist()) for table in fits}

    assert accepted("parent") == accepted("child") == bijections(num_profiles)
    assert accepted("worst_enemy") == matchings(num_profiles)
    assert accepted("sibling") == set(product(range(num_profiles), repeat=num_profiles))


@given(st.integers(1, 20), st.integers(0, 17), st.sampled_from(RelationStructure), st.booleans(), st.integers(0, 2**32))
def test_every_draw_passes_the_check(
    half: int, num_relations: int, structure: RelationStructure, self_relations: bool, seed: int
) -> None:
    names = RELATIONS[:num_relations]
    table = drawn(names, 2 * half, structure, self_relations, seed)
    assert table.shape == (2 * half, num_relations)
    assert broken_structure(names, table, structure, self_relations) is None


def test_parents_and_children_are_two_halves_and_friends_are_pairs() -> None:
    parent, child, friend, enemy, *others = drawn(RELATIONS, 500, BIPARTITE, self_relations=False).T
    people = np.arange(500)
    children = people[parent != NO_PERSON]
    assert len(children) == 250
    assert np.array_equal(child[parent[children]], children)
    assert np.array_equal(np.sort([*parent[children], *children]), people)  # two disjoint halves
    assert (child[children] == NO_PERSON).all()
    for pairs in (friend, enemy):
        assert np.array_equal(pairs[pairs], people)
        assert (pairs != people).all()
    assert (friend != enemy).mean() > 0.95
    assert np.array_equal(np.stack(others), drawn(RELATIONS, 500, UNIFORM, self_relations=False).T[4:])


@pytest.mark.parametrize("structure", RelationStructure)
def test_adding_relations_changes_nothing_else(structure: RelationStructure) -> None:
    whole = generate(census_schema(NamePools(), 17, structure), 40, seed=3)
    for num_relations in range(17):
        part = generate(census_schema(NamePools(), num_relations, structure), 40, seed=3)
        assert np.array_equal(part.relations, whole.relations[:, :num_relations])
        assert np.array_equal(part.names, whole.names)
        assert np.array_equal(part.attributes, whole.attributes)
    assert np.array_equal(drawn(("child",), 40, structure, seed=3)[:, 0], whole.relations[:, 1])  # without its parent


def test_bipartite_relations_of_an_odd_number_of_people_are_refused() -> None:
    with pytest.raises(ValueError, match=r"even.*got 7"):
        generate(census_schema(NamePools(), 1, BIPARTITE), 7, seed=0)


@pytest.mark.parametrize(
    ("structure", "self_relations", "relation", "rows", "content"),
    [
        (UNIFORM, True, "sibling", {3: NO_PERSON}, "person 3"),
        (BIPARTITE, True, "sibling", {3: NO_PERSON}, "person 3"),
        (UNIFORM, False, "sibling", {4: 4}, "person 4"),
        (
            BIPARTITE,
            True,
            "best_friend",
            {0: 1, 1: 0, 2: 3, 3: 2, 4: 4, 5: 5},
            "person 4",
        ),
        (
            BIPARTITE,
            True,
            "worst_enemy",
            {0: 1, 1: 2, 2: 0, 3: 4, 4: 3, 5: 5},
            "not a perfect matching",
        ),
        (BIPARTITE, True, "best_friend", {1: NO_PERSON}, ""),
        (
            BIPARTITE,
            True,
            "parent",
            {0: 1, 1: 2, 2: 3, 3: NO_PERSON, 4: NO_PERSON, 5: NO_PERSON},
            "overlap",
        ),
        (
            BIPARTITE,
            True,
            "parent",
            {0: 3, 1: 3, 2: 4, 3: NO_PERSON, 4: NO_PERSON, 5: NO_PERSON},
            "not a bijection",
        ),
        (
            BIPARTITE,
            True,
            "child",
            {0: 3, 1: 4, 2: NO_PERSON, 3: NO_PERSON, 4: NO_PERSON, 5: NO_PERSON},
            "not a bijection",
        ),
        (
            BIPARTITE,
            True,
            "child",
            {0: 0, 1: 4, 2: 5, 3: NO_PERSON, 4: NO_PERSON, 5: NO_PERSON},
            "person 0",
        ),
    ],
)
def test_each_violation_is_reported(
    structure: RelationStructure, self_relations: bool, relation: str, rows: dict[int, int], content: str
) -> None:
    names = RELATIONS[:5]
    table = drawn(names, 6, structure, self_relations, seed=2)
    if structure is BIPARTITE:
        table[:, names.index("best_friend")] = [5, 4, 3, 2, 1, 0]
    for row, target in rows.items():
        table[row, names.index(relation)] = target
    problem = broken_structure(names, table, structure, self_relations)
    assert problem is not None
    assert problem.startswith(f"{relation}: ")
    assert content in problem


def test_parent_and_child_must_be_inverse_to_each_other() -> None:
    table = np.array([[2, NO_PERSON], [3, NO_PERSON], [NO_PERSON, 1], [NO_PERSON, 0]], np.int32)
    assert "not inverse" in (broken_structure(INVERSES, table, BIPARTITE, True) or "")
    swapped = np.array([[2, 3], [3, 2], [NO_PERSON, NO_PERSON], [NO_PERSON, NO_PERSON]], np.int32)
    assert "not inverse" in (broken_structure(INVERSES, swapped, BIPARTITE, True) or "")
    assert "got 3" in (broken_structure((), np.empty((3, 0), np.int32), BIPARTITE, True) or "")
