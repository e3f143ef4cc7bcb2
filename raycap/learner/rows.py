"""The stream of training rows of one worker. No torch here: other processes read ahead with it."""

from collections.abc import Iterator
from dataclasses import dataclass

from raycap.facts.order import Order
from raycap.learner.tokens import Composer, Rows


@dataclass(frozen=True)
class RowSource:
    """Everything a stream of training rows follows from; rows_from(step) is the plain way, Ray Data another."""

    composers: tuple[Composer, ...]
    order: Order
    num_steps: int
    rank: int
    world_size: int

    @property
    def row_length(self) -> int:
        """Tokens per row, padding included."""
        return max(composer.row_length for composer in self.composers)

    @property
    def rows_per_step(self) -> int:
        """How many rows this worker has in a step; workers differ by one where they do not divide the batch."""
        return -(-(self.order.batch_size - self.rank) // self.world_size)

    def step_rows(self, step: int) -> list[Rows]:
        """This worker's rows of one step, by corpus."""
        places = self.order.step_places(step, self.rank, self.world_size)
        return [
            composer.compose(composer.trained[here], self.row_length)
            for composer, here in zip(self.composers, places, strict=True)
            if len(here)
        ]

    def rows_from(self, start_step: int) -> Iterator[Rows]:
        """This worker's rows, one batch a step, from `start_step` to the last."""
        for step in range(start_step, self.num_steps):
            yield Rows.concatenate(self.step_rows(step))
