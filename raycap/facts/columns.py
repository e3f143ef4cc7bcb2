"""Conversion of a table in the hosted schema to a population, with checks of every column, row and value.

Values are taken as they are: texts that differ in white space, case or Unicode form are different values.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.facts.corpus import END
from raycap.facts.fit import entropy_bits, fits, own_code_bits
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import (
    DAYS_PER_MONTH,
    FIRST_YEAR,
    LAST_YEAR,
    Attribute,
    IntArray,
    Profiles,
    Schema,
    census_schema,
)
from raycap.facts.relations import INVERSES, MATCHINGS, NO_PERSON, broken_structure
from raycap.spec import NamePools, RelationStructure
from raycap.spec.document import did_you_mean

TEXT_ATTRIBUTES = ("birth_city", "university", "employer")
ATTRIBUTES = ("birth_date", *TEXT_ATTRIBUTES)
REQUIRED = ("name", "index", *ATTRIBUTES)
BIO = "bio"
RELATION_FIELDS = {"name", "index"}


def from_table(
    table: Any,
    structure: RelationStructure = RelationStructure.UNIFORM,
    self_relations: bool = True,
    pools: NamePools | None = None,
) -> Profiles:
    """Convert an Arrow table in the hosted schema to a population.

    The entropy of a column is that of the list that generated facts are drawn from, if the column may have been drawn
    from this list, and otherwise that of its own frequencies (docs/science.md#loaded).

    Args:
        table: The table.
        structure: Distribution that the relations were drawn from.
        self_relations: Whether a relation may lead from a person to that same person.
        pools: Pools that the names were drawn from. By default they are inferred from the names.

    Raises:
        ValueError: The data are invalid. The message names the column and the row.
    """
    unused = _unused_columns(table.column_names, table.schema)
    if not len(table):
        raise ValueError("the dataset has no rows; it must have one row for each person")
    relations = tuple(relation for relation in RELATIONS if relation in table.column_names)

    names = _texts(table, "name")
    parts = name_parts(names.to_pylist())
    rows = np.arange(len(names))
    first_rows = names.dictionary_encode().indices.to_numpy()  # numbered in order of first occurrence
    _refuse(first_rows != rows, "name", lambda row: f"must be unique, got {names[row]} again")
    index = _column(table, "index", pa.types.is_integer, "an integer")
    _refuse(index.to_numpy() != rows, "index", lambda row: f"must be {row}, the row number, got {index[row]}")

    attributes, values = _attributes(table)
    name_pools, num_names = _name_pools(parts, pools)
    targets = [_targets(table, relation, names) for relation in relations]
    drawn = relations if structure is RelationStructure.UNIFORM else set(relations) - {*MATCHINGS, *INVERSES}
    columns = zip(relations, targets, strict=True)
    schema = Schema(
        name_pools,
        attributes,
        relations,
        structure,
        self_relations,
        num_loaded_names=num_names,
        relation_entropies_bits=_entropies({r: column for r, column in columns if r in drawn}, self_relations),
    )
    profiles = Profiles(
        schema,
        np.stack([_indices(*pool_and_column, "name") for pool_and_column in zip(name_pools, parts, strict=True)], 1),
        np.stack(values, 1),
        np.stack(targets, 1) if targets else np.empty((len(names), 0), np.int32),
        tuple(_texts(table, BIO, may_be_empty=True).to_pylist()) if BIO in table.column_names else None,
        unused,
    )
    if broken := broken_structure(relations, profiles.relations, structure, self_relations):
        raise ValueError(
            f"the relations do not have the structure of the spec: {broken}; correct the data, or profiles.structure and "
            "profiles.self_relations"
        )
    return profiles


# --- columns and their types ------------------------------------------------------------------------------------------


def _unused_columns(columns: list[str], schema: Any) -> tuple[str, ...]:
    """Return the columns that are not used.

    Raises ValueError for missing and repeated columns, and for relations whose names raycap does not know, because
    ignoring them would change the population.
    """
    if missing := [column for column in REQUIRED if column not in columns]:
        raise ValueError(
            f"the columns {missing} are missing, got {sorted(columns)}; add them, rename others, or set "
            "source: table for a table of other facts"
        )
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"the columns {repeated} occur more than once; rename or remove the others")
    unused = tuple(column for column in columns if column not in {*REQUIRED, *RELATIONS, BIO})
    for column in unused:
        kind = schema.field(column).type
        if pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == RELATION_FIELDS:
            hint = did_you_mean(column.lower().replace(" ", "_"), RELATIONS)
            raise ValueError(
                f"column {column}: is a relation with a name that raycap does not know{hint or '; it knows '}"
                f"{'' if hint else ', '.join(RELATIONS)}; rename or remove the column"
            )
    return unused


def _refuse(bad: NDArray[np.bool_], column: str, message: Callable[[int], str]) -> None:
    """Raise ValueError with the message of the first bad row, if there is one."""
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"column {column}, row {row}: {message(row)}")


def _column(table: Any, name: str, fits_type: Callable[[Any], bool], expected: str) -> Any:
    """Return a column as a single Arrow array, after checking its type, its bytes, and that it has no nulls."""
    column = _decoded(_combined(table, name))
    if not fits_type(column.type):
        raise ValueError(f"column {name}: must be {expected}, got {table[name].type}")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:  # a text that is not UTF-8
        raise ValueError(f"column {name}: {error}") from None
    _refuse(_is_null(column), name, lambda row: "is missing; fill in a value")
    return column


def _combined(table: Any, name: str) -> Any:
    column = table[name].combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _decoded(column: Any) -> Any:
    """Return a column without dictionary encoding."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_null(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _texts(table: Any, name: str, *, may_be_empty: bool = False) -> Any:
    """Return a column of texts. Raises ValueError for texts that no row of tokens can contain."""
    texts = _column(table, name, _is_text, "a string").cast(pa.string())
    if not may_be_empty:
        blank = np.array([not text.strip() for text in texts.to_pylist()])
        _refuse(blank, name, lambda row: f"must not be empty, got {texts[row].as_py()!r}")
        ends = pc.match_substring(texts, END).to_numpy(zero_copy_only=False)
        _refuse(ends, name, lambda row: f"must not contain the end token {END}, got {texts[row].as_py()!r}")
    return texts


def _dates(table: Any) -> Any:
    """Return the birth dates as ISO 8601 texts, from dates or timestamps of any unit."""

    def is_date(kind: Any) -> bool:
        return bool(pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None))

    column = _column(table, "birth_date", is_date, "a date or a timestamp without time zone")
    # numpy formats the values, because Python has no dates before the year 1 and after the year 9999.
    moments = column.to_numpy(zero_copy_only=False)
    days = moments.astype("datetime64[D]")
    _refuse(days != moments, "birth_date", lambda row: f"must be midnight, got {moments[row]}")
    months = days.astype("datetime64[M]")
    outside = (days < np.datetime64(f"{FIRST_YEAR}-01-01")) | (days > np.datetime64(f"{LAST_YEAR}-12-31"))
    rule = f"is not a day from {FIRST_YEAR}-01-01 to {LAST_YEAR}-12-28 with a day of the month of at most 28"
    late = (days - months).astype(np.int64) >= 28
    _refuse(outside | late, "birth_date", lambda row: f"{days[row]} {rule}")
    return pa.array(np.datetime_as_string(days).tolist(), pa.string())


# --- names, attributes and relations ----------------------------------------------------------------------------------


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


def _name_pools(parts: list[Any], pools: NamePools | None) -> tuple[tuple[tuple[str, ...], ...], int | None]:
    """Return the pools of name parts and the number of possible names, None if it is the product of their sizes.

    Names that were not drawn from the census lists have as many possible names as equally likely names would need to
    have the entropy of their parts.
    """
    census = census_schema(pools or NamePools(), 0).name_pools
    if pools is not None:
        return census, None
    counted = [_counts(column) for column in parts]
    for (seen, counts), pool in zip(counted, census, strict=True):
        list_bits = len(parts[0]) * np.log2(len(pool))
        if not set(seen) <= set(pool) or not fits(own_code_bits(counts, len(pool)), list_bits):
            bits = sum(entropy_bits(counts) for _, counts in counted)
            return tuple(seen for seen, _ in counted), max(len(parts[0]), round(2**bits))
    return census, None


def _attributes(table: Any) -> tuple[tuple[Attribute, ...], list[IntArray]]:
    """Return the attributes and the columns of indices into their values."""
    attributes, columns = [], []
    for known in census_schema(NamePools(), 0).attributes:
        column = _dates(table) if known.name == "birth_date" else _texts(table, known.name)
        attribute = _attribute(known, column)
        attributes.append(attribute)
        columns.append(_indices(attribute.values, column, known.name))
    return tuple(attributes), columns


def _attribute(known: Attribute, column: Any) -> Attribute:
    """Return raycap's attribute if the column may have been drawn from it, otherwise one with the column's
    frequencies."""
    seen, counts = _counts(column)
    own, own_bits = Attribute(known.name, seen, counts), own_code_bits(counts, len(known.values))
    index_of = {value: index for index, value in enumerate(known.values)}
    if not index_of.keys() >= set(seen):
        return own
    if known.name == "birth_date" and len(column) ** 3 < 2**63:
        product, product_bits = _product_of_parts(seen, counts)
        if product_bits < own_bits:
            own, own_bits = product, product_bits
    weights = known.weights[[index_of[value] for value in seen]]
    list_bits = float((counts * (np.log2(known.weights.sum()) - np.log2(weights))).sum())
    return known if fits(own_bits, list_bits) else own


def _product_of_parts(dates: tuple[str, ...], counts: NDArray[np.int64]) -> tuple[Attribute, float]:
    """Return the distribution of dates whose year, month and day are independent, and the length of its code.

    It is an alternative to the frequencies of whole dates, which are a poor estimate if most dates occur only once.
    """
    values, weights, bits = [""], np.ones(1, np.int64), 0.0
    for part, num_possible in (
        (slice(0, 4), LAST_YEAR - FIRST_YEAR + 1),
        (slice(4, 7), 12),
        (slice(7, 10), DAYS_PER_MONTH),
    ):
        words, index = np.unique([date[part] for date in dates], return_inverse=True)
        numbers = np.bincount(index, counts).astype(np.int64)
        values = [value + word for value in values for word in words.tolist()]
        weights = np.outer(weights, numbers).ravel()
        bits += own_code_bits(numbers, num_possible)
    return Attribute("birth_date", tuple(values), weights), bits


def _entropies(relations: dict[str, IntArray], self_relations: bool) -> dict[str, float]:
    """Return the entropies of the relations that are not uniform draws from all (other) people."""
    entropies = {}
    for relation, column in relations.items():
        counts = np.unique_counts(column[column != NO_PERSON]).counts
        list_bits = counts.sum() * np.log2(max(1, len(column) - (not self_relations)))
        if len(counts) and not fits(own_code_bits(counts, len(column)), list_bits):
            entropies[relation] = entropy_bits(counts)
    return entropies


def _counts(column: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the values that occur, sorted, and their numbers of rows."""
    counted = dict(pair.values() for pair in column.value_counts().to_pylist())
    seen = tuple(sorted(counted))
    return seen, np.array([counted[value] for value in seen], np.int64)


def _indices(pool: Iterable[str], column: Any, name: str) -> IntArray:
    values = pa.array(pool, pa.string())
    found = pc.index_in(column, value_set=values)
    _refuse(
        _is_null(found),
        name,
        lambda row: f"{column[row]} is not one of the {len(values)} values of its pool; increase profiles.names",
    )
    return np.asarray(found.to_numpy(), np.int32)


def _targets(table: Any, relation: str, names: Any) -> IntArray:
    """Return the person that a relation leads to, shape (N,); NO_PERSON if the struct or both of its fields are
    null."""
    column = _combined(table, relation)
    fields = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    parts = dict(zip(fields, map(_decoded, column.flatten()), strict=True)) if fields else {}
    is_relation = len(fields) == 2 and parts.keys() == RELATION_FIELDS
    if not is_relation or not (_is_text(parts["name"].type) and pa.types.is_integer(parts["index"].type)):
        raise ValueError(f"column {relation}: must be a struct of name (string) and index (integer), got {column.type}")
    target_names, index = parts["name"].cast(pa.string()), parts["index"]
    missing = _is_null(index)
    incomplete = missing != _is_null(target_names)
    _refuse(incomplete, relation, lambda row: f"name and index must both be given or both be null, got {column[row]}")
    numbers = index.fill_null(0).to_numpy()
    outside = (numbers < 0) | (numbers >= len(names))
    _refuse(outside, relation, lambda row: f"index {index[row]} is not in 0..{len(names) - 1}")
    targets = numbers.astype(np.int64)
    expected = names.take(pa.array(targets))
    wrong = pc.not_equal(target_names, expected).fill_null(False).to_numpy(zero_copy_only=False)
    _refuse(
        wrong,
        relation,
        lambda row: (
            f"{target_names[row]} is not the name at index {index[row]}, {expected[row]}; correct name or index"
        ),
    )
    return np.where(missing, NO_PERSON, targets).astype(np.int32)
