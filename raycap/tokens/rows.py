"""The streams of training rows of one worker. No torch here: other processes read ahead with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raycap.facts.corpus import WithoutCaches
from raycap.facts.order import Order
from raycap.tokens.composer import Composer, Rows

ROWS_AT_ONCE = 2**12
"""Rows are composed for so many steps at a time: calls cost more than rows where batches are small."""


@dataclass(frozen=True)
class RowSource(WithoutCaches):
    """Everything a stream of training rows follows from; rows_of(sources, step) is the plain way, Ray Data another.

    Sources are equal if they have the same composers, these very ones, in the same order: then they give the same rows.
    """

    composers: tuple[Composer, ...]
    order: Order
    num_steps: int
    rank: int
    world_size: int

    @cached_property
    def row_length(self) -> int:
        """Tokens per row, padding included."""
        return max(composer.row_length for composer in self.composers)

    @property
    def rows_per_step(self) -> int:
        """How many rows this worker has in a step; workers differ by one where they do not divide the batch."""
        return -(-(self.order.batch_size - self.rank) // self.world_size)

    def rows(self, steps: range) -> Rows:
        """This worker's rows of some steps, one step after the other, and in each by corpus."""
        indices, counts = self.order.indices(steps, self.rank, self.world_size)
        rows = Rows.concatenate(
            [
                composer.compose(composer.trained[here], self.row_length)
                for composer, here in zip(self.composers, indices, strict=True)
                if len(here)
            ]
        )
        if np.count_nonzero(counts.any(axis=0)) == 1:
            return rows
        step_of = np.concatenate([np.repeat(np.arange(len(steps)), num) for num in counts.T])
        return rows.take(np.argsort(step_of, kind="stable"))

    def rows_from(self, start_step: int) -> Iterator[Rows]:
        """This worker's rows, one batch a step, from `start_step` to the last."""
        num_rows = self.rows_per_step
        for steps in chunks(range(start_step, self.num_steps), max(1, ROWS_AT_ONCE // num_rows)):
            rows = self.rows(steps)
            for begin in range(0, len(rows), num_rows):
                yield rows[begin : begin + num_rows]


def rows_of(sources: tuple[RowSource, ...], start_step: int) -> Iterator[list[Rows]]:
    """Each step's rows of every source, from `start_step` to the last; those of equal sources are one and the same."""
    read, place_of = different(sources)
    for rows in zip(*(source.rows_from(start_step) for source in read), strict=True):
        yield [rows[place] for place in place_of]


def different(sources: tuple[RowSource, ...]) -> tuple[tuple[RowSource, ...], list[int]]:
    """The sources without those that are equal to an earlier one, and the place of each source among them."""
    indices = {source: place for place, source in enumerate(dict.fromkeys(sources))}
    return tuple(indices), [indices[source] for source in sources]


def chunks(steps: range, num: int) -> Iterator[range]:
    """The steps in ranges of `num`, and the rest."""
    for begin in range(steps.start, steps.stop, num):
        yield range(begin, min(begin + num, steps.stop))
