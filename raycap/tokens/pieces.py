"""Pieces of texts as tokens, alone and joined to the stretches that many texts share. No torch here.

A token and its label lie side by side as one cell, so that a piece goes where it belongs as one block of memory, labels
and all. Blocks are as long as the longest piece: what pads a short one is written over by the piece that follows.
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
"""A stretch that takes more is joined anew for the texts asked for, ten times slower."""
JOINED_AT_ONCE = 2**16
"""Rows of a table that are made at a time, so that making it takes little more memory than having it."""

Cells = NDArray[np.void]
"""(n, width), of a `cell_type`: the fields are token and label."""
Records = NDArray[np.void]
"""(n,): each the cells of a row as one block of bytes."""


def cell_type(vocab_size: int) -> np.dtype[np.void]:
    """A token and its label in as few bytes as the vocabulary allows: time goes by the memory that is read."""
    return np.dtype([("token", np.uint16 if vocab_size <= 2**16 else np.uint32), ("label", np.uint8)])


@dataclass(frozen=True)
class PieceTable(WithoutCaches):
    """Many pieces: `cells` (n + 1, width), padded with END_ID, and `lengths` (n + 1,); the last is NOTHING.

    Labels are 1 where there is a token, and are multiplied by what the piece is labelled with.
    """

    cells: Cells
    lengths: IntArray

    @classmethod
    def of(cls, pieces: list[list[int]], dtype: np.dtype[np.void]) -> "PieceTable":
        """A table of some pieces."""
        lengths = np.array([*(len(piece) for piece in pieces), 0], np.int32)
        there = np.arange(max(lengths)) < lengths[:, None]
        cells = blank(there.shape, dtype)
        cells["token"][there] = [token for piece in pieces for token in piece]
        cells["label"] = there
        return cls(cells, lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest piece."""
        return self.cells.shape[1]

    @cached_property
    def records(self) -> Records:
        """The rows, (n + 1,)."""
        return as_records(self.cells)


@dataclass(frozen=True)
class Joined:
    """The chains of pieces of one stretch, each as one piece, with the labels it has in texts."""

    stretch: Stretch
    tables: dict[Table, PieceTable]

    @cached_property
    def lengths(self) -> IntArray:
        """Tokens of each chain, (num + 1,); the last is NOTHING."""
        parts = [lengths_of(self.tables, self._slots(rows), len(rows))[0] for rows in self._all_rows()]
        return np.concatenate(parts)

    @cached_property
    def width(self) -> int:
        """Tokens of the longest chain."""
        return int(self.lengths.max())

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """Of a cell."""
        return self.tables[Table.TEXT].cells.dtype

    @cached_property
    def _kept(self) -> Records | None:
        """The table of all chains, (num + 1,); None if it is too large to be kept."""
        kept = np.empty(len(self.lengths), f"V{self.width * self.dtype.itemsize}")
        if kept.nbytes > MAX_TABLE_BYTES:
            return None
        for rows in self._all_rows():
            kept[rows] = self._join(rows)
        return kept

    def records(self, rows: Ids) -> Records:
        """Some chains, (n,)."""
        return self._join(rows) if self._kept is None else self._kept.take(rows)

    def _all_rows(self) -> Iterator[Ids]:
        """All chains and NOTHING, some at a time."""
        for begin in range(0, self.stretch.num, JOINED_AT_ONCE):
            yield np.arange(begin, min(begin + JOINED_AT_ONCE, self.stretch.num))
        yield np.array([NOTHING])

    def _slots(self, rows: Ids) -> list[Slot]:
        return Span(self.stretch, rows).slots

    def _join(self, rows: Ids) -> Records:
        """Each piece is written with the padding behind it, over that of the piece before."""
        slots = self._slots(rows)
        tables = [self.tables[slot.table] for slot in slots]
        length = sum(table.width for table in tables)
        cells = blank((len(rows), length), self.dtype)
        at = np.arange(0, len(rows) * length, length)
        for slot, table in zip(slots, tables, strict=True):
            row = np.broadcast_to(slot.row, len(rows))
            piece = as_cells(table.records.take(row), self.dtype)
            piece["label"] *= np.asarray(slot.label, np.uint8).reshape(-1, 1)
            write(cells, at, as_records(piece))
            at += table.lengths.take(row)
        return as_records(cells, self.width).copy()


def lengths_of(tables: dict[Table, PieceTable], slots: list[Slot], num: int) -> tuple[IntArray, IntArray]:
    """Tokens of `num` chains of pieces, and how many of them are measured; each (num,)."""
    total, measured = np.zeros(num, np.int32), np.zeros(num, np.int32)
    for slot in slots:
        length = tables[slot.table].lengths[slot.row]
        total += length
        measured += length * np.not_equal(slot.label, 0)
    return total, measured


def blank(shape: tuple[int, ...], dtype: np.dtype[np.void]) -> Cells:
    """Cells that are all padding."""
    assert END_ID == 0
    return np.zeros(shape, dtype)


def as_records(cells: Cells, width: int | None = None) -> Records:
    """The first `width` cells of each row, or all, as one record each: the same memory."""
    width = cells.shape[1] if width is None else width
    return np.ndarray(len(cells), f"V{width * cells.itemsize}", cells, strides=(cells.shape[1] * cells.itemsize,))


def as_cells(records: Records, dtype: np.dtype[np.void]) -> Cells:
    """Records as the cells that they are, (n, width): the same memory."""
    return np.ndarray((len(records), records.itemsize // dtype.itemsize), dtype, records)


def write(cells: Cells, at: Ids, records: Records) -> None:
    """Copy each record to its place, so many cells after the first of all rows; a row must have room for the longest.

    Records at every possible place, overlapping: numpy then copies a whole record at a time, and sees to the bounds.
    """
    num_places = (cells.nbytes - records.itemsize) // cells.itemsize + 1
    np.ndarray(num_places, records.dtype, cells, strides=(cells.itemsize,))[at] = records


def padded(records: Records, length: int, dtype: np.dtype[np.void]) -> Cells:
    """Rows of that length that begin with the records; these very records where they are as long."""
    if records.itemsize == length * dtype.itemsize:
        return as_cells(records, dtype)
    cells = blank((len(records), length), dtype)
    as_records(cells, records.itemsize // dtype.itemsize)[:] = records
    return cells
