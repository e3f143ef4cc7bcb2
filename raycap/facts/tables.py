"""Loading of populations from tables of any facts: CSV, Parquet and JSONL files with declared columns.

Values are texts, taken as they are. Numbers, truth values and dates of Parquet and JSONL become texts such as 7, true and
1990-01-02. Rows are numbered from 0, without the header.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from raycap.facts.corpus import END, NAME_SUBJECT
from raycap.facts.fit import entropy_bits, frequencies_bits, given_bits
from raycap.facts.frequencies import Frequencies, frequencies_of_weights
from raycap.facts.profiles import NO_VALUE, Attribute, IntArray, Profiles, Schema
from raycap.facts.relations import NO_PERSON
from raycap.facts.wordings import Wording
from raycap.results import SubjectPrice
from raycap.spec import (
    Distribution,
    FrequencyColumn,
    GivenDistribution,
    ProfilesFromTable,
    Subject,
    UniformDistribution,
)
from raycap.spec.document import did_you_mean
from raycap.spec.locations import local_path
from raycap.spec.tables import NAME_PLACE

MAX_SUGGESTED_FROM = 10_000
"""Largest number of names among which the one closest to an unknown name is searched."""
MAX_LOG2_NAMES = 1_000.0
"""Largest log2 of the number of possible names, which must be a float."""

Texts = list[str | None]
"""The values of a column; None is a missing value."""


def load_table(spec: ProfilesFromTable) -> Profiles:
    """Load a population from a table.

    Raises FileNotFoundError if the file does not exist, and ValueError, with column and row, if the table cannot be read
    or does not fit the spec.
    """
    path = Path(local_path(spec.path) or "")
    if not path.is_file():
        raise FileNotFoundError(f"profiles.path: no such file: {path}")
    weights = (spec.frequencies.column,) if isinstance(spec.frequencies, FrequencyColumn) else ()
    columns = _read(path, (spec.name, *spec.attributes, *spec.relations.values(), *weights))
    names = _names(spec.name, columns[spec.name])
    words, num_names, name_price = _name_words(names, spec.num_names)

    prices, attributes, values = {NAME_SUBJECT: name_price}, [], []
    for name in spec.attributes:
        attribute, column, prices[name] = _attribute(name, columns[name], spec.subject(name))
        attributes.append(attribute)
        values.append(column)
    entropies, targets = {}, []
    row_of = {name: row for row, name in enumerate(names)}
    for name, source in spec.relations.items():
        subject = spec.subject(name)
        targets.append(_targets(source, columns[source], row_of, subject))
        bits, prices[name] = _relation_price(source, targets[-1], names, subject)
        if bits is not None:
            entropies[name] = bits
    schema = Schema(
        tuple(tuple(sorted(set(column))) for column in words),
        tuple(attributes),
        tuple(spec.relations),
        num_loaded_names=num_names,
        relation_entropies_bits=entropies,
        prices=prices,
        wordings={name: _wording(name, subject) for name, subject in spec.subjects.items()},
    )
    return Profiles(
        schema,
        _word_indices(schema, words),
        _stacked(values, len(names)),
        _stacked(targets, len(names)),
        frequencies=_frequencies(*weights, columns[weights[0]]) if weights else None,
    )


def _stacked(columns: list[IntArray], num_rows: int) -> IntArray:
    return np.stack(columns, 1) if columns else np.empty((num_rows, 0), np.int32)


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Texts]:
    """Return some columns of a file as texts."""
    try:
        if path.suffix.lower() == ".jsonl":
            return _from_json(path, names)
        if path.suffix.lower() == ".csv":
            table = _csv_table(path, names)
        else:
            with parquet.ParquetFile(path) as file:  # read_table would add columns for folders named like year=2020
                table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot be read as a {path.suffix.lower()} file: {reason}") from error
    _check_columns(names, table.column_names)
    columns = {name: _texts(name, table[name]) for name in names}
    _check_rows(columns)
    return columns


def _csv_table(path: Path, names: tuple[str, ...]) -> Any:
    """Return a CSV file as an Arrow table, with some columns as texts."""
    bad: list[csv.InvalidRow] = []

    def note(row: csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),  # with threads, the number of an invalid row is unknown
            parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        if not bad:
            raise
        row = bad[0]
        raise ValueError(
            f"row {row.number - 2}: must have {row.expected_columns} fields as the header, got {row.actual_columns}: "
            f"{row.text!r:.80}; put fields that contain commas in quotes"
        ) from None


def _from_json(path: Path, names: tuple[str, ...]) -> dict[str, Texts]:
    """Return some columns of a file with one JSON object per line. Blank lines are skipped."""
    columns: dict[str, Texts] = {name: [] for name in names}
    known: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"line {number}: must be a JSON object")
                known |= dict.fromkeys(record)
                for name, column in columns.items():
                    value = record.get(name)
                    if isinstance(value, dict | list):
                        raise ValueError(f"column {name}, row {len(column)}: must be a single value, got {value!r:.80}")
                    column.append(value if value is None or isinstance(value, str) else json.dumps(value))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: is not JSON ({error.msg}, column {error.colno})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 ({error.reason} after line {number})") from None
    _check_rows(columns)
    _check_columns(names, list(known))
    return columns


def _check_columns(names: tuple[str, ...], known: list[str]) -> None:
    """Raise ValueError for columns that a file lacks or has twice."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; the file has {', '.join(map(repr, known))}"
            raise ValueError(f"column {name}: does not exist{hint}")
        if known.count(name) > 1:
            raise ValueError(f"column {name}: occurs more than once; rename or remove the others")


def _check_rows(columns: dict[str, Texts]) -> None:
    """Raise ValueError if there are no rows, or for a text that no row of tokens can contain."""
    for name, column in columns.items():
        if not column:
            raise ValueError("the table has no rows; it must have one row for each name")
        for row, text in enumerate(column):
            if text is not None and (not text.strip() or END in text):
                rule = f"must not contain the end token {END}" if text.strip() else "must not be blank"
                raise _fault(name, row, f"{rule}, got {text!r}")


def _texts(name: str, column: Any) -> Texts:
    """Return an Arrow column as texts."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)  # pandas writes missing numbers as NaN
    elif pa.types.is_timestamp(kind) and pc.all(pc.equal(column, pc.floor_temporal(column, unit="day"))).as_py():
        column = column.cast(pa.date32())  # dates that were stored as midnights
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"column {name}: must hold single values such as text, numbers or dates, got {kind}")
    try:
        texts: Texts = column.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"column {name}: cannot be converted to text: {error}") from None
    return texts


def _fault(column: str, row: int, message: str) -> ValueError:
    return ValueError(f"column {column}, row {row}: {message}")


# --- names ------------------------------------------------------------------------------------------------------------


def _names(column: str, texts: Texts) -> list[str]:
    """Return the names. Raises ValueError for names that are missing, repeated, or not words with single spaces between."""
    row_of: dict[str, int] = {}
    for row, name in enumerate(texts):
        if name is None:
            raise _fault(column, row, "is missing; every row needs a name")
        if not all(name.split(" ")):
            raise _fault(column, row, f"must consist of words separated by single spaces, got {name!r}")
        if name in row_of:
            raise _fault(column, row, f"must be unique, got {name!r} again, as in row {row_of[name]}")
        row_of[name] = row
    return list(row_of)


def _name_words(names: list[str], num_names: int | None) -> tuple[list[list[str]], int, SubjectPrice]:
    """Return the words of the names by position, the number of possible names M, and how names are priced.

    If M is not given, it is 2^(H_1 + H_2 + ...), rounded, from the entropies of the words at each position, where names
    with fewer words have an empty one: as many equally likely names as have this entropy.
    """
    split = [name.split(" ") for name in names]
    length = max(map(len, split))
    words = [[word[position] if position < len(word) else "" for word in split] for position in range(length)]
    if num_names is not None:
        if num_names < len(names):
            raise ValueError(f"profiles.num_names: must be at least {len(names)}, the number of names, got {num_names}")
        price = SubjectPrice(distribution=Distribution.UNIFORM, num_values=num_names, num_facts=len(names))
        return words, num_names, price
    counts = [_counts(column)[1] for column in words]
    price = SubjectPrice(
        distribution=Distribution.EMPIRICAL,
        num_values=sum(map(len, counts)),
        num_facts=len(names),
        frequencies_bits=sum(map(frequencies_bits, counts)),
    )
    bits = min(sum(map(entropy_bits, counts)), MAX_LOG2_NAMES)
    return words, max(len(names), round(2**bits)), price


def _word_indices(schema: Schema, words: list[list[str]]) -> IntArray:
    """Return the indices of words in the name pools, (N, positions)."""
    columns = []
    for pool, column in zip(schema.name_pools, words, strict=True):
        index_of = {word: index for index, word in enumerate(pool)}
        columns.append(np.array([index_of[word] for word in column], np.int32))
    return np.stack(columns, 1)


# --- facts ------------------------------------------------------------------------------------------------------------


def _attribute(name: str, texts: Texts, subject: Subject) -> tuple[Attribute, IntArray, SubjectPrice]:
    """Return an attribute, the indices of its values by row, and how its facts are priced."""
    if subject.missing == "refuse" and None in texts:
        raise _fault(name, texts.index(None), f"is missing; fill it in, or set profiles.subjects.{name}.missing: void")
    values, counts = _counts(text for text in texts if text is not None)
    if not values:
        raise ValueError(f"column {name}: no row has a value")
    index_of: dict[str | None, int] = {value: index for index, value in enumerate(values)} | {None: NO_VALUE}
    column = np.array([index_of[text] for text in texts], np.int32)
    declared = _declared_bits(name, values, counts, subject, column)
    bits = frequencies_bits(counts) if declared is None else 0.0
    return Attribute(name, values, counts, declared), column, _price(subject, len(values), counts, bits)


def _targets(column: str, texts: Texts, row_of: dict[str, int], subject: Subject) -> IntArray:
    """Return the row that a relation leads to from each row, or NO_PERSON."""
    targets = np.full(len(texts), NO_PERSON, np.int32)
    for row, text in enumerate(texts):
        if text is not None and text in row_of:
            targets[row] = row_of[text]
        elif text is None and subject.missing == "refuse":
            raise _fault(column, row, "is missing; fill it in, or set `missing: void` under profiles.subjects")
        elif text is not None and subject.unknown == "refuse":
            hint = did_you_mean(text, row_of) if len(row_of) <= MAX_SUGGESTED_FROM else ""
            rule = f"is the name of no row, got {text!r}{hint}"
            raise _fault(column, row, f"{rule}; correct it, or set `unknown: void` under profiles.subjects")
    if (targets == NO_PERSON).all():
        raise ValueError(f"column {column}: no row has a value that is the name of a row")
    return targets


def _relation_price(
    column: str, targets: IntArray, names: list[str], subject: Subject
) -> tuple[float | None, SubjectPrice]:
    """Return the bits of an answer about a relation, None for a uniform draw of all people, and how it is priced."""
    rows, counts = np.unique_counts(targets[targets != NO_PERSON])
    if isinstance(subject.distribution, UniformDistribution) and subject.distribution.num_values is None:
        return None, _price(subject, len(names), counts, 0.0)
    index = np.where(targets == NO_PERSON, NO_VALUE, np.searchsorted(rows, targets))
    values = tuple(names[row] for row in rows.tolist())
    declared = _declared_bits(column, values, counts, subject, index)
    if declared is not None:
        return declared, _price(subject, len(values), counts, 0.0)
    bits = frequencies_bits(counts, len(names))
    return entropy_bits(counts), _price(subject, len(values), counts, bits)


def _declared_bits(
    column: str, values: tuple[str, ...], counts: NDArray[np.int64], subject: Subject, indices: NDArray[np.integer]
) -> float | None:
    """Return the mean bits of an answer under a uniform or given distribution, None for the empirical one."""
    match subject.distribution:
        case UniformDistribution(num_values=num_values):
            assert num_values is not None
            if num_values < len(values):
                raise ValueError(
                    f"column {column}: has {len(values)} distinct values, but distribution.num_values is {num_values}; "
                    "increase it"
                )
            return float(np.log2(num_values))
        case GivenDistribution(probabilities=probabilities):
            for index, value in enumerate(values):
                if value not in probabilities:
                    row = int((indices == index).argmax())
                    raise _fault(column, row, f"{value!r} has no probability{did_you_mean(value, probabilities)}")
            return given_bits(counts, np.array([probabilities[value] for value in values]))
    return None


def _price(subject: Subject, num_values: int, counts: NDArray[np.int64], bits: float) -> SubjectPrice:
    match subject.distribution:
        case UniformDistribution(num_values=declared):
            num_values = declared or num_values
        case GivenDistribution(probabilities=probabilities):
            num_values = len(probabilities)
    return SubjectPrice(
        distribution=Distribution(subject.distribution.kind),
        num_values=num_values,
        num_facts=int(counts.sum()),
        frequencies_bits=bits,
    )


def _frequencies(column: str, texts: Texts) -> Frequencies:
    """Return the frequencies of a column of positive numbers."""
    weights = []
    for row, text in enumerate(texts):
        try:
            weights.append(float(text or ""))
        except ValueError:
            weights.append(math.nan)
        if not 0 < weights[-1] < math.inf:
            raise _fault(column, row, f"must be a positive number to be a frequency, got {text!r}")
    try:
        return frequencies_of_weights(np.array(weights))
    except ValueError as error:
        raise ValueError(f"column {column}: {error}") from None


def _wording(name: str, subject: Subject) -> Wording:
    """Return the wording that the spec gives to a subject."""
    default = Wording.of(name)
    questions = [template.partition(NAME_PLACE) for template in subject.questions]
    return Wording(
        subject.phrase or default.phrase,
        tuple((before, after) for before, _, after in questions),
        tuple(f" {lead}" for lead in subject.leads),
    )


def _counts(texts: Iterable[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the values that occur, sorted, and their numbers of rows."""
    counted = sorted(Counter(texts).items())
    return tuple(value for value, _ in counted), np.array([number for _, number in counted], np.int64)
