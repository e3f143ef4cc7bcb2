"""The hosted dataset schema: round trips, and clear errors for data that do not fit it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from raycap.facts.hosted import from_dataset, profiles_of, to_dataset
from raycap.facts.profiles import Profiles, birth_dates, census_schema, generate
from raycap.facts.questions import num_questions, render, unpack
from raycap.spec import NamePools, ProfilesByCount, ProfilesFromDisk

POPULATION = generate(census_schema(NamePools(), 17), 60, seed=5)


def texts(profiles: Profiles) -> list[tuple[str, str]]:
    return render(profiles, unpack(profiles, 1, np.arange(num_questions(profiles, 1))))


def test_a_generated_population_survives_parquet_and_folder(tmp_path: Path) -> None:
    dataset = to_dataset(POPULATION)
    dataset.to_parquet(str(tmp_path / "people.parquet"))
    dataset.save_to_disk(str(tmp_path / "people"))
    for name in ("people.parquet", "people"):
        loaded = profiles_of(ProfilesFromDisk(source="disk", path=str(tmp_path / name)))
        assert texts(loaded) == texts(POPULATION)
        assert loaded.facts == POPULATION.facts  # the pools are recognised, so the entropy is the generating one
        assert loaded.schema.attributes[0] is birth_dates()


def test_the_schema_is_the_hosted_one() -> None:
    features = to_dataset(POPULATION).features
    assert features["birth_date"].dtype == "timestamp[s]"
    assert features["index"].dtype == "int32"
    assert list(features["evil_twin"]) == ["name", "index"]
    assert to_dataset(POPULATION)[0]["index"] == 0


def test_the_references_own_file_loads_and_round_trips(shared_profiles: Path) -> None:
    loaded = profiles_of(ProfilesFromDisk(source="disk", path=str(shared_profiles)))
    assert (loaded.num_profiles, len(loaded.schema.relations)) == (1000, 17)
    assert np.log2(loaded.schema.num_names) == pytest.approx(41.11, abs=0.005)
    again = from_dataset(to_dataset(loaded))
    for a, b in (
        (loaded.names, again.names),
        (loaded.attributes, again.attributes),
        (loaded.relations, again.relations),
    ):
        assert np.array_equal(a, b)


def change(column: str, row: int, value: Any) -> Dataset:
    columns = to_dataset(POPULATION).to_dict()
    columns[column][row] = value
    return Dataset.from_dict(columns, features=to_dataset(POPULATION).features)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (to_dataset(POPULATION).remove_columns("employer"), r"lack the columns \['employer'\]"),
        (change("name", 3, POPULATION.full_name(4)), "1 names occur more than once"),
        (change("name", 3, "Cher"), "column name, row 3: must be first, middle and last name"),
        (change("parent", 2, {"name": "x", "index": 60}), r"column parent, row 2: index 60 is outside 0\.\.59"),
        (change("parent", 2, {"name": "x", "index": 1}), "column parent, row 2: 'x' is not the name at index 1"),
        (change("birth_date", 7, np.datetime64("1950-01-31", "s").item()), "row 7: '1950-01-31' is not a value"),
    ],
)
def test_data_that_do_not_fit_are_told_apart(dataset: Dataset, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_dataset(dataset)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder /nowhere"):
        profiles_of(ProfilesFromDisk(source="disk", path="/nowhere"))


def test_a_generated_spec_gives_its_population() -> None:
    assert profiles_of(ProfilesByCount(num_profiles=60, num_relations=17, seed=5)).full_name(9) == POPULATION.full_name(
        9
    )
