"""The stream of training rows of one worker. No torch here: other processes read ahead with it."""

from collections.abc import Iterator
from dataclasses import dataclass

from raycap.facts.order import QuestionOrder
from raycap.facts.questions import unpack
from raycap.learner.tokens import Composer, Rows


@dataclass(frozen=True)
class RowSource:
    """Everything a stream of training rows follows from; rows_from(step) is the plain way, Ray Data another."""

    composer: Composer
    order: QuestionOrder
    num_steps: int
    rank: int
    world_size: int

    @property
    def row_length(self) -> int:
        """Tokens per row, padding included."""
        hops = [k for k, share in ((1, self.order.one_hop_share), (2, 1 - self.order.one_hop_share)) if share > 0]
        return max(self.composer.row_length(k) for k in hops)

    @property
    def rows_per_step(self) -> int:
        """How many rows this worker has in a step; workers differ by one where they do not divide the batch."""
        return -(-(self.order.batch_size - self.rank) // self.world_size)

    def step_rows(self, step: int) -> list[Rows]:
        """This worker's rows of one step, by number of hops."""
        ids = self.order.step_ids(step, self.rank, self.world_size)
        profiles = self.composer.profiles
        return [self.composer.compose(unpack(profiles, k, i), self.row_length) for k, i in ids.items() if len(i)]

    def rows_from(self, start_step: int) -> Iterator[Rows]:
        """This worker's rows, one batch a step, from `start_step` to the last."""
        for step in range(start_step, self.num_steps):
            yield Rows.concatenate(self.step_rows(step))
