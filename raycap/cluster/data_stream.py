"""Streams the training rows of one worker through Ray Data, seeded and resumable at any step.

Each worker has its own dataset, which one long read task produces for all replicas that the worker trains. Rank, world size
and first step are arguments of the sources. A restart therefore resumes exactly where the checkpoint was taken, and any
number of workers sees the same texts. One row of the dataset is one training step, with two columns per source, so Ray Data
may split and merge blocks without changing the batches. Blocks are large, because the cost is per block handed over.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import DataContext, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from raycap.host.user_code import add_folders
from raycap.tokens.composer import Rows
from raycap.tokens.rows import RowSource, chunks, deduplicate

BLOCK_BYTES = 8 * 2**20
PREFETCHED_BLOCKS = 2


class RowStream(Datasource):
    """Datasource of the rows of several sources, from `start_step` to the last step, in order."""

    def __init__(self, sources: tuple[RowSource, ...], start_step: int, user_folders: tuple[str, ...] = ()) -> None:
        """`user_folders` has the folders of modules of the user that define corpora of the sources."""
        super().__init__()
        self.sources, self.steps = sources, range(start_step, sources[0].num_steps)
        self.user_folders = user_folders

    def estimate_inmemory_data_size(self) -> None:
        """Return None (unknown): given a size, Ray Data would split the blocks of the task into smaller ones."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one task for any `parallelism`, because the order of the rows is part of the experiment."""
        # Sources contain whole populations, which are too large to be pickled into the task.
        steps, sources_ref = self.steps, ray.put(self.sources)
        block_bytes, user_folders = BLOCK_BYTES, self.user_folders  # read here, since the task runs in another process

        def read() -> Iterable[Block]:
            add_folders(user_folders)  # before the sources are unpickled
            sources: tuple[RowSource, ...] = ray.get(sources_ref)
            step_bytes = sum(source.rows(steps[:1]).cells.nbytes for source in sources)
            for chunk in chunks(steps, max(1, block_bytes // step_bytes)):
                columns: dict[str, NDArray[np.integer]] = {}
                for index, source in enumerate(sources):
                    rows, shape = source.rows(chunk), (len(chunk), source.rows_per_step)
                    # Arrow has no type for cells, a NumPy structured dtype, so they travel as bytes.
                    columns[f"cells {index}"] = rows.cells.view(np.uint8).reshape(*shape, -1)
                    columns[f"corpus {index}"] = rows.corpus.reshape(shape)
                yield BlockAccessor.batch_to_arrow_block(columns)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


def ray_rows(
    sources: tuple[RowSource, ...], start_step: int, *, num_cpus: float, user_folders: tuple[str, ...] = ()
) -> Iterator[list[Rows]]:
    """Yield the rows of every source, step by step, as `raycap.tokens.rows.rows_of` does, from a Ray Data read task.

    The task reserves `num_cpus` CPUs and reads ahead. Equal sources are read once and share their rows. `user_folders` are
    those of `WorkerConfig`.
    """
    if start_step >= sources[0].num_steps:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    context.target_max_block_size = 4 * BLOCK_BYTES
    distinct, index_of = deduplicate(sources)
    dataset = ray.data.read_datasource(
        RowStream(distinct, start_step, user_folders), concurrency=1, num_cpus=num_cpus, override_num_blocks=1
    )
    step = start_step
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCHED_BLOCKS):
        columns = [
            (block[f"cells {index}"].view(source.composers[0].dtype), block[f"corpus {index}"])
            for index, source in enumerate(distinct)
        ]
        for offset in range(len(columns[0][0])):
            rows = [Rows(cells[offset], corpus[offset]) for cells, corpus in columns]
            yield [rows[index] for index in index_of]
            step += 1
    assert step == sources[0].num_steps, f"the stream ended after step {step} of {sources[0].num_steps}"
