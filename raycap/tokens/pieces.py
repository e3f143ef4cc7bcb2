"""Tables of tokenized pieces and of joined stretches, and the memory copies that assemble rows from them.

A *cell* is a token and its label side by side in memory: 3 bytes for vocabularies of up to 2^16 tokens, 5 bytes for
larger ones. A *record* is a row of cells as one opaque block of bytes (numpy's void type), so that a piece and its
labels are copied with a single memory copy instead of one indexing operation per token.

All records of a table have the length of its longest piece; shorter pieces are padded with END_ID and label 0. Pieces
of a text are written from left to right, each at the end of the tokens of the one before. A piece therefore overwrites
the padding of its predecessor, and only the padding of the last piece remains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import NOTHING, Ids, Slot, Span, Stretch, Table, WithoutCaches
from raycap.facts.profiles import IntArray
from raycap.tokens.tokenizers import END_ID

MAX_TABLE_BYTES = 2**28
"""Largest table of a stretch that is cached. The chains of larger ones are joined on every use, ten times slower."""
CHAINS_PER_CHUNK = 2**16
"""Number of chains that are joined at a time while a table is filled, which limits temporary memory."""

Cells = NDArray[np.void]
"""Array of shape (n, width) with a `cell_type` as data type, which has the fields `token` and `label`."""
Records = NDArray[np.void]
"""Array of shape (n,) whose elements are rows of cells as blocks of bytes."""


def cell_type(vocab_size: int) -> np.dtype[np.void]:
    """Return the data type of a token and its label, as small as the vocabulary allows.

    Composing rows is limited by memory bandwidth, so the packed type of 3 bytes is used although it is not aligned.
    """
    return np.dtype([("token", np.uint16 if vocab_size <= 2**16 else np.uint32), ("label", np.uint8)])


@dataclass(frozen=True)
class PieceTable(WithoutCaches):
    """A table of n pieces: `cells` of shape (n + 1, width), padded with END_ID, and `lengths` of shape (n + 1,).

    The last row is the empty piece, so that index NOTHING (-1) selects it. Labels are 1 for tokens and 0 for padding.
    When a piece is joined to a chain, they are multiplied by the label of its slot.
    """

    cells: Cells
    lengths: IntArray

    @classmethod
    def of(cls, pieces: list[list[int]], dtype: np.dtype[np.void]) -> "PieceTable":
        """Return the table of some tokenized pieces."""
        lengths = np.array([*(len(piece) for piece in pieces), 0], np.int32)
        is_token = np.arange(max(lengths)) < lengths[:, None]
        cells = blank(is_token.shape, dtype)
        cells["token"][is_token] = [token for piece in pieces for token in piece]  # in row-major order
        cells["label"] = is_token
        return cls(cells, lengths)

    @property
    def width(self) -> int:
        """Number of tokens of the longest piece."""
        return int(self.cells.shape[1])

    @cached_property
    def records(self) -> Records:
        """The rows of the table as records, shape (n + 1,)."""
        return as_records(self.cells)


@dataclass(frozen=True)
class StretchTable:
    """The chains of a stretch, each joined to a single piece with its labels."""

    stretch: Stretch
    tables: dict[Table, PieceTable]

    @cached_property
    def lengths(self) -> IntArray:
        """Number of tokens of each chain, shape (num + 1,). The last is that of the empty chain NOTHING."""
        parts = [lengths_of(self.tables, self._slots(rows), len(rows))[0] for rows in self._all_rows()]
        return np.concatenate(parts)

    @cached_property
    def width(self) -> int:
        """Number of tokens of the longest chain."""
        return int(self.lengths.max())

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """Data type of a cell."""
        return self.tables[Table.TEXT].cells.dtype

    @cached_property
    def _cached(self) -> Records | None:
        """Records of all chains, shape (num + 1,). None if they are larger than MAX_TABLE_BYTES."""
        records = np.empty(len(self.lengths), f"V{self.width * self.dtype.itemsize}")
        if records.nbytes > MAX_TABLE_BYTES:
            return None
        for rows in self._all_rows():
            records[rows] = self._join(rows)
        return records

    def records(self, rows: Ids) -> Records:
        """Return the records of some chains, shape (n,)."""
        return self._join(rows) if self._cached is None else self._cached.take(rows)

    def _all_rows(self) -> Iterator[Ids]:
        """Yield the numbers of all chains in chunks, and finally NOTHING."""
        for begin in range(0, self.stretch.num, CHAINS_PER_CHUNK):
            yield np.arange(begin, min(begin + CHAINS_PER_CHUNK, self.stretch.num))
        yield np.array([NOTHING])

    def _slots(self, rows: Ids) -> list[Slot]:
        return Span(self.stretch, rows).slots

    def _join(self, rows: Ids) -> Records:
        """Return the records of some chains, joined from the records of their pieces."""
        slots = self._slots(rows)
        tables = [self.tables[slot.table] for slot in slots]
        # Every piece is written with its padding, so a row needs room for the longest piece of each table.
        length = sum(table.width for table in tables)
        cells = blank((len(rows), length), self.dtype)
        position = np.arange(0, len(rows) * length, length)  # start of the next piece of each chain, in cells
        for slot, table in zip(slots, tables, strict=True):
            row = np.broadcast_to(slot.row, len(rows))
            piece = as_cells(table.records.take(row), self.dtype)
            piece["label"] *= np.asarray(slot.label, np.uint8).reshape(-1, 1)
            write(cells, position, as_records(piece))
            position += table.lengths.take(row)
        return as_records(cells, self.width).copy()


def lengths_of(tables: dict[Table, PieceTable], slots: list[Slot], num: int) -> tuple[IntArray, IntArray]:
    """Return the number of tokens and of measured tokens of `num` chains of pieces, each of shape (num,)."""
    total, measured = np.zeros(num, np.int32), np.zeros(num, np.int32)
    for slot in slots:
        length = tables[slot.table].lengths[slot.row]
        total += length
        measured += length * np.not_equal(slot.label, 0)
    return total, measured


def blank(shape: tuple[int, ...], dtype: np.dtype[np.void]) -> Cells:
    """Return cells that contain only padding: END_ID with label 0."""
    assert END_ID == 0
    return np.zeros(shape, dtype)


def as_records(cells: Cells, width: int | None = None) -> Records:
    """Return a view of the first `width` cells (by default all) of each row as one record."""
    width = cells.shape[1] if width is None else width
    return np.ndarray(len(cells), f"V{width * cells.itemsize}", cells, strides=(cells.shape[1] * cells.itemsize,))


def as_cells(records: Records, dtype: np.dtype[np.void]) -> Cells:
    """Return a view of records as cells, shape (n, width)."""
    return np.ndarray((len(records), records.itemsize // dtype.itemsize), dtype, records)


def write(cells: Cells, positions: Ids, records: Records) -> None:
    """Copy each record into `cells`, so that it starts at a position in the flattened array of cells.

    A record must fit into its row, since a longer one continues in the next row.
    """
    # View the memory as an array of records that overlap: element i consists of the cells i, i + 1, ... up to the width of
    # a record. Assigning to some of its elements copies whole records, and numpy checks that they lie within the memory.
    num_positions = (cells.nbytes - records.itemsize) // cells.itemsize + 1
    np.ndarray(num_positions, records.dtype, cells, strides=(cells.itemsize,))[positions] = records


def padded(records: Records, length: int, dtype: np.dtype[np.void]) -> Cells:
    """Return cells of shape (n, length) that begin with the records. It is a view of them if they have that length."""
    if records.itemsize == length * dtype.itemsize:
        return as_cells(records, dtype)
    cells = blank((len(records), length), dtype)
    as_records(cells, records.itemsize // dtype.itemsize)[:] = records
    return cells
