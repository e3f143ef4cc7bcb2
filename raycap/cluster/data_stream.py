"""Ray Data: the streams of training rows of one worker, seeded and resumable at any step.

Each worker reads streams of its own, one for each replica it trains, made in one long read task beside it: rank, world
size and first step are arguments of the sources, so that a restart goes on exactly where the checkpoint was taken, and
any number of workers sees the same texts. A row of the dataset is a whole step, with a column for each source, so Ray Data
may cut and join blocks as it likes; they are large, since what costs time is handing blocks over.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import DataContext, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from raycap.tokens.composer import Rows
from raycap.tokens.rows import RowSource, chunks, deduplicate

BLOCK_BYTES = 8 * 2**20
BLOCKS_AHEAD = 2


class RowStream(Datasource):
    """All rows of some sources from `start_step` to the end, in order."""

    def __init__(self, sources: tuple[RowSource, ...], start_step: int) -> None:
        super().__init__()
        self.sources, self.steps = sources, range(start_step, sources[0].num_steps)

    def estimate_inmemory_data_size(self) -> None:
        """Unknown: given a size, Ray Data would cut the blocks of a single task into more and smaller ones."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task, whatever the parallelism asked for: the order of the rows is part of the experiment."""
        steps, shared = self.steps, ray.put(self.sources)  # populations are too large to travel inside the task
        block_bytes = BLOCK_BYTES

        def read() -> Iterable[Block]:
            sources: tuple[RowSource, ...] = ray.get(shared)
            step_bytes = sum(source.rows(steps[:1]).cells.nbytes for source in sources)
            for chunk in chunks(steps, max(1, block_bytes // step_bytes)):
                columns: dict[str, NDArray[np.integer]] = {}
                for place, source in enumerate(sources):
                    rows, shape = source.rows(chunk), (len(chunk), source.rows_per_step)
                    columns[f"cells {place}"] = rows.cells.view(np.uint8).reshape(*shape, -1)  # Arrow knows no cells
                    columns[f"corpus {place}"] = rows.corpus.reshape(shape)
                yield BlockAccessor.batch_to_arrow_block(columns)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


def ray_rows(sources: tuple[RowSource, ...], start_step: int, *, num_cpus: float) -> Iterator[list[Rows]]:
    """Each step's rows of every source, as rows_of gives them, but read ahead by a task of `num_cpus`."""
    if start_step >= sources[0].num_steps:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    context.target_max_block_size = 4 * BLOCK_BYTES
    read, place_of = deduplicate(sources)
    dataset = ray.data.read_datasource(
        RowStream(read, start_step), concurrency=1, num_cpus=num_cpus, override_num_blocks=1
    )
    step = start_step
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=BLOCKS_AHEAD):
        columns = [
            (block[f"cells {place}"].view(source.composers[0].dtype), block[f"corpus {place}"])
            for place, source in enumerate(read)
        ]
        for number in range(len(columns[0][0])):
            rows = [Rows(cells[number], corpus[number]) for cells, corpus in columns]
            yield [rows[place] for place in place_of]
            step += 1
    assert step == sources[0].num_steps, f"the stream ended in step {step} of {sources[0].num_steps}"
