"""Training steps as CUDA graphs.

A step of a small model launches several hundred kernels, and launching one takes longer than running it. A CUDA graph
records the launches of a step and repeats them with a single call. It repeats them exactly: on the same memory and with the
same shapes. Batches are therefore built on the device (device_batches.py) from inputs that are copied to fixed memory, and
there is one graph for each of the few shapes that occur.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycap.learner.batches import Batch, to_device
from raycap.learner.device_batches import BatchShape, SortedRows, build_batch
from raycap.tokens.composer import Rows

Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Numbers of texts and of tokens of each replica."""


@dataclass(frozen=True)
class _Graph:
    """A recorded step with the memory that it reads its rows from."""

    inputs: tuple[Tensor, ...]
    graph: torch.cuda.CUDAGraph

    def replay(self, inputs: tuple[Tensor, ...]) -> None:
        for recorded, new in zip(self.inputs, inputs, strict=True):
            recorded.copy_(new)
        self.graph.replay()


class GraphedStep:
    """Trains on batches that are built on the device, on CUDA with one graph for each shape.

    The first step of each shape runs eagerly, because lazy initialisation cannot be recorded, the second is recorded and
    replayed, and the others are replayed. On other devices all steps run eagerly.
    """

    def __init__(self, step: Callable[[Batch], None], vocab_size: int, device: torch.device) -> None:
        """Initialize without recording a graph.

        Args:
            step: Trains on a batch. It must change tensors only in place, and must not read the value of a tensor.
            vocab_size: Number of tokens.
            device: Device of the model.
        """
        self._step, self._vocab_size, self._device = step, vocab_size, device
        self._graphs: dict[tuple[BatchShape, int], _Graph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, rows: list[Rows]) -> Counts:
        """Train on the rows of each replica, and return the numbers of their texts and tokens."""
        ordered = SortedRows.of(rows)
        inputs = tuple(to_device(array, self._device) for array in ordered.arrays)
        key = ordered.shape, len(ordered.cells)
        if (graph := self._graphs.get(key)) is not None:
            graph.replay(inputs)
        elif key not in self._graphs or self._pool is None:
            self._run(inputs, ordered.shape)
            self._graphs[key] = None
        else:
            self._graphs[key] = recorded = self._record(inputs, ordered.shape)
            recorded.graph.replay()
        return ordered.num_texts, ordered.num_tokens

    def _run(self, inputs: tuple[Tensor, ...], shape: BatchShape) -> None:
        self._step(build_batch(*inputs, shape=shape, vocab_size=self._vocab_size))

    def _record(self, inputs: tuple[Tensor, ...], shape: BatchShape) -> _Graph:
        """Record a step without running it. Graphs share their memory, since only one runs at a time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._run(inputs, shape)
        return _Graph(inputs, graph)
