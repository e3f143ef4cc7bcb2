"""Streams of training rows for one worker, without torch so that reader processes stay small."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raycap.facts.corpus import WithoutCaches
from raycap.facts.order import Order
from raycap.tokens.composer import Composer, Rows

ROWS_AT_ONCE = 2**12
"""Number of rows that are composed together. For small batches the calls would otherwise take longer than the rows."""


@dataclass(frozen=True)
class RowSource(WithoutCaches):
    """The parameters of a stream of training rows. `rows_of` reads it in the same process, cluster.data_stream in
    others.

    Sources are equal if they have identical composers (the same objects) and equal orders. Equal sources give equal
    rows.
    """

    composers: tuple[Composer, ...]
    order: Order
    num_steps: int
    rank: int
    world_size: int

    @cached_property
    def row_length(self) -> int:
        """Number of tokens per row, including padding."""
        return max(composer.row_length for composer in self.composers)

    @property
    def rows_per_step(self) -> int:
        """Number of rows of this worker per step. It differs by one between workers if they do not divide the batch."""
        # ceil((batch_size - rank) / world_size)
        return -(-(self.order.batch_size - self.rank) // self.world_size)

    def rows(self, steps: range) -> Rows:
        """Return this worker's rows of consecutive steps, in order of step and within a step in order of corpus."""
        indices, counts = self.order.indices(steps, self.rank, self.world_size)
        rows = Rows.concatenate(
            [
                composer.compose(composer.trained[corpus_indices], self.row_length)
                for composer, corpus_indices in zip(self.composers, indices, strict=True)
                if len(corpus_indices)
            ]
        )
        if np.count_nonzero(counts.any(axis=0)) == 1:
            return rows
        # Rows are in order of corpus, and within a corpus in order of step. A stable sort by step keeps the order of
        # corpora within a step.
        step_of = np.concatenate([np.repeat(np.arange(len(steps)), num) for num in counts.T])
        return rows.take(np.argsort(step_of, kind="stable"))

    def rows_from(self, start_step: int) -> Iterator[Rows]:
        """Yield this worker's rows of each step from `start_step` to the last step."""
        num_rows = self.rows_per_step
        for steps in chunks(range(start_step, self.num_steps), max(1, ROWS_AT_ONCE // num_rows)):
            rows = self.rows(steps)
            for begin in range(0, len(rows), num_rows):
                yield rows[begin : begin + num_rows]


def rows_of(sources: tuple[RowSource, ...], start_step: int) -> Iterator[list[Rows]]:
    """Yield the rows of every source for each step from `start_step` to the last step. Equal sources share one
    object."""
    distinct, index_of = deduplicate(sources)
    for rows in zip(*(source.rows_from(start_step) for source in distinct), strict=True):
        yield [rows[index] for index in index_of]


def deduplicate(sources: tuple[RowSource, ...]) -> tuple[tuple[RowSource, ...], list[int]]:
    """Return the distinct sources in order of first occurrence, and the index of each source among them."""
    indices = {source: index for index, source in enumerate(dict.fromkeys(sources))}
    return tuple(indices), [indices[source] for source in sources]


def chunks(steps: range, num: int) -> Iterator[range]:
    """Yield consecutive ranges of `num` steps; the last may be shorter."""
    for begin in range(steps.start, steps.stop, num):
        yield range(begin, min(begin + num, steps.stop))
