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
        self.step_bytes = source.rows_per_step * source.row_length * (np.int32().nbytes + np.uint8().nbytes)

    def estimate_inmemory_data_size(self) -> None:
        """Unknown: given a size, Ray Data would cut the blocks of a single task into more and smaller ones."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever the parallelism asked for: the order of the rows is part of the experiment."""
        start_step, steps_per_block = self.start_step, max(1, BLOCK_BYTES // self.step_bytes)
        shared = ray.put(self.source)  # a population is too large to travel inside the task

        def read() -> Iterable[Block]:
            source: RowSource = ray.get(shared)
            for first in range(start_step, source.num_steps, steps_per_block):
                steps = range(first, min(first + steps_per_block, source.num_steps))
                rows = Rows.concatenate([part for step in steps for part in source.step_rows(step)])
                yield BlockAccessor.batch_to_arrow_block(vars(rows))

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


def ray_rows(source: RowSource, start_step: int, *, num_cpus: float) -> Iterator[Rows]:
    """One batch of rows a step, as RowSource.rows_from gives them, but read ahead by a task of `num_cpus`."""
    if start_step >= source.num_steps:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    context.target_max_block_size = 4 * BLOCK_BYTES
    dataset = ray.data.read_datasource(
        QuestionStream(source, start_step), concurrency=1, num_cpus=num_cpus, override_num_blocks=1
    )
    step, rest = start_step, None
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=BLOCKS_AHEAD):
        rows = Rows(block["input_ids"], block["labels"], block["corpus"])
        if rest is not None:  # Ray Data may cut and join blocks as it likes; the order of rows is all we rely on
            rows = Rows.concatenate([rest, rows])
        begin = 0
        while step < source.num_steps and begin + source.rows_per_step <= len(rows):
            yield rows[begin : begin + source.rows_per_step]
            begin, step = begin + source.rows_per_step, step + 1
        rest = rows[begin:] if begin < len(rows) else None
    assert (step, rest) == (source.num_steps, None), f"the stream ended in step {step} of {source.num_steps}"
