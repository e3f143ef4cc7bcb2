"""Loading of populations from Parquet files, dataset folders and the Hugging Face Hub, with checks of every column.

The columns are those of the reference implementation's datasets: `name` (string), `index` (int32), `birth_date`
(timestamp[s]), `birth_city`, `university` and `employer` (string), for each relation a struct {name: string, index:
int32} that is null if the person has no such relation, and optionally `bio` (string).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from raycap.facts.names import RELATIONS
from raycap.facts.profiles import Attribute, IntArray, Profiles, Schema, birth_dates, census_schema
from raycap.facts.relations import NO_PERSON, broken_structure
from raycap.spec import NamePools, ProfilesFromDisk, ProfilesFromHub, RelationStructure

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_ATTRIBUTES = ("birth_city", "university", "employer")
ATTRIBUTES = ("birth_date", *TEXT_ATTRIBUTES)

# --- loading ----------------------------------------------------------------------------------------------------------


def load(spec: ProfilesFromDisk | ProfilesFromHub) -> Profiles:
    """Load a population from a path or from the Hub and check it against the spec.

    Raises FileNotFoundError if the path does not exist, and ValueError if the data do not have the schema, the
    structure or the fingerprint that is expected.
    """
    try:
        profiles = from_dataset(_read(spec), spec.structure, spec.self_relations, spec.names)
        if spec.fingerprint is not None and (found := fingerprint(profiles)) != spec.fingerprint:
            raise ValueError(
                f"the fingerprint is {found}, but the spec requires {spec.fingerprint}; the data have changed"
            )
    except ValueError as error:
        raise ValueError(f"profiles at {spec.path}: {error}") from error
    return profiles


def _read(spec: ProfilesFromDisk | ProfilesFromHub) -> "Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    hide_progress()
    if isinstance(spec, ProfilesFromHub):
        return load_dataset(spec.path, split=spec.split, revision=spec.revision)
    path = Path(spec.path.removeprefix("file://"))
    if not path.exists():
        raise FileNotFoundError(f"profiles.path: no such file or folder: {path}")
    if path.is_file():
        # Dataset.from_parquet would store a copy of the file in a cache. The schema metadata that `datasets` writes are
        # dropped because they declare timestamps in seconds, which Parquet cannot store.
        return Dataset(pa.parquet.read_table(path).replace_schema_metadata())
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"must be a single dataset, got the splits {sorted(dataset)}; set profiles.path to the folder of one"
        )
    return dataset


def hide_progress() -> None:
    """Disable the progress bars of `datasets`."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()


def from_dataset(
    dataset: "Dataset",
    structure: RelationStructure = RelationStructure.UNIFORM,
    self_relations: bool = True,
    pools: NamePools | None = None,
) -> Profiles:
    """Convert a dataset in the hosted schema to a population.

    Birth dates are assumed to have the distribution of `profiles.birth_dates`. Any other attribute is assumed to be
    uniform over raycap's list of values if that list contains all values in the data, and otherwise over the values
    that occur.

    Args:
        dataset: The dataset.
        structure: Distribution that the relations were drawn from.
        self_relations: Whether a relation may lead from a person to that same person.
        pools: Pools that the names were drawn from. By default the complete census lists if they contain all names,
            otherwise the name parts that occur.

    Raises:
        ValueError: The data are invalid. The message names the column and the row.
    """
    if missing := [column for column in ("name", "index", *ATTRIBUTES) if column not in dataset.column_names]:
        raise ValueError(f"the columns {missing} are missing, got {sorted(dataset.column_names)}")
    if not len(dataset):
        raise ValueError("the dataset has no rows")
    table = dataset.with_format("arrow")[:]
    relations = tuple(relation for relation in RELATIONS if relation in table.column_names)

    names = _texts(table, "name")
    parts = name_parts(names.to_pylist())
    rows = np.arange(len(names))
    first_rows = names.dictionary_encode().indices.to_numpy()  # numbered in order of first occurrence
    _refuse(first_rows != rows, "name", lambda row: f"must be unique, got {names[row]} again")
    index = _column(table, "index", pa.types.is_integer, "an integer")
    _refuse(index.to_numpy() != rows, "index", lambda row: f"must be {row}, the row number, got {index[row]}")

    columns = {"birth_date": _dates(table), **{column: _texts(table, column) for column in TEXT_ATTRIBUTES}}
    attributes = (birth_dates(), *(_text_attribute(column, columns[column]) for column in TEXT_ATTRIBUTES))
    name_pools = _name_pools(parts, pools)
    targets = [_targets(table, relation, names) for relation in relations]
    profiles = Profiles(
        Schema(name_pools, attributes, relations, structure, self_relations),
        np.stack([_indices(*pool_and_column, "name") for pool_and_column in zip(name_pools, parts, strict=True)], 1),
        np.stack([_indices(attribute.values, columns[attribute.name], attribute.name) for attribute in attributes], 1),
        np.stack(targets, 1) if targets else np.empty((len(names), 0), np.int32),
        tuple(_texts(table, "bio").to_pylist()) if "bio" in table.column_names else None,
    )
    if broken := broken_structure(relations, profiles.relations, structure, self_relations):
        raise ValueError(f"the relations do not have the structure of the spec: {broken}")
    return profiles


def _refuse(bad: NDArray[np.bool_], column: str, message: Callable[[int], str]) -> None:
    """Raise ValueError with the message of the first bad row, if there is one."""
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"column {column}, row {row}: {message(row)}")


def _column(table: Any, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
    """Return a column as a single Arrow array, after checking its type and that it has no nulls."""
    column = table[name].combine_chunks()
    if not fits(column.type):
        raise ValueError(f"column {name}: must be {expected}, got {column.type}")
    _refuse(_is_null(column), name, lambda row: "is missing")
    return column


def _is_null(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(table: Any, name: str) -> Any:
    return _column(table, name, _is_text, "a string").cast(pa.string())


def _dates(table: Any) -> Any:
    """Return the birth dates as ISO 8601 texts, from dates or timestamps of any unit."""

    def fits(kind: Any) -> bool:
        return pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)

    column = _column(table, "birth_date", fits, "a date or a timestamp without time zone")
    moments = column.to_numpy(zero_copy_only=False)
    days = moments.astype("datetime64[D]")
    _refuse(days != moments, "birth_date", lambda row: f"must be midnight, got {column[row]}")
    return pa.array(np.datetime_as_string(days).tolist(), pa.string())


def name_parts(names: list[str]) -> list[Any]:
    """Split full names and return the columns of first, middle and last names.

    Names must end in a letter or digit, because questions continue with "'s" and tokenizers split there.

    Raises:
        ValueError: A name does not have three parts or does not end in a letter or digit.
    """
    parts = [name.split(" ") for name in names]
    for row, (name, part) in enumerate(zip(names, parts, strict=True)):
        if len(part) != 3 or not all(part) or not name[-1].isalnum():
            rule = "must be a first, middle and last name separated by single spaces, ending in a letter or digit"
            raise ValueError(f"column name, row {row}: {rule}, got {name!r}")
    return [pa.array(column) for column in zip(*parts, strict=True)]


def _name_pools(parts: list[Any], pools: NamePools | None) -> tuple[tuple[str, ...], ...]:
    seen = [set(column.to_pylist()) for column in parts]
    census = census_schema(pools or NamePools(), 0).name_pools
    if pools is not None or all(values <= set(pool) for values, pool in zip(seen, census, strict=True)):
        return census
    return tuple(tuple(sorted(values)) for values in seen)


def _text_attribute(name: str, column: Any) -> Attribute:
    seen = set(column.to_pylist())
    known = next(attribute for attribute in census_schema(NamePools(), 0).attributes if attribute.name == name)
    return known if seen <= set(known.values) else Attribute.uniform(name, tuple(sorted(seen)))


def _indices(pool: tuple[str, ...], column: Any, name: str) -> IntArray:
    found = pc.index_in(column, value_set=pa.array(pool, pa.string()))
    _refuse(_is_null(found), name, lambda row: f"{column[row]} is not one of the {len(pool)} values")
    return np.asarray(found.to_numpy(), np.int32)


def _targets(table: Any, relation: str, names: Any) -> IntArray:
    """Return the person that a relation leads to, shape (N,); NO_PERSON if the struct or both of its fields are
    null."""
    column = table[relation].combine_chunks()
    fields = {field.name: field.type for field in column.type} if pa.types.is_struct(column.type) else {}
    if fields.keys() != {"name", "index"} or not (_is_text(fields["name"]) and pa.types.is_integer(fields["index"])):
        raise ValueError(f"column {relation}: must be a struct of name (string) and index (integer), got {column.type}")
    parts = dict(zip(fields, column.flatten(), strict=True))
    target_names, index = parts["name"].cast(pa.string()), parts["index"]
    missing = _is_null(index)
    incomplete = missing != _is_null(target_names)
    _refuse(incomplete, relation, lambda row: f"name and index must both be given or both be null, got {column[row]}")
    targets = index.fill_null(0).to_numpy().astype(np.int64)
    outside = (targets < 0) | (targets >= len(names))
    _refuse(outside, relation, lambda row: f"index {index[row]} is not in 0..{len(names) - 1}")
    expected = names.take(pa.array(targets))
    wrong = pc.not_equal(target_names, expected).fill_null(False).to_numpy(zero_copy_only=False)
    _refuse(
        wrong,
        relation,
        lambda row: f"{target_names[row]} is not the name at index {index[row]}, {expected[row]}",
    )
    return np.where(missing, NO_PERSON, targets).astype(np.int32)


# --- identity ---------------------------------------------------------------------------------------------------------


def fingerprint(profiles: Profiles) -> str:
    """Return the SHA-256 of the names, attribute values and relations of a population.

    It does not depend on how the population is stored. The name pools, the assumed distributions and the column `bio`
    do not enter it.
    """
    digest = hashlib.sha256()
    schema, people = profiles.schema, range(profiles.num_profiles)
    digest.update(json.dumps(["name", [profiles.full_name(person) for person in people]]).encode())
    for attribute, values in zip(schema.attributes, profiles.attributes.T, strict=True):
        digest.update(json.dumps([attribute.name, [attribute.values[value] for value in values]]).encode())
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        digest.update(json.dumps([relation, targets.tolist()]).encode())
    return digest.hexdigest()
