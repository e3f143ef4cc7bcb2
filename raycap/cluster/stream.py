"""Ray Data: the stream of question rows of one worker, seeded and resumable at any step.

Each worker reads a stream of its own, made in one long read task beside it: rank, world size and first step are
arguments of the source, so that a restart goes on exactly where the checkpoint was taken, and any number of workers sees
the same questions. Blocks hold whole steps and are large, since what costs time is handing blocks over.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import ray
from ray.data import DataContext, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from raycap.learner.rows import RowSource
from raycap.learner.tokens import Rows

BLOCK_BYTES = 8 * 2**20
BLOCKS_AHEAD = 2


class QuestionStream(Datasource):
    """All rows of one worker from `start_step` to the end, in order."""

    def __init__(self, source: RowSource, start_step: int) -> None:
        super().__init__()
        self.source, self.start_step = source, start_step
        rows_per_step = -(-source.order.batch_size // source.world_size)
        self.step_bytes = rows_per_step * source.row_length * (np.int32().nbytes + np.bool_().nbytes)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the whole stream, which never exists at once."""
        return self.step_bytes * (self.source.num_steps - self.start_step)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever the parallelism asked for: the order of the rows is part of the experiment."""
        source, start_step, steps_per_block = self.source, self.start_step, max(1, BLOCK_BYTES // self.step_bytes)

        def read() -> Iterable[Block]:
            for first in range(start_step, source.num_steps, steps_per_block):
                steps = range(first, min(first + steps_per_block, source.num_steps))
                rows = Rows.concatenate([part for step in steps for part in source.step_rows(step)])
                yield BlockAccessor.batch_to_arrow_block({"input_ids": rows.input_ids, "answer_mask": rows.answer_mask})

        metadata = BlockMetadata(
            num_rows=None, size_bytes=self.estimate_inmemory_data_size(), input_files=None, exec_stats=None
        )
        return [ReadTask(read, metadata)]


def ray_rows(source: RowSource, start_step: int, *, num_cpus: float) -> Iterator[Rows]:
    """One batch of rows a step, as RowSource.rows_from gives them, but read ahead by a task of `num_cpus`."""
    if start_step >= source.num_steps:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 4 * BLOCK_BYTES
    dataset = ray.data.read_datasource(
        QuestionStream(source, start_step), concurrency=1, num_cpus=num_cpus, override_num_blocks=1
    )
    step = start_step
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=BLOCKS_AHEAD):
        begin, num_rows = 0, len(block["input_ids"])
        while begin < num_rows:
            end = begin + source.num_rows(step)
            yield Rows(block["input_ids"][begin:end], block["answer_mask"][begin:end])
            begin, step = end, step + 1
    assert step == source.num_steps, f"the stream ended at step {step} of {source.num_steps}"
