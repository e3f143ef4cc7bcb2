"""Tables of loaded people, and an independent recount of their bits."""

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.facts.names import BIRTH_CITIES, EMPLOYERS, UNIVERSITIES, census_first_names, census_last_names

LISTS = {"birth_city": BIRTH_CITIES, "university": UNIVERSITIES, "employer": EMPLOYERS}
NAMES = [
    " ".join(parts)
    for parts in itertools.product(census_first_names()[:10], census_first_names()[10:20], census_last_names()[:10])
]


def people(num: int = 40, **columns: Any) -> pa.Table:
    """Return a table of people; `columns` replace columns or add some."""
    every = {
        "name": NAMES[:num],
        "index": pa.array(range(num), pa.int32()),
        "birth_date": pa.array([datetime.datetime(1950 + row % 100, 1, 1 + row % 28) for row in range(num)]),
        "birth_city": [BIRTH_CITIES[(7 * row) % 223] for row in range(num)],
        "university": [UNIVERSITIES[(7 * row) % 100] for row in range(num)],
        "employer": [EMPLOYERS[(7 * row) % 73] for row in range(num)],
    }
    return pa.table(every | columns)


def targets(rows: Sequence[int | None], names: Sequence[str] = NAMES) -> pa.Array:
    """Return a column of relations that lead to some rows."""
    kind = pa.struct([("name", pa.string()), ("index", pa.int32())])
    return pa.array([None if row is None else {"name": names[row], "index": row} for row in rows], kind)


def write(path: Path, table: pa.Table) -> str:
    """Write a table as a Parquet file and return its path."""
    pq.write_table(table, path)
    return str(path)


def expected_entropy(values: Sequence[str | int], possible: Sequence[str | int]) -> float:
    """Return the bits of one value: log2 of the number of possible ones, or the entropy of the values if the code of
    their frequencies is shorter by more than 20 bits. Computed with exact integers."""
    counts, num = Counter(values), len(values)
    own = -sum(n / num * math.log2(n / num) for n in counts.values())
    if not set(counts) <= set(possible):
        return own
    order = math.factorial(num)
    for n in counts.values():
        order //= math.factorial(n)
    described = min(num, len(possible)) * math.comb(len(possible), len(counts)) * math.comb(num - 1, len(counts) - 1)
    list_bits = math.log2(len(possible))
    return own if math.log2(described) + math.log2(order) < num * list_bits - 20 else list_bits
