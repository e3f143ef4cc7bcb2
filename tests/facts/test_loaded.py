"""Loaded people: what their facts cost, that distinct values stay distinct, and which columns are used."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.build import profiles_of
from raycap.facts.columns import TEXT_ATTRIBUTES, from_table
from raycap.facts.entropy import answer_bits, fact_bits, name_set_bits
from raycap.facts.fit import MARGIN_BITS, fits, own_code_bits
from raycap.facts.names import BIRTH_CITIES, EMPLOYERS, RELATIONS
from raycap.facts.profiles import census_schema, generate
from raycap.results import PopulationFacts
from raycap.spec import NamePools, ProfilesFromDisk, RelationStructure, SelectionScheme
from tests.support.loaded import LISTS, NAMES, expected_entropy, people, targets, write

SET, ENUMERATE, INDEPENDENT = SelectionScheme
LIST_BITS = {name: math.log2(len(values)) for name, values in LISTS.items()}


def facts_of(table: pa.Table) -> PopulationFacts:
    return from_table(table).facts


@pytest.mark.parametrize("num", [5, 40, 300])
@pytest.mark.parametrize("column", ["birth_date", *TEXT_ATTRIBUTES])
def test_a_constant_column_has_no_bits(column: str, num: int) -> None:
    facts = facts_of(people(num, **{column: [people(1)[column][0].as_py()] * num}))
    assert facts.attribute_entropies_bits[column] == 0
    assert fact_bits(facts, ENUMERATE)[column] == 0


@pytest.mark.parametrize("values", [BIRTH_CITIES, [f"Town {n}" for n in range(25)]], ids=["known", "unknown"])
def test_a_skewed_column_costs_its_entropy(values: list[str]) -> None:
    column = [values[0]] * 270 + [values[1 + row % 24] for row in range(30)]
    shares = np.array(list(Counter(column).values())) / 300
    entropy = facts_of(people(300, birth_city=column)).attribute_entropies_bits["birth_city"]
    assert entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    assert 0.85 < entropy < 0.95
    halves = facts_of(people(300, birth_city=[values[0], values[1]] * 150)).attribute_entropies_bits["birth_city"]
    assert halves == pytest.approx(1)


def test_birth_dates_of_few_years_or_few_days_are_not_priced_by_two_centuries() -> None:
    rng = np.random.default_rng(0)
    months = np.datetime64("1950-01") + rng.integers(480, size=300)
    dates = months.astype("datetime64[s]") + rng.integers(28, size=300).astype("timedelta64[D]")
    entropy = facts_of(people(300, birth_date=pa.array(dates))).attribute_entropies_bits["birth_date"]
    assert entropy == pytest.approx(math.log2(40 * 336), abs=0.3)
    two = np.array(["1950-01-02"] * 270 + ["1983-11-20"] * 30, "datetime64[s]")
    entropy = facts_of(people(300, birth_date=pa.array(two))).attribute_entropies_bits["birth_date"]
    assert entropy == pytest.approx(-(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)))


def test_generated_people_cost_the_same_when_they_are_loaded() -> None:
    """The lists are recognised in populations of all sizes and seeds."""
    for num, seed in [(1, 0), (2, 1), (7, 2), (50, 3), (400, 4), *((30, seed) for seed in range(5, 20))]:
        generated = generate(census_schema(NamePools(), 4), num, seed=seed)
        columns = {
            attribute.name: [generated.attribute_value(row, a) for row in range(num)]
            for a, attribute in enumerate(generated.schema.attributes)
        }
        columns["birth_date"] = pa.array(np.array(columns["birth_date"], "datetime64[s]"))
        names = [generated.full_name(row) for row in range(num)]
        columns |= {r: targets(generated.relations[:, i].tolist(), names) for i, r in enumerate(RELATIONS[:4])}
        loaded = from_table(people(num) if num < 1 else pa.table(
            {"name": names, "index": pa.array(range(num), pa.int32()), **columns}
        ))  # fmt: skip
        assert loaded.facts == generated.facts


def test_a_relation_that_is_no_uniform_draw_costs_its_entropy() -> None:
    one, few = targets([3] * 200), targets([row % 2 for row in range(200)])
    uniform = targets(np.random.default_rng(0).integers(200, size=200).tolist())
    facts = facts_of(people(200, parent=one, child=few, best_friend=uniform))
    for selection in SelectionScheme:
        bits = answer_bits(facts, selection)
        name = math.log2(facts.num_names if selection is INDEPENDENT else 200)
        assert [bits[r] for r in ("parent", "child", "best_friend")] == pytest.approx([0, 1, name])
    assert fact_bits(facts, SET)["child"] == pytest.approx(200)


def test_names_from_few_parts_are_not_priced_by_the_census() -> None:
    """1,000 names are all combinations of 10 x 10 x 10 parts, so their set holds no information."""
    facts = facts_of(people(1000))
    assert facts.num_names == 1000
    assert name_set_bits(facts, SET) == pytest.approx(0, abs=1e-6)
    assert name_set_bits(facts, ENUMERATE) == pytest.approx(1000 * math.log2(1000))
    skewed = [f"Xa Y{row} Z{row % 2}" for row in range(64)]
    assert facts_of(people(64, name=skewed)).num_names == 128
    stated = from_table(people(1000), pools=NamePools(first=20, middle=20, last=10))
    assert stated.facts.num_names == 4000


def test_no_column_from_a_list_is_often_mistaken() -> None:
    """The code of the frequencies is a code: its lengths satisfy Kraft's inequality, over all columns of three rows."""
    columns = [np.unique_counts(np.array([a, b, c])).counts for a in range(4) for b in range(4) for c in range(4)]
    assert sum(2 ** -own_code_bits(counts, 4) for counts in columns) == pytest.approx(1)
    once = np.ones(3, int)
    assert fits(own_code_bits(once, 4), own_code_bits(once, 4) + MARGIN_BITS - 1e-6)
    assert not fits(own_code_bits(once, 4), own_code_bits(once, 4) + MARGIN_BITS + 1e-6)


value = st.one_of(
    st.sampled_from(EMPLOYERS), st.sampled_from(["Acme", "acme", "Bolt"]), st.text("ab", min_size=1, max_size=2)
)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_bits_equal_an_independent_recount(data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 60))
    pool = data.draw(st.lists(value, min_size=1, max_size=8, unique=True))
    column = data.draw(st.lists(st.sampled_from(pool), min_size=num, max_size=num))
    some = data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=5))
    parents = data.draw(st.lists(st.sampled_from(some), min_size=num, max_size=num))
    table = people(num, employer=column, parent=targets(parents))
    facts = facts_of(table)
    expected = {name: expected_entropy(table[name].to_pylist(), LISTS[name]) for name in TEXT_ATTRIBUTES}
    for name, bits in expected.items():
        assert facts.attribute_entropies_bits[name] == pytest.approx(bits, abs=1e-12)
        assert fact_bits(facts, ENUMERATE)[name] == pytest.approx(num * bits, abs=1e-9)
    assert answer_bits(facts, ENUMERATE)["parent"] == pytest.approx(expected_entropy(parents, range(num)), abs=1e-12)


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_that_are_not_used_are_named() -> None:
    loaded = from_table(people(note=[1] * 40, Bio=["x"] * 40, bio=["y"] * 40))
    assert loaded.unused_columns == ("note", "Bio")
    assert loaded.untrained_columns == ("note", "Bio", "bio")


@pytest.mark.parametrize("name", ["Parent", "best friend", "bestfriend", "parent ", "neighbour", "PARENT"])
def test_relations_under_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"column {name}: .*(parent|best_friend)"):
        from_table(people(**{name: targets([0] * 40)}))


def test_repeated_columns_are_refused() -> None:
    table = people()
    for column in ("employer", "note"):
        twice = table.append_column("note", table["name"]).append_column(column, table["name"])
        with pytest.raises(ValueError, match=column):
            from_table(twice)


def encoded(column: str, kind: pa.DataType) -> pa.Table:
    table = people()
    at = table.column_names.index(column)
    return table.set_column(at, column, table[column].cast(kind) if kind else table[column].dictionary_encode())


@pytest.mark.parametrize("column", ["name", *TEXT_ATTRIBUTES])
@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), None], ids=["large", "view", "dictionary"])
def test_texts_in_any_encoding_are_the_same(column: str, kind: pa.DataType, tmp_path: Path) -> None:
    plain = from_table(people()).facts
    assert facts_of(encoded(column, kind)) == plain
    if kind != pa.string_view():
        path = write(tmp_path / "people.parquet", encoded(column, kind))
        assert profiles_of(ProfilesFromDisk(source="disk", path=path)).facts == plain


def test_relations_with_encoded_fields_and_chunks_are_the_same() -> None:
    rows = [(row * 3) % 40 for row in range(40)]
    plain = from_table(people(parent=targets(rows)))
    fields = targets(rows).flatten()
    struct = pa.StructArray.from_arrays([fields[0].dictionary_encode(), fields[1].cast(pa.uint64())], ["name", "index"])
    chunked = pa.chunked_array([struct[:7], struct[7:7], struct[7:]])
    assert np.array_equal(from_table(people(parent=chunked)).relations, plain.relations)


far = np.array(["0000-01-01", "-0044-03-15", "10000-01-01", "1899-12-31", "2100-01-01", "1950-01-29"], "datetime64[D]")


@pytest.mark.parametrize("day", far, ids=str)
@pytest.mark.parametrize("unit", ["D", "s", "ms", "us"])
def test_dates_out_of_the_range_are_refused_with_row_and_value(day: np.datetime64, unit: str) -> None:
    dates = np.full(40, "1950-01-01", f"datetime64[{unit}]")
    dates[7] = day
    with pytest.raises(ValueError, match=rf"column birth_date, row 7: {day} "):
        from_table(people(birth_date=pa.array(dates)))


HUGE = pa.struct([("name", pa.string()), ("index", pa.uint64())])


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"employer": ["", *["Acme"] * 39]}, "column employer, row 0: .*''"),
        ({"employer": ["Acme", " \t", *["Acme"] * 38]}, "column employer, row 1: "),
        ({"university": ["Acme", "A <|end|> B", *["Acme"] * 38]}, "column university, row 1: .*A <|end|> B"),
        ({"name": ["Ann <|end|> Poe", *NAMES[1:40]]}, "column name, row 0: "),
        ({"index": pa.array([2**63 + row for row in range(40)], pa.uint64())}, "column index, row 0: .*9223372036854775808"),
        ({"index": pa.array([0, *range(2, 41)])}, "column index, row 1: must be 1, .* got 2"),
        ({"index": pa.array([0.5] * 40)}, "column index: .* got double"),
        ({"employer": pa.array([None] * 40)}, "column employer: .* got null"),
        ({"employer": [["Acme"]] * 40}, "column employer: .* got list"),
        ({"employer": [b"\xff"] * 40}, "column employer: .* got binary"),
        ({"employer": pa.array([b"\xff"] * 40).view(pa.string())}, "column employer: .*UTF8"),
        ({"birth_date": pa.array([-(2**63) + 1] * 40, pa.timestamp("s"))}, "column birth_date, row 0: "),
        ({"birth_date": pa.array([0] * 40, pa.timestamp("s", "UTC"))}, "column birth_date: .* got timestamp"),
        ({"parent": pa.array([{"name": "x", "index": 2**64 - 1}] * 40, HUGE)}, "parent, row 0: index 18446744073709551615"),
        ({"parent": [[{"name": NAMES[0], "index": 0}]] * 40}, "column parent: .* got list"),
        ({"parent": pa.array([None] * 40)}, "column parent: .* got null"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_refused_with_column_row_and_value(columns: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        from_table(people(**columns))


def test_matchings_are_priced_by_their_structure() -> None:
    swapped = targets([row ^ 1 for row in range(40)])
    facts = from_table(people(best_friend=swapped, sibling=targets([0] * 40)), RelationStructure.BIPARTITE).facts
    assert facts.relation_entropies_bits == {"sibling": 0}
