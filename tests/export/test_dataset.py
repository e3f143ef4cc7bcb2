"""The hosted dataset schema: round trips through files, folders and the hub, and clear errors for data that do not fit."""

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from raycap.export.dataset import save, to_dataset
from raycap.facts.entropy import fact_bits, name_set_bits
from raycap.facts.hosted import TEXT_ATTRIBUTES, fingerprint, from_dataset, load
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import Attribute, Profiles, Schema, birth_dates, census_schema, generate
from raycap.facts.random_data import pairs
from raycap.facts.relations import NO_PERSON
from raycap.spec import NamePools, ProfilesFromDisk, RandomPairs, RelationStructure
from raycap.spec import SelectionScheme as Selection
from tests.support.strategies import distinct, schemas, values

UNIFORM, BIPARTITE = RelationStructure
POPULATION = generate(census_schema(NamePools(), 17), 60, seed=5)
FINGERPRINT = "fa3ece14dd1f2f5fc4c02ffae2a03c2bb1301309db9e3bcb2a046e4dd2c25b77"
"""Of POPULATION, as it was when first computed: trials are known by it."""


def bipartite(num_relations: int = 5) -> Profiles:
    return generate(census_schema(NamePools(), num_relations, BIPARTITE), 60, seed=5)


def disk(path: Path, **fields: Any) -> ProfilesFromDisk:
    return ProfilesFromDisk(source="disk", path=str(path), **fields)


def assert_same(found: Profiles, expected: Profiles) -> None:
    assert found.facts == expected.facts
    assert found.schema.name_pools == expected.schema.name_pools
    for attribute, other in zip(found.schema.attributes, expected.schema.attributes, strict=True):
        assert (attribute.name, attribute.values) == (other.name, other.values)
        assert np.array_equal(attribute.weights, other.weights)
    for array in ("names", "attributes", "relations"):
        assert np.array_equal(getattr(found, array), getattr(expected, array))
        assert getattr(found, array).dtype == np.int32
    assert found.bios == expected.bios
    assert fingerprint(found) == fingerprint(expected)


@pytest.mark.parametrize("name", ["people.parquet", "people", "new/folder/people"])
@pytest.mark.parametrize("bios", [None, tuple(f"Bio of {person}.\nü" for person in range(60))])
@pytest.mark.parametrize("profiles", [POPULATION, bipartite(), bipartite(0)], ids=["uniform", "bipartite", "alone"])
def test_a_population_survives_parquet_and_folder(
    profiles: Profiles, bios: tuple[str, ...] | None, name: str, tmp_path: Path
) -> None:
    profiles = replace(profiles, bios=bios)
    save(profiles, str(tmp_path / name), description="by hand")
    structure = profiles.schema.structure
    loaded = load(disk(tmp_path / name, structure=structure, fingerprint=fingerprint(profiles)))
    assert_same(loaded, profiles)  # the pools are recognised, so the entropies are the generating ones
    assert loaded.schema.attributes[0] is birth_dates()


@st.composite
def people(draw: st.DrawFn) -> Profiles:
    """Small populations with awkward names and values, some of the relations, and perhaps bios."""
    pools = draw(schemas()).name_pools
    attributes = (birth_dates(), *(Attribute.uniform(name, draw(distinct(values, 5))) for name in TEXT_ATTRIBUTES))
    chosen = draw(st.sets(st.sampled_from(RELATIONS), max_size=6))
    num_profiles = draw(st.integers(1, min(6, len(pools[0]) * len(pools[1]) * len(pools[2]))))
    structure = UNIFORM if num_profiles % 2 else draw(st.sampled_from(RelationStructure))
    schema = Schema(pools, attributes, tuple(filter(chosen.__contains__, RELATIONS)), structure)
    bios = st.lists(st.text(max_size=20), min_size=num_profiles, max_size=num_profiles).map(tuple)
    return replace(generate(schema, num_profiles, seed=draw(st.integers(0, 10))), bios=draw(st.none() | bios))


@settings(max_examples=40, deadline=None)
@given(people())
def test_whatever_people_are_called_they_come_back(profiles: Profiles) -> None:
    loaded = from_dataset(to_dataset(profiles), profiles.schema.structure)
    assert fingerprint(loaded) == fingerprint(profiles)
    assert (loaded.bios, loaded.schema.subjects) == (profiles.bios, profiles.schema.subjects)
    assert np.array_equal(loaded.relations, profiles.relations)
    for row in range(profiles.num_profiles):
        assert loaded.full_name(row) == profiles.full_name(row)
        assert all(loaded.attribute_value(row, a) == profiles.attribute_value(row, a) for a in range(4))
    assert_same(from_dataset(to_dataset(loaded), profiles.schema.structure), loaded)


def test_small_pools_keep_their_entropy_if_they_are_told() -> None:
    pools = NamePools(first=20, middle=20, last=40)
    profiles = generate(census_schema(pools, 2), 300, seed=0)
    assert_same(from_dataset(to_dataset(profiles), pools=pools), profiles)
    with pytest.raises(ValueError, match=r"column name, row \d+: \w+ is not among the 10 values there can be"):
        from_dataset(to_dataset(profiles), pools=NamePools(first=10))


def test_the_schema_is_the_hosted_one() -> None:
    features = to_dataset(POPULATION).features
    assert features["birth_date"].dtype == "timestamp[s]"
    assert features["index"].dtype == "int32"
    assert list(features["evil_twin"]) == ["name", "index"]
    childless = to_dataset(bipartite())[int((bipartite().relations[:, 1] == NO_PERSON).argmax())]
    assert childless["child"] is None
    with pytest.raises(ValueError, match="only people with birth_date, birth_city, university, employer fit"):
        to_dataset(pairs(RandomPairs(source="pairs")))


def test_the_references_own_file_loads_and_round_trips(shared_profiles: Path, tmp_path: Path) -> None:
    loaded = load(disk(shared_profiles))
    assert (loaded.num_profiles, len(loaded.schema.relations)) == (1000, 17)
    assert np.log2(loaded.schema.num_names) == pytest.approx(41.11, abs=0.005)
    table = to_dataset(loaded).with_format("arrow")[:]
    original = pq.read_table(shared_profiles).cast(table.schema)
    assert all(original[name].combine_chunks() == table[name].combine_chunks() for name in original.column_names)
    for name in ("people.parquet", "people"):
        save(loaded, str(tmp_path / name), description="the reference's")
        assert_same(load(disk(tmp_path / name, fingerprint=fingerprint(loaded))), loaded)


def test_a_fingerprint_is_of_the_people_and_not_of_their_encoding() -> None:
    assert fingerprint(POPULATION) == FINGERPRINT
    schema, city = POPULATION.schema, POPULATION.schema.attributes[1]
    order = np.random.default_rng(0).permutation(len(city.values))
    shuffled = Attribute.uniform(city.name, tuple(city.values[value] for value in order))
    attributes = POPULATION.attributes.copy()
    attributes[:, 1] = np.argsort(order)[attributes[:, 1]]
    other = replace(schema, attributes=(schema.attributes[0], shuffled, *schema.attributes[2:]), self_relations=False)
    again = replace(POPULATION, schema=other, attributes=attributes, bios=("",) * 60)
    assert fingerprint(again) == FINGERPRINT


@pytest.mark.parametrize("array", ["names", "attributes", "relations"])
def test_another_fact_is_another_fingerprint(array: str) -> None:
    changed = getattr(POPULATION, array).copy()
    changed[7, 2] = (changed[7, 2] + 1) % 60
    assert fingerprint(replace(POPULATION, **{array: changed})) != FINGERPRINT
    swapped = getattr(POPULATION, array)[[1, 0, *range(2, 60)]]
    assert fingerprint(replace(POPULATION, **{array: swapped})) != FINGERPRINT


def test_other_people_than_the_spec_names_are_refused(tmp_path: Path) -> None:
    save(POPULATION, str(tmp_path / "people.parquet"), description="")
    with pytest.raises(ValueError, match=rf"people.parquet: these are other .* {FINGERPRINT}, the spec says 0123"):
        load(disk(tmp_path / "people.parquet", fingerprint="0123"))


TABLE: pa.Table = to_dataset(POPULATION).with_format("arrow")[:].replace_schema_metadata()


def put(column: str, content: Any) -> Dataset:
    """The population with a column in the place of its own."""
    return Dataset(TABLE.set_column(TABLE.column_names.index(column), column, pa.array(content)))


def change(column: str, row: int, value: Any) -> Dataset:
    content = TABLE[column].to_pylist()
    content[row] = value
    return put(column, pa.array(content, TABLE.schema.field(column).type))


def person(index: int | None, name: str | None = None) -> dict[str, Any]:
    return {"name": name, "index": index}


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (Dataset(TABLE.drop_columns(["employer", "index"])), r"the columns \['index', 'employer'\] are missing"),
        (Dataset(TABLE.slice(0, 0)), "there is nobody in them"),
        (put("name", range(60)), "column name: must be a string, got int64"),
        (put("index", [str(row) for row in range(60)]), "column index: must be an integer, got string"),
        (put("birth_date", ["1950-01-01"] * 60), "column birth_date: must be a timestamp without .*, got string"),
        (put("employer", [3] * 60), "column employer: must be a string, got int64"),
        (put("parent", range(60)), r"column parent: must be a struct of name \(string\) and index .*, got int64"),
        (put("parent", [{"index": 3}] * 60), "column parent: must be a struct of name .*, got struct<index: int64>"),
        (change("name", 3, None), "column name, row 3: is missing"),
        (change("university", 9, None), "column university, row 9: is missing"),
        (change("name", 3, POPULATION.full_name(1)), "column name, row 3: .* is the name of an earlier row too"),
        (change("name", 3, "Cher"), "column name, row 3: must be first, middle and last name .*, got 'Cher'"),
        (change("name", 3, "A  B"), "column name, row 3: must be first, middle and last name .*, got 'A  B'"),
        (change("name", 3, "A B C."), "row 3: must be .*, ending in a letter or digit, got 'A B C.'"),
        (change("index", 4, 5), "column index, row 4: must be 4, the row, got 5"),
        (Dataset(TABLE).shuffle(seed=0), "column index, row 0: must be 0, the row, got"),
        (change("birth_date", 7, datetime.datetime(1950, 1, 31)), "row 7: 1950-01-31 is not among the 67200 values"),
        (change("birth_date", 7, datetime.datetime(1950, 1, 1, 8)), "birth_date, row 7: must be midnight, got 1950"),
        (change("parent", 2, person(60, "x")), r"column parent, row 2: index 60 is outside 0\.\.59"),
        (change("parent", 2, person(-1, "x")), r"column parent, row 2: index -1 is outside 0\.\.59"),
        (change("parent", 2, person(1, "x")), "column parent, row 2: x is not the name at index 1, [A-Z]"),
        (change("parent", 2, person(1)), "column parent, row 2: name and index must be given both or neither"),
        (change("parent", 2, person(None, "x")), "column parent, row 2: name and index must be given both or neither"),
        (change("parent", 2, None), "relations are not drawn as the spec says: parent: person 2 has none"),
        (change("hero", 2, person(None)), "relations are not drawn as the spec says: hero: person 2 has none"),
        (Dataset(TABLE.append_column("bio", pa.array([1] * 60))), "column bio: must be a string, got int64"),
        (Dataset(TABLE.append_column("bio", pa.array(["a", None] * 30))), "column bio, row 1: is missing"),
    ],
)
def test_data_that_do_not_fit_are_told_apart(dataset: Dataset, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_dataset(dataset)


@pytest.mark.parametrize("kind", [*map(pa.timestamp, ("s", "ms", "us", "ns")), pa.date32(), pa.date64()], ids=str)
def test_dates_may_have_any_unit(kind: pa.DataType) -> None:
    dates = [datetime.datetime.fromisoformat(POPULATION.attribute_value(row, 0)) for row in range(60)]
    assert_same(from_dataset(put("birth_date", pa.array(dates, pa.timestamp("s")).cast(kind))), POPULATION)


def test_a_dataset_may_have_other_columns_and_its_own_in_any_order_or_width() -> None:
    wide = TABLE.append_column("note", pa.array(range(60))).select(["note", *reversed(TABLE.column_names)])
    large = wide.set_column(wide.column_names.index("name"), "name", TABLE["name"].cast(pa.large_string()))
    assert_same(from_dataset(Dataset(large)), POPULATION)


def test_relations_that_were_drawn_otherwise_are_refused(tmp_path: Path) -> None:
    save(POPULATION, str(tmp_path / "uniform"), description="")
    save(bipartite(), str(tmp_path / "bipartite"), description="")
    for name, fields, told in (
        ("uniform", {"structure": BIPARTITE}, "parent: "),
        ("uniform", {"self_relations": False}, r"\w+: person \d+ is related to themselves"),
        ("bipartite", {"structure": UNIFORM}, r"parent: person \d+ has none"),
    ):
        with pytest.raises(ValueError, match=f"{name}: relations are not drawn as the spec says: {told}"):
            load(disk(tmp_path / name, **fields))


def test_paths_that_hold_no_population_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder /nowhere"):
        load(disk(Path("/nowhere")))
    DatasetDict(train=to_dataset(POPULATION)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"the folder holds the splits \['train'\]; name one of their folders"):
        load(disk(tmp_path / "splits"))
    assert_same(load(disk(tmp_path / "splits" / "train")), POPULATION)
    (tmp_path / "people.parquet").write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"people\.parquet: .*Parquet magic bytes not found"):
        load(disk(tmp_path / "people.parquet"))


def test_what_is_there_is_never_overwritten_nor_left_half_done(tmp_path: Path) -> None:
    for name in ("people.parquet", "people"):
        save(POPULATION, str(tmp_path / name), description="first")
        with pytest.raises(FileExistsError, match=r"there is something at .*; take another place"):
            save(bipartite(), str(tmp_path / name), description="second")
        assert_same(load(disk(tmp_path / name)), POPULATION)
        with pytest.raises(pa.ArrowInvalid):  # one bio for sixty people
            save(replace(POPULATION, bios=("",)), str(tmp_path / f"bad-{name}"), description="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people", "people.parquet"]


def test_the_card_tells_what_is_in_there_and_how_to_load_it(tmp_path: Path) -> None:
    save(bipartite(), str(tmp_path / "people"), description="seed: 5")
    card = (tmp_path / "people" / "README.md").read_text()
    front, text = card.removeprefix("---\n").split("---\n", 1)
    assert YAML().load(front)["size_categories"] == ["n<1K"]
    assert "```\nseed: 5\n```" in text
    facts = sum(fact_bits(bipartite().facts, Selection.SET).values())
    assert (
        f"| everything once, names as a set | {facts + name_set_bits(bipartite().facts, Selection.SET):,.1f} |" in text
    )
    spec = YAML(typ="safe").load(text.split("```yaml\n")[1].split("```")[0])["profiles"]
    assert_same(load(ProfilesFromDisk(**spec | {"structure": RelationStructure(spec["structure"])})), bipartite())
