"""Exported populations: round trips through files and folders, errors for data that do not fit the schema, cards."""

import datetime
import json
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

from raycap.export.dataset import save_dataset, to_dataset
from raycap.facts.columns import TEXT_ATTRIBUTES, from_table
from raycap.facts.entropy import fact_bits, name_set_bits
from raycap.facts.hosted import fingerprint, load_profiles
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import Attribute, Profiles, Schema, birth_dates, census_schema, generate
from raycap.facts.random_data import pairs
from raycap.facts.relations import NO_PERSON
from raycap.spec import NamePools, ProfilesFromDisk, ProfilesFromTable, RandomPairs, RelationStructure
from raycap.spec import SelectionScheme as Selection
from tests.support.strategies import distinct, schemas, values

UNIFORM, BIPARTITE = RelationStructure
POPULATION = generate(census_schema(NamePools(), 17), 60, seed=5)
FINGERPRINT = "fa3ece14dd1f2f5fc4c02ffae2a03c2bb1301309db9e3bcb2a046e4dd2c25b77"
"""Fingerprint of POPULATION. It must never change, because it is part of specs and so of trial IDs."""


def from_dataset(dataset: Dataset, *args: Any, **options: Any) -> Profiles:
    """Return the population of a dataset."""
    return from_table(dataset.with_format("arrow")[:], *args, **options)


def bipartite(num_relations: int = 5) -> Profiles:
    return generate(census_schema(NamePools(), num_relations, BIPARTITE), 60, seed=5)


def disk(path: Path, **fields: Any) -> ProfilesFromDisk:
    return ProfilesFromDisk(source="disk", path=str(path), **fields)


def assert_same(actual: Profiles, expected: Profiles) -> None:
    assert actual.facts == expected.facts
    assert actual.schema.name_pools == expected.schema.name_pools
    for attribute, other in zip(actual.schema.attributes, expected.schema.attributes, strict=True):
        assert (attribute.name, attribute.values) == (other.name, other.values)
        assert np.array_equal(attribute.weights, other.weights)
    for array in ("names", "attributes", "relations"):
        assert np.array_equal(getattr(actual, array), getattr(expected, array))
        assert getattr(actual, array).dtype == np.int32
    assert actual.bios == expected.bios
    assert fingerprint(actual) == fingerprint(expected)


@pytest.mark.parametrize("name", ["people.parquet", "people", "new/folder/people"])
@pytest.mark.parametrize("bios", [None, tuple(f"Bio of {person}.\nü" for person in range(60))])
@pytest.mark.parametrize("profiles", [POPULATION, bipartite(), bipartite(0)], ids=["uniform", "bipartite", "alone"])
def test_a_population_round_trips_through_parquet_and_folders(
    profiles: Profiles, bios: tuple[str, ...] | None, name: str, tmp_path: Path
) -> None:
    profiles = replace(profiles, bios=bios)
    save_dataset(profiles, str(tmp_path / name), description="a test")
    structure = profiles.schema.structure
    loaded = load_profiles(disk(tmp_path / name, structure=structure, fingerprint=fingerprint(profiles)))
    assert_same(loaded, profiles)  # the pools are recognised, so the entropies are the generating ones
    assert loaded.schema.attributes[0] is birth_dates()


@st.composite
def people(draw: st.DrawFn) -> Profiles:
    """Generate small populations with unusual names and values, a subset of the relations, and optional bios."""
    pools = draw(schemas()).name_pools
    attributes = (birth_dates(), *(Attribute.uniform(name, draw(distinct(values, 5))) for name in TEXT_ATTRIBUTES))
    chosen = draw(st.sets(st.sampled_from(RELATIONS), max_size=6))
    num_profiles = draw(st.integers(1, min(6, len(pools[0]) * len(pools[1]) * len(pools[2]))))
    structure = UNIFORM if num_profiles % 2 else draw(st.sampled_from(RelationStructure))
    schema = Schema(pools, attributes, tuple(filter(chosen.__contains__, RELATIONS)), structure)
    bios = st.lists(st.text(max_size=20), min_size=num_profiles, max_size=num_profiles).map(tuple)
    return replace(generate(schema, num_profiles, seed=draw(st.integers(0, 10))), bios=draw(st.none() | bios))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(people())
def test_unusual_names_and_values_round_trip(profiles: Profiles) -> None:
    loaded = from_dataset(to_dataset(profiles), profiles.schema.structure)
    assert fingerprint(loaded) == fingerprint(profiles)
    assert (loaded.bios, loaded.schema.subjects) == (profiles.bios, profiles.schema.subjects)
    assert np.array_equal(loaded.relations, profiles.relations)
    for row in range(profiles.num_profiles):
        assert loaded.full_name(row) == profiles.full_name(row)
        assert all(loaded.attribute_value(row, a) == profiles.attribute_value(row, a) for a in range(4))
    assert_same(from_dataset(to_dataset(loaded), profiles.schema.structure), loaded)


def test_small_pools_keep_their_entropy_if_they_are_specified() -> None:
    pools = NamePools(first=20, middle=20, last=40)
    profiles = generate(census_schema(pools, 2), 300, seed=0)
    assert_same(from_dataset(to_dataset(profiles), pools=pools), profiles)
    with pytest.raises(ValueError, match=r"column name, row \d+: \w+ .*\b10 values"):
        from_dataset(to_dataset(profiles), pools=NamePools(first=10))


def test_the_dataset_has_the_hosted_schema() -> None:
    features = to_dataset(POPULATION).features
    assert features["birth_date"].dtype == "timestamp[s]"
    assert features["index"].dtype == "int32"
    assert list(features["evil_twin"]) == ["name", "index"]
    childless = to_dataset(bipartite())[int((bipartite().relations[:, 1] == NO_PERSON).argmax())]
    assert childless["child"] is None
    with pytest.raises(ValueError, match="birth_date, birth_city, university, employer, got relation_1"):
        to_dataset(pairs(RandomPairs(source="pairs")))


def test_the_dataset_of_the_reference_loads_and_round_trips(shared_profiles: Path, tmp_path: Path) -> None:
    loaded = load_profiles(disk(shared_profiles))
    assert (loaded.num_profiles, len(loaded.schema.relations)) == (1000, 17)
    assert np.log2(loaded.schema.num_names) == pytest.approx(41.11, abs=0.005)
    table = to_dataset(loaded).with_format("arrow")[:]
    original = pq.read_table(shared_profiles).cast(table.schema)
    assert all(original[name].combine_chunks() == table[name].combine_chunks() for name in original.column_names)
    for name in ("people.parquet", "people"):
        save_dataset(loaded, str(tmp_path / name), description="the reference dataset")
        assert_same(load_profiles(disk(tmp_path / name, fingerprint=fingerprint(loaded))), loaded)


def test_the_fingerprint_is_independent_of_the_encoding_and_of_bios() -> None:
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
def test_a_changed_fact_changes_the_fingerprint(array: str) -> None:
    changed = getattr(POPULATION, array).copy()
    changed[7, 2] = (changed[7, 2] + 1) % 60
    assert fingerprint(replace(POPULATION, **{array: changed})) != FINGERPRINT
    swapped = getattr(POPULATION, array)[[1, 0, *range(2, 60)]]
    assert fingerprint(replace(POPULATION, **{array: swapped})) != FINGERPRINT


def test_a_population_with_another_fingerprint_than_the_spec_is_refused(tmp_path: Path) -> None:
    save_dataset(POPULATION, str(tmp_path / "people.parquet"), description="")
    with pytest.raises(ValueError, match=rf"people.parquet: .*{FINGERPRINT}.*0123"):
        load_profiles(disk(tmp_path / "people.parquet", fingerprint="0123"))


TABLE: pa.Table = to_dataset(POPULATION).with_format("arrow")[:].replace_schema_metadata()


def put(column: str, content: Any) -> Dataset:
    """Return the dataset of POPULATION with one column replaced."""
    return Dataset(TABLE.set_column(TABLE.column_names.index(column), column, pa.array(content)))


def change(column: str, row: int, value: Any) -> Dataset:
    content = TABLE[column].to_pylist()
    content[row] = value
    return put(column, pa.array(content, TABLE.schema.field(column).type))


def person(index: int | None, name: str | None = None) -> dict[str, Any]:
    return {"name": name, "index": index}


@pytest.mark.parametrize(
    ("dataset", "error"),
    [
        (Dataset(TABLE.drop_columns(["employer", "index"])), r"\['index', 'employer'\]"),
        (Dataset(TABLE.slice(0, 0)), "no rows"),
        (put("name", range(60)), "column name: .* got int64"),
        (put("index", [str(row) for row in range(60)]), "column index: .* got string"),
        (put("birth_date", ["1950-01-01"] * 60), "column birth_date: .* got string"),
        (put("employer", [3] * 60), "column employer: .* got int64"),
        (put("parent", range(60)), "column parent: .* got int64"),
        (put("parent", [{"index": 3}] * 60), "column parent: .* got struct<index: int64>"),
        (change("name", 3, None), "column name, row 3: "),
        (change("university", 9, None), "column university, row 9: "),
        (change("name", 3, POPULATION.full_name(1)), "column name, row 3: "),
        (change("name", 3, "Cher"), "column name, row 3: .* got 'Cher'"),
        (change("name", 3, "A  B"), "column name, row 3: .* got 'A  B'"),
        (change("name", 3, "A B C."), "column name, row 3: .* got 'A B C.'"),
        (change("index", 4, 5), "column index, row 4: must be 4, .*got 5"),
        (Dataset(TABLE).shuffle(seed=0), "column index, row 0: must be 0, "),
        (change("birth_date", 7, datetime.datetime(1950, 1, 31)), "row 7: 1950-01-31 "),
        (change("birth_date", 7, datetime.datetime(1950, 1, 1, 8)), "birth_date, row 7: .* got 1950"),
        (change("parent", 2, person(60, "x")), r"column parent, row 2: index 60 .* 0\.\.59"),
        (change("parent", 2, person(-1, "x")), r"column parent, row 2: index -1 .* 0\.\.59"),
        (change("parent", 2, person(1, "x")), "column parent, row 2: x .* index 1, [A-Z]"),
        (change("parent", 2, person(1)), "column parent, row 2: .*name and index"),
        (change("parent", 2, person(None, "x")), "column parent, row 2: .*name and index"),
        (change("parent", 2, None), "parent: person 2 "),
        (change("hero", 2, person(None)), "hero: person 2 "),
        (Dataset(TABLE.append_column("bio", pa.array([1] * 60))), "column bio: .* got int64"),
        (Dataset(TABLE.append_column("bio", pa.array(["a", None] * 30))), "column bio, row 1: "),
    ],
)
def test_data_that_do_not_fit_are_refused_with_column_row_and_value(dataset: Dataset, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        from_dataset(dataset)


@pytest.mark.parametrize("kind", [*map(pa.timestamp, ("s", "ms", "us", "ns")), pa.date32(), pa.date64()], ids=str)
def test_birth_dates_may_have_any_time_unit(kind: pa.DataType) -> None:
    dates = [datetime.datetime.fromisoformat(POPULATION.attribute_value(row, 0)) for row in range(60)]
    assert_same(from_dataset(put("birth_date", pa.array(dates, pa.timestamp("s")).cast(kind))), POPULATION)


def test_columns_may_be_in_any_order_and_extra_columns_are_ignored() -> None:
    wide = TABLE.append_column("note", pa.array(range(60))).select(["note", *reversed(TABLE.column_names)])
    large = wide.set_column(wide.column_names.index("name"), "name", TABLE["name"].cast(pa.large_string()))
    assert_same(from_dataset(Dataset(large)), POPULATION)


def test_relations_that_contradict_the_spec_are_refused(tmp_path: Path) -> None:
    save_dataset(POPULATION, str(tmp_path / "uniform"), description="")
    save_dataset(bipartite(), str(tmp_path / "bipartite"), description="")
    for name, fields, error in (
        ("uniform", {"structure": BIPARTITE}, "parent: "),
        ("uniform", {"self_relations": False}, r"\w+: person \d+ "),
        ("bipartite", {"structure": UNIFORM}, r"parent: person \d+ "),
    ):
        with pytest.raises(ValueError, match=f"{name}: .*{error}"):
            load_profiles(disk(tmp_path / name, **fields))


def test_paths_without_a_population_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        load_profiles(disk(Path("/nowhere")))
    DatasetDict(train=to_dataset(POPULATION)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"\['train'\]"):
        load_profiles(disk(tmp_path / "splits"))
    assert_same(load_profiles(disk(tmp_path / "splits" / "train")), POPULATION)
    (tmp_path / "people.parquet").write_text("not a Parquet file")
    with pytest.raises(ValueError, match=r"people\.parquet: "):
        load_profiles(disk(tmp_path / "people.parquet"))


def test_existing_targets_are_kept_and_failed_exports_leave_nothing_behind(tmp_path: Path) -> None:
    for name in ("people.parquet", "people"):
        save_dataset(POPULATION, str(tmp_path / name), description="first")
        with pytest.raises(FileExistsError, match=rf"{name} exists already"):
            save_dataset(bipartite(), str(tmp_path / name), description="second")
        assert_same(load_profiles(disk(tmp_path / name)), POPULATION)
        with pytest.raises(pa.ArrowInvalid):  # one bio for 60 people
            save_dataset(replace(POPULATION, bios=("",)), str(tmp_path / f"bad-{name}"), description="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people", "people.parquet"]


def test_the_card_has_the_code_length_and_a_spec_that_loads_the_dataset(tmp_path: Path) -> None:
    save_dataset(bipartite(), str(tmp_path / "people"), description="seed: 5")
    card = (tmp_path / "people" / "README.md").read_text()
    front, text = card.removeprefix("---\n").split("---\n", 1)
    assert YAML().load(front)["size_categories"] == ["n<1K"]
    assert "```\nseed: 5\n```" in text
    facts = sum(fact_bits(bipartite().facts, Selection.SET).values())
    assert f"| {facts + name_set_bits(bipartite().facts, Selection.SET):,.1f} |" in text
    spec = YAML(typ="safe").load(text.split("```yaml\n")[1].split("```")[0])["profiles"]
    assert_same(
        load_profiles(ProfilesFromDisk(**spec | {"structure": RelationStructure(spec["structure"])})), bipartite()
    )


def test_a_table_round_trips_through_a_file_and_a_folder_whose_card_loads_it(tmp_path: Path) -> None:
    source = tmp_path / "staff.csv"
    source.write_text("who,home town,boss,room\nAnn O'Neil,Paris,,7\nBob,,Ann O'Neil,8\nZoë de la Tour,Rome,Bob,7\n")
    fields = {
        "source": "table",
        "path": str(source),
        "name": "who",
        "attributes": ["home town", "room"],
        "relations": {"chief": "boss"},
        "subjects": {
            "home town": {"missing": "void", "questions": ["Where was {name} born?"]},
            "room": {"distribution": {"kind": "given", "probabilities": {"7": 0.5, "8": 0.25, "9": 0.25}}},
            "chief": {"missing": "void", "distribution": {"kind": "uniform"}},
        },
    }
    spec = ProfilesFromTable.model_validate_json(json.dumps(fields))
    profiles = load_profiles(spec)
    save_dataset(profiles, str(tmp_path / "saved"), description="", table=spec)
    text = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    loaded = YAML(typ="safe").load(text.partition("```yaml\n")[2].partition("```")[0])["profiles"]
    again = load_profiles(ProfilesFromTable.model_validate_json(json.dumps(loaded)))
    assert fingerprint(again) == fingerprint(profiles) == loaded["fingerprint"]
    assert again.facts == profiles.facts
    assert again.schema.wordings == profiles.schema.wordings
    bits = {row.split(" | ")[0].strip("| `"): row.split(" | ") for row in text.splitlines() if row.startswith("| `")}
    for subject, total in fact_bits(profiles.facts, Selection.ENUMERATE).items():
        assert bits[subject][1].startswith(str(profiles.facts.prices[subject].distribution))
        assert bits[subject][4] == f"{total:,.1f}"
    save_dataset(profiles, str(tmp_path / "saved.parquet"), description="", table=spec)
    assert pq.read_table(tmp_path / "saved.parquet").to_pylist()[1] == {
        "name": "Bob", "home town": None, "room": "8", "chief": "Ann O'Neil"
    }  # fmt: skip
