"""The hosted dataset schema: populations from parquet files, folders and the Hugging Face hub.

Columns: name string, index int32, birth_date timestamp[s], birth_city, university, employer string, for each relation a
struct {name string, index int32} (null for nobody), and perhaps bio string.
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

# --- in -----------------------------------------------------------------------------------------------------------------


def load(spec: ProfilesFromDisk | ProfilesFromHub) -> Profiles:
    """The population at a path or on the hub, checked against the spec.

    Raises FileNotFoundError for a missing path, ValueError for data that do not fit the schema, the structure they are
    said to have, or the fingerprint.
    """
    try:
        profiles = from_dataset(_read(spec), spec.structure, spec.self_relations, spec.names)
        if spec.fingerprint is not None and (found := fingerprint(profiles)) != spec.fingerprint:
            raise ValueError(f"these are other people: their fingerprint is {found}, the spec says {spec.fingerprint}")
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
        raise FileNotFoundError(f"profiles.path: there is no file or folder {path}")
    if path.is_file():
        # Dataset.from_parquet would leave a copy of the file in a cache. The metadata are datasets' own, and promise
        # timestamps in seconds, which parquet cannot hold.
        return Dataset(pa.parquet.read_table(path).replace_schema_metadata())
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        raise ValueError(f"the folder holds the splits {sorted(dataset)}; name one of their folders")
    return dataset


def hide_progress() -> None:
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()


def from_dataset(
    dataset: "Dataset",
    structure: RelationStructure = RelationStructure.UNIFORM,
    self_relations: bool = True,
    pools: NamePools | None = None,
) -> Profiles:
    """A population from a dataset in the hosted schema.

    No file says which pools names were drawn from: `pools` does. Without, they are the whole census lists if all names
    are in them, else the parts seen. Other values: raycap's own if all are among them, else those seen, taken as uniform,
    since nothing else is known of them. Birth dates have the reference's distribution. Raises ValueError naming the
    column and row at fault.
    """
    if missing := [column for column in ("name", "index", *ATTRIBUTES) if column not in dataset.column_names]:
        raise ValueError(f"the columns {missing} are missing; there are {sorted(dataset.column_names)}")
    if not len(dataset):
        raise ValueError("there is nobody in them")
    table = dataset.with_format("arrow")[:]
    relations = tuple(relation for relation in RELATIONS if relation in table.column_names)

    names = _texts(table, "name")
    parts = name_parts(names.to_pylist())
    rows = np.arange(len(names))
    first_rows = names.dictionary_encode().indices.to_numpy()  # counts on at every new name
    _refuse(first_rows != rows, "name", lambda row: f"{names[row]} is the name of an earlier row too")
    index = _column(table, "index", pa.types.is_integer, "an integer")
    _refuse(index.to_numpy() != rows, "index", lambda row: f"must be {row}, the row, got {index[row]}")

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
        raise ValueError(f"relations are not drawn as the spec says: {broken}")
    return profiles


def _refuse(bad: NDArray[np.bool_], column: str, told: Callable[[int], str]) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"column {column}, row {row}: {told(row)}")


def _column(table: Any, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
    """A column without gaps as one arrow array."""
    column = table[name].combine_chunks()
    if not fits(column.type):
        raise ValueError(f"column {name}: must be {expected}, got {column.type}")
    _refuse(_is_null(column), name, lambda row: "is missing")
    return column


def _is_null(column: Any) -> NDArray[np.bool_]:
    return column.is_null().to_numpy(zero_copy_only=False)


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _texts(table: Any, name: str) -> Any:
    return _column(table, name, _is_text, "a string").cast(pa.string())


def _dates(table: Any) -> Any:
    """Birth dates as texts, from timestamps of any unit or dates."""

    def fits(kind: Any) -> bool:
        return pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)

    column = _column(table, "birth_date", fits, "a timestamp without time zone, or a date")
    moments = column.to_numpy(zero_copy_only=False)
    days = moments.astype("datetime64[D]")
    _refuse(days != moments, "birth_date", lambda row: f"must be midnight, got {column[row]}")
    return pa.array(np.datetime_as_string(days).tolist(), pa.string())


def name_parts(names: list[str]) -> list[Any]:
    """First, middle and last names. A question goes on after a name with 's, so that its end must be part of a word."""
    parts = [name.split(" ") for name in names]
    for row, (name, part) in enumerate(zip(names, parts, strict=True)):
        if len(part) != 3 or not all(part) or not name[-1].isalnum():
            told = "must be first, middle and last name with spaces between, ending in a letter or digit"
            raise ValueError(f"column name, row {row}: {told}, got {name!r}")
    return [pa.array(column) for column in zip(*parts, strict=True)]


def _name_pools(parts: list[Any], pools: NamePools | None) -> tuple[tuple[str, ...], ...]:
    seen = [set(column.to_pylist()) for column in parts]
    census = census_schema(pools or NamePools(), 0).name_pools
    if pools is not None or all(values <= set(pool) for values, pool in zip(seen, census, strict=True)):
        return census
    return tuple(tuple(sorted(values)) for values in seen)


def _text_attribute(name: str, column: Any) -> Attribute:
    seen = set(column.to_pylist())
    own = next(attribute for attribute in census_schema(NamePools(), 0).attributes if attribute.name == name)
    return own if seen <= set(own.values) else Attribute.uniform(name, tuple(sorted(seen)))


def _indices(pool: tuple[str, ...], column: Any, name: str) -> IntArray:
    found = pc.index_in(column, value_set=pa.array(pool, pa.string()))
    _refuse(_is_null(found), name, lambda row: f"{column[row]} is not among the {len(pool)} values there can be")
    return found.to_numpy()


def _targets(table: Any, relation: str, names: Any) -> IntArray:
    """Whom a relation leads to; NOBODY where the struct, or both of its fields, are null."""
    column = table[relation].combine_chunks()
    fields = {field.name: field.type for field in column.type} if pa.types.is_struct(column.type) else {}
    if fields.keys() != {"name", "index"} or not (_is_text(fields["name"]) and pa.types.is_integer(fields["index"])):
        raise ValueError(f"column {relation}: must be a struct of name (string) and index (integer), got {column.type}")
    parts = dict(zip(fields, column.flatten(), strict=True))
    told, index = parts["name"].cast(pa.string()), parts["index"]
    nobody = _is_null(index)
    half = nobody != _is_null(told)
    _refuse(half, relation, lambda row: f"name and index must be given both or neither, got {column[row]}")
    targets = index.fill_null(0).to_numpy().astype(np.int64)
    outside = (targets < 0) | (targets >= len(names))
    _refuse(outside, relation, lambda row: f"index {index[row]} is outside 0..{len(names) - 1}")
    expected = names.take(pa.array(targets))
    wrong = pc.not_equal(told, expected).fill_null(False).to_numpy(zero_copy_only=False)
    _refuse(wrong, relation, lambda row: f"{told[row]} is not the name at index {index[row]}, {expected[row]}")
    return np.where(nobody, NO_PERSON, targets).astype(np.int32)


# --- identity -----------------------------------------------------------------------------------------------------------


def fingerprint(profiles: Profiles) -> str:
    """SHA-256 of who there is: names, values and relations as texts and rows, however they are stored.

    Neither the pools, nor what is said of how they were drawn, nor bios, which no question reads, enter it.
    """
    digest = hashlib.sha256()
    schema, people = profiles.schema, range(profiles.num_profiles)
    digest.update(json.dumps(["name", [profiles.full_name(person) for person in people]]).encode())
    for attribute, values in zip(schema.attributes, profiles.attributes.T, strict=True):
        digest.update(json.dumps([attribute.name, [attribute.values[value] for value in values]]).encode())
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        digest.update(json.dumps([relation, targets.tolist()]).encode())
    return digest.hexdigest()
