"""Batches that are built on the device from rows of cells, in few shapes.

`Batch.of` computes prefix trees on the host and returns tensors of other sizes at every step. For small models on a GPU
that is slow for two reasons: the device waits for the host, and a step cannot be recorded as a CUDA graph, which needs
fixed shapes. Here the host only sorts the rows and counts their nodes and answers; it copies the cells, three bytes a
token, to the device, where some forty small kernels build the tree. Sizes are rounded up, so that the steps of a trial have
a few shapes.

Nodes are numbered by column of their first cell and then by row, instead of by row and then by column. Apart from that and
from padding, the batch is that of `Batch.of` (see batches.py for the terms).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.profiles import IntArray
from raycap.learner.batches import Batch, first_cells, sort_by_prefix
from raycap.tokens.composer import Rows
from raycap.tokens.tokenizers import END_ID

LENGTH_MULTIPLE = 8
"""T is a multiple of this, for aligned memory accesses in attention."""
SIGNIFICANT_BITS = 5
"""Other sizes are rounded up to this many binary digits, that is, by at most 1 / 2^(digits - 1) = 1/16."""


class BatchShape(NamedTuple):
    """Sizes of a batch. Letters as in model.py."""

    num_rows: int  # B
    length: int  # T
    num_nodes: int  # N
    num_answers: int  # A


@dataclass(frozen=True)
class SortedRows:
    """The rows of one step for all replicas of a stack, with rows that have a common prefix next to each other.

    Replicas that share their rows are stored once: D is the number of distinct sets of rows.
    """

    cells: NDArray[np.uint8]  # (D, B, T + 1, bytes per cell)
    texts: NDArray[np.int32]  # (D, B), index of each row among the rows as they were passed
    corpus: NDArray[np.uint8]  # (D, B), index of the corpus of each row
    set_of: NDArray[np.int64]  # (R,), index into D of each replica
    shape: BatchShape
    num_texts: tuple[int, ...]
    num_tokens: tuple[int, ...]
    """Tokens of all texts of each replica, without padding."""

    @classmethod
    def of(cls, rows: list[Rows]) -> "SortedRows":
        """Sort the rows of each replica and compute the shape of the batch. Replicas must have equal numbers of rows."""
        distinct = {id(part): part for part in rows}
        indices = {key: index for index, key in enumerate(distinct)}
        sets = [_sorted(part) for part in distinct.values()]
        length = max(int(lengths.max()) for _, _, lengths in sets) - 1
        length = -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        num_nodes = max(_num_nodes(part, lengths) for part, _, lengths in sets)
        num_answers = max(int(np.count_nonzero(part.labels)) for part, _, _ in sets)
        tokens = [int(lengths.sum()) for _, _, lengths in sets]
        set_of = [indices[id(part)] for part in rows]
        return cls(
            cells=np.stack([_bytes_of(part, length + 1) for part, _, _ in sets]),
            texts=np.stack([order.astype(np.int32) for _, order, _ in sets]),
            corpus=np.stack([part.corpus for part, _, _ in sets]),
            set_of=np.array(set_of),
            shape=BatchShape(len(sets[0][0]), length, rounded_up(num_nodes), rounded_up(num_answers)),
            num_texts=tuple(len(part) for part in rows),
            num_tokens=tuple(tokens[index] for index in set_of),
        )

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays that `build_batch` takes as tensors, in its order."""
        return self.cells, self.texts, self.corpus, self.set_of


def rounded_up(number: int) -> int:
    """Return the next number whose binary digits after the first SIGNIFICANT_BITS are 0."""
    step = 1 << max(0, number.bit_length() - SIGNIFICANT_BITS)
    return -(-number // step) * step


def _sorted(rows: Rows) -> tuple[Rows, NDArray[np.int64], IntArray]:
    """Return rows sorted by prefix, their order, and their lengths."""
    order = sort_by_prefix(np.ascontiguousarray(rows.input_ids[:, : int(rows.lengths.max())]))
    part = rows.take(order)
    return part, order, part.lengths


def _num_nodes(rows: Rows, lengths: IntArray) -> int:
    """Return the number of distinct prefixes of sorted rows."""
    return int(np.count_nonzero(first_cells(rows.input_ids[:, : int(lengths.max()) - 1], lengths)))


def _bytes_of(rows: Rows, length: int) -> NDArray[np.uint8]:
    """Return the cells as bytes, cut or padded to `length`, shape (B, length, bytes per cell)."""
    cells = rows.cells[:, :length]
    if cells.shape[1] < length:
        wider = np.zeros((len(cells), length), cells.dtype)
        wider["token"] = END_ID
        wider[:, : cells.shape[1]] = cells
        cells = wider
    return np.ascontiguousarray(cells).view(np.uint8).reshape(len(cells), length, -1)


def build_batch(
    cells: Tensor, texts: Tensor, corpus: Tensor, set_of: Tensor, *, shape: BatchShape, vocab_size: int
) -> Batch:
    """Return the batch of sorted rows, whose arrays are on the device. No operation waits for the device.

    The batch has no numbers of texts and tokens: they are known on the host, and a CUDA graph must not depend on them.

    Args:
        cells: (D, B, T + 1, bytes per cell), as the other arrays in `SortedRows`.
        texts: (D, B).
        corpus: (D, B).
        set_of: (R,).
        shape: Sizes of the batch.
        vocab_size: Number of tokens.
    """
    num_rows, length, num_nodes, num_answers = shape
    num_cells, device = num_rows * length, cells.device
    *token_bytes, label = cells.unbind(-1)
    token = sum(
        (part.int() << (8 * index) for index, part in enumerate(token_bytes)), start=torch.zeros_like(label).int()
    )
    columns = torch.arange(length + 1, device=device, dtype=torch.int32)
    measured = label > 0
    lengths = torch.where(measured, columns + 1, 0).amax(dim=2)  # (D, B)

    # A cell is the first of its node if its row differs from the row above in its column or in an earlier one.
    inputs, columns = token[..., :length], columns[:length]
    differs = inputs[:, 1:] != inputs[:, :-1]
    differs_from = F.pad(torch.where(differs, columns, length).amin(dim=2), (1, 0))  # (D, B); the first row: column 0
    is_new = (columns >= differs_from[..., None]) & (columns < lengths[..., None] - 1)  # (D, B, T)
    numbers = is_new.transpose(1, 2).flatten(1).cumsum(dim=1, dtype=torch.int32) - 1  # (D, T B), by column
    node_of_cell = numbers.unflatten(1, (length, num_rows)).transpose(1, 2).flatten(1).long()  # (D, B T), by row
    # scatter_ writes every value. Those that must not be written go to one additional slot at the end, which is cut off.
    cell = torch.arange(num_cells, device=device).expand(len(cells), -1)
    cell_of_node = cell.new_zeros(len(cells), num_nodes + 1).scatter_(
        1, torch.where(is_new.flatten(1), node_of_cell, num_nodes), cell
    )[:, :num_nodes]
    predicts = measured[..., 1:].flatten(1)  # whether the token after a cell is measured
    position = predicts.cumsum(dim=1)
    answer_cells = cell.new_zeros(len(cells), num_answers + 1).scatter_(
        1, torch.where(predicts, position - 1, num_answers), cell
    )[:, :num_answers]
    is_answer = torch.arange(num_answers, device=device) < position[:, -1:]

    def cells_with_next(at: Tensor) -> Tensor:
        """Convert indices of input cells, T a row, to indices of all cells, T + 1 a row."""
        return at + at // length

    row_of_answer = answer_cells // length
    answer_token = cells_with_next(answer_cells) + 1  # the measured token follows the cell that predicts it

    def per_replica(values: Tensor, offset: int = 0) -> Tensor:
        """Return the values of each replica, (R, ...), as indices into the flattened arrays over replicas."""
        chosen = values.index_select(0, set_of)
        return chosen + offset * torch.arange(len(set_of), device=device)[:, None] if offset else chosen

    flat_tokens = token.flatten(1)
    return Batch(
        tokens=per_replica(flat_tokens.gather(1, cells_with_next(cell_of_node)).long(), vocab_size),
        position_ids=per_replica(cell_of_node % length),
        node_of_cell=per_replica(node_of_cell, num_nodes),
        cell_of_node=per_replica(cell_of_node, num_cells),
        shape=(num_rows, length),
        answer_nodes=per_replica(node_of_cell.gather(1, answer_cells), num_nodes),
        answer_cells=per_replica(answer_cells, num_cells),
        targets=per_replica(flat_tokens.gather(1, answer_token).long()),
        loss_mask=per_replica(is_answer.float()),
        text_of=per_replica(texts.gather(1, row_of_answer).long()),
        labels=per_replica(label.flatten(1).gather(1, answer_token).long()),
        corpus=per_replica(corpus.gather(1, row_of_answer).long()),
        segments=None,
        num_texts=(),
        num_tokens=(),
    )
