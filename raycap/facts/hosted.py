"""The hosted dataset schema: populations from and to parquet files, folders and the Hugging Face hub.

Columns: name string, index int32, birth_date timestamp[s], birth_city, university, employer string, and for each
relation a struct {name string, index int32}.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raycap.facts.names import RELATIONS, census_first_names, census_last_names
from raycap.facts.profiles import Attribute, Profiles, Schema, birth_dates, census_schema, generate
from raycap.spec import NamePools, ProfilesByCount, ProfilesFromDisk, ProfilesFromHub, ProfilesSpec

if TYPE_CHECKING:
    from datasets import Dataset, Features

TEXT_ATTRIBUTES = ("birth_city", "university", "employer")


def profiles_of(spec: ProfilesSpec) -> Profiles:
    """The population a resolved spec names: generated here, or loaded.

    Raises ValueError for data that does not fit the schema, FileNotFoundError for a missing path.
    """
    if isinstance(spec, ProfilesByCount):
        return generate(census_schema(spec.names, spec.num_relations), spec.num_profiles, seed=spec.seed)
    if isinstance(spec, ProfilesFromDisk):
        return from_dataset(_read(Path(spec.path)))
    assert isinstance(spec, ProfilesFromHub), "profiles by bits are solved by plan.expand"
    from datasets import load_dataset

    return from_dataset(load_dataset(spec.path, split=spec.split, revision=spec.revision))


def _read(path: Path) -> "Dataset":
    from datasets import Dataset, load_from_disk
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not path.exists():
        raise FileNotFoundError(f"profiles.path: there is no file or folder {path}")
    return load_from_disk(str(path)) if path.is_dir() else Dataset.from_parquet(str(path))


def from_dataset(dataset: "Dataset") -> Profiles:
    """A population from a dataset in the hosted schema.

    Its schema: the whole pools that raycap draws names and values from where all of those seen are in them, so that a
    population keeps its entropy on its way through a file; else the parts and values seen, taken as uniform, since
    nothing else is known of them. Birth dates have the reference's distribution. Raises ValueError naming the column and
    row at fault.
    """
    columns: dict[str, Any] = dataset.with_format("arrow")[:].to_pydict()
    missing = [c for c in ("name", "birth_date", *TEXT_ATTRIBUTES) if c not in columns]
    if missing:
        raise ValueError(f"profiles lack the columns {missing}; they have {sorted(columns)}")
    relations = tuple(relation for relation in RELATIONS if relation in columns)
    names: list[str] = columns["name"]
    parts = [name.split(" ") for name in names]
    for row, part in enumerate(parts):
        if len(part) != 3 or not part[-1][-1:].isalnum():
            raise ValueError(f"column name, row {row}: must be first, middle and last name, got {names[row]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"column name: {len(names) - len(set(names))} names occur more than once")

    name_pools = _name_pools(parts)
    attributes = (birth_dates(), *(_text_attribute(column, set(columns[column])) for column in TEXT_ATTRIBUTES))
    text_values = columns | {"birth_date": [value.strftime("%Y-%m-%d") for value in columns["birth_date"]]}
    return Profiles(
        Schema(name_pools, attributes, relations),
        np.stack([_indices(pool, [p[i] for p in parts], "name") for i, pool in enumerate(name_pools)], axis=1),
        np.stack([_indices(a.values, text_values[a.name], a.name) for a in attributes], axis=1),
        np.stack([_targets(columns[r], names, r) for r in relations], axis=1)
        if relations
        else np.empty((len(names), 0), np.int32),
    )


def _name_pools(parts: list[list[str]]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    seen = [set(column) for column in zip(*parts, strict=True)]
    first, last = census_first_names(), census_last_names()
    if seen[0] | seen[1] <= set(first) and seen[2] <= set(last):
        return first, first, last
    return tuple(sorted(seen[0])), tuple(sorted(seen[1])), tuple(sorted(seen[2]))


def _text_attribute(column: str, seen: set[str]) -> Attribute:
    own = next(attribute for attribute in census_schema(NamePools(), 0).attributes if attribute.name == column)
    return own if seen <= set(own.values) else Attribute.uniform(column, tuple(sorted(seen)))


def _indices(pool: tuple[str, ...], values: list[str], column: str) -> Any:
    where = {value: index for index, value in enumerate(pool)}
    for row, value in enumerate(values):
        if value not in where:
            raise ValueError(f"column {column}, row {row}: {value!r} is not a value the attribute can take")
    return np.array([where[value] for value in values], np.int32)


def _targets(values: list[dict[str, Any]], names: list[str], relation: str) -> Any:
    for row, value in enumerate(values):
        index = value["index"]
        if not 0 <= index < len(names):
            raise ValueError(f"column {relation}, row {row}: index {index} is outside 0..{len(names) - 1}")
        if value["name"] != names[index]:
            raise ValueError(
                f"column {relation}, row {row}: {value['name']!r} is not the name at index {index}, {names[index]!r}"
            )
    return np.array([value["index"] for value in values], np.int32)


def to_dataset(profiles: Profiles) -> "Dataset":
    """The population as a dataset in the hosted schema; save_to_disk, to_parquet and push_to_hub are its own."""
    from datasets import Dataset

    names = [profiles.full_name(person) for person in range(profiles.num_profiles)]
    columns: dict[str, Any] = {"name": names, "index": list(range(profiles.num_profiles))}
    for position, attribute in enumerate(profiles.schema.attributes):
        values = [attribute.values[index] for index in profiles.attributes[:, position]]
        columns[attribute.name] = np.array(values, "datetime64[s]") if attribute.name == "birth_date" else values
    for position, relation in enumerate(profiles.schema.relations):
        targets = profiles.relations[:, position]
        columns[relation] = [{"name": names[target], "index": int(target)} for target in targets]
    return Dataset.from_dict(columns, features=_features(profiles.schema.relations))


def _features(relations: tuple[str, ...]) -> "Features":
    from datasets import Features, Value

    person = {"name": Value("string"), "index": Value("int32")}
    text = {column: Value("string") for column in TEXT_ATTRIBUTES}
    return Features(
        {"name": Value("string"), "index": Value("int32"), "birth_date": Value("timestamp[s]"), **text}
        | dict.fromkeys(relations, person)
    )
