"""Rows of tokens as tensors: prefixes that rows share are stored once, or texts are packed into windows.

    rows       Question: What was | Ada | May | Lee | 's parent | ? Answer: | Tom ...
               Question: What was | Ada | May | Lee | 's employer | ? Answer: | Heron Security ...

In a causal model, the hidden state at a token depends only on that token and the tokens before it. Rows with a common
prefix therefore have identical hidden states there: the first four tokens above are computed once. A *node* is a token
together with its prefix; the nodes of all rows form a tree, and each row is a path from its root. A *cell* is a position
(row, column) of the padded rows. Everything except attention is computed per node, so shared prefixes and padding cost
nothing; attention needs whole rows and is computed per cell.

A batch holds all replicas of a stack. Where replicas differ in numbers of rows, nodes or answers, the smaller ones are
padded. Indices refer to flattened arrays over replicas: entry i of replica r, of n entries each, is r n + i. A gather
over all replicas is then a single `index_select`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.spec import OnePerRow, PackingSpec, Windows
from raycap.tokens.composer import Rows
from raycap.tokens.tokenizers import END_ID

ONE_PER_ROW = OnePerRow()
Indices = NDArray[np.integer]


@dataclass(frozen=True)
class Batch:
    """Texts of all replicas of a stack as tensors on one device.

    Letters as in model.py: R replicas, N nodes, A answer positions, B rows of T cells. Padding of answers has `loss_mask`
    0; padding of nodes and cells is computed and unused.
    """

    tokens: Tensor  # (R, N), token of each node, an index into the flattened (R, V) embeddings
    position_ids: Tensor  # (R, N), column of each node in its row
    node_of_cell: Tensor  # (R, B T), node of each cell, an index into the flattened (R, N)
    cell_of_node: Tensor  # (R, N), one cell of each node, an index into the flattened (R, B T)
    shape: tuple[int, int]  # (B, T)
    answer_nodes: Tensor  # (R, A), node that predicts each measured token, an index into the flattened (R, N)
    answer_cells: Tensor  # (R, A), one cell of that node, an index into the flattened (R, B T)
    targets: Tensor  # (R, A), measured tokens
    loss_mask: Tensor  # (R, A), 1.0 for measured tokens, 0.0 for padding
    text_of: Tensor  # (R, A), index of the text of each measured token
    labels: Tensor  # (R, A), 1 + measure of each measured token
    corpus: Tensor  # (R, A), index of the corpus of each measured token
    segments: Tensor | None  # (R, B, T), cells attend within equal segments; None if they attend within whole rows
    num_texts: tuple[int, ...]
    num_tokens: tuple[int, ...]
    """Tokens of all texts of each replica, without padding."""

    @classmethod
    def of(cls, rows: list[Rows], vocab_size: int, device: torch.device, packing: PackingSpec = ONE_PER_ROW) -> Self:
        """Return the batch of each replica's rows, one text per row or packed into windows.

        Raises ValueError for a text that is longer than a window.
        """
        trees = build_trees(rows, packing)
        num_rows, length = (max(tree.node_of_cell.shape[axis] for tree in trees) for axis in (0, 1))
        num_cells = num_rows * length
        num_nodes = max(len(tree.tokens) for tree in trees)
        num_answers = max(len(tree.answer_nodes) for tree in trees)

        def stack(arrays: list[Indices], width: int, offset: int = 0) -> Tensor:
            return to_device(stack_padded(arrays, width, offset), device)

        segments = None
        if trees[0].segments is not None:
            grids = [pad_grid(tree.segments, num_rows, length) for tree in trees if tree.segments is not None]
            segments = stack(grids, num_cells).view(-1, num_rows, length)
        return cls(
            tokens=stack([tree.tokens for tree in trees], num_nodes, vocab_size),
            position_ids=stack([tree.cell_of_node % tree.node_of_cell.shape[1] for tree in trees], num_nodes),
            node_of_cell=stack([pad_grid(tree.node_of_cell, num_rows, length) for tree in trees], num_cells, num_nodes),
            cell_of_node=stack([padded_cells(tree, tree.cell_of_node, length) for tree in trees], num_nodes, num_cells),
            shape=(num_rows, length),
            answer_nodes=stack([tree.answer_nodes for tree in trees], num_answers, num_nodes),
            answer_cells=stack(
                [padded_cells(tree, tree.cell_of_node[tree.answer_nodes], length) for tree in trees],
                num_answers,
                num_cells,
            ),
            targets=stack([tree.targets for tree in trees], num_answers),
            loss_mask=to_device(answer_mask(trees, num_answers), device),
            text_of=stack([tree.text_of for tree in trees], num_answers),
            labels=stack([tree.labels for tree in trees], num_answers),
            corpus=stack([part.corpus[tree.text_of] for part, tree in zip(rows, trees, strict=True)], num_answers),
            segments=segments,
            num_texts=tuple(len(part) for part in rows),
            num_tokens=tuple(tree.num_tokens for tree in trees),
        )


class PrefixTree(NamedTuple):
    """The nodes of one replica's rows, before padding. Nodes are numbered in row-major order of their first cells."""

    tokens: Indices  # (N,), token of each node
    node_of_cell: Indices  # (B, T), node of each cell; an arbitrary node for padding
    cell_of_node: Indices  # (N,), first cell of each node, an index into the flattened (B, T)
    answer_nodes: Indices  # (A,), node that predicts each measured token
    targets: Indices  # (A,), measured tokens
    text_of: Indices  # (A,), index of the text of each measured token among the replica's rows
    labels: Indices  # (A,), 1 + measure of each measured token
    segments: Indices | None  # (B, T), as in Batch
    num_tokens: int


def build_trees(rows: list[Rows], packing: PackingSpec) -> list[PrefixTree]:
    """Return the tree of each replica. Replicas with the same data and order share one Rows object, and one tree."""
    trees: dict[int, PrefixTree] = {}
    for part in rows:
        if id(part) not in trees:
            trees[id(part)] = packed_windows(part, packing) if isinstance(packing, Windows) else prefix_tree(part)
    return [trees[id(part)] for part in rows]


def stack_padded(arrays: list[Indices], width: int, offset: int) -> NDArray[np.int64]:
    """Stack one array per replica to (R, width), padded with 0, and add `offset` times the replica's index.

    With the number of entries per replica as `offset`, indices within a replica become indices into the flattened array
    over replicas. Padding becomes the replica's entry 0, so a padded index is always valid and stays in its replica.
    """
    if len(arrays) == 1:
        return arrays[0].astype(np.int64).reshape(1, -1)
    stacked = np.zeros((len(arrays), width), np.int64)
    for replica, (row, array) in enumerate(zip(stacked, arrays, strict=True)):
        row[: len(array)] = array
        row += replica * offset
    return stacked


def pad_grid(values: Indices, num_rows: int, length: int) -> Indices:
    """Return values (b, t) padded with 0 to (num_rows, length) and flattened."""
    if values.shape == (num_rows, length):
        return values.ravel()
    return np.pad(values, [(0, num_rows - len(values)), (0, length - values.shape[1])]).ravel()


def padded_cells(tree: PrefixTree, cells: Indices, length: int) -> Indices:
    """Convert indices into a tree's flattened cells into indices of rows that are padded to `length`."""
    row, column = np.divmod(cells, tree.node_of_cell.shape[1])
    return row * length + column


def answer_mask(trees: list[PrefixTree], num_answers: int) -> NDArray[np.float32]:
    """Return (R, A) with 1.0 for the measured tokens of each replica and 0.0 for padding."""
    mask = np.zeros((len(trees), num_answers), np.float32)
    for row, tree in zip(mask, trees, strict=True):
        row[: len(tree.answer_nodes)] = 1.0
    return mask


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor; copies to a GPU start from page-locked memory and do not block."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def prefix_tree(rows: Rows) -> PrefixTree:
    """Return the tree of rows with one text each; equal prefixes become the same nodes."""
    lengths = rows.lengths
    length = int(lengths.max())
    ids = np.ascontiguousarray(rows.input_ids[:, :length])
    order = sort_by_prefix(ids)
    ids, labels, lengths = ids[order], rows.labels[order, :length], lengths[order]
    inputs = ids[:, :-1]  # the last token of a text is only predicted
    is_new = first_cells(inputs, lengths)
    cell_of_node = np.flatnonzero(is_new)
    node_of_cell = number_nodes(is_new, cell_of_node)
    text, column = labels.nonzero()
    return PrefixTree(
        tokens=inputs.ravel()[cell_of_node],
        node_of_cell=node_of_cell,
        cell_of_node=cell_of_node,
        answer_nodes=node_of_cell[text, column - 1],
        targets=ids[text, column],
        text_of=order[text],
        labels=labels[text, column],
        segments=None,
        num_tokens=int(lengths.sum()),
    )


def sort_by_prefix(ids: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int64]:
    """Return an order of the contiguous rows `ids` in which rows with a common prefix are adjacent.

    Every lexicographic order has this property. Rows are compared as byte strings, which numpy sorts in one call. On a
    little-endian machine that is not the order of token numbers, but rows with a common prefix are adjacent all the same.
    """
    return ids.view(f"S{ids.itemsize * ids.shape[1]}").ravel().argsort(kind="stable")


def first_cells(inputs: NDArray[np.unsignedinteger[Any]], lengths: Indices) -> NDArray[np.bool_]:
    """Return which cells (B, T) of sorted rows are the first cell of their node.

    In sorted rows a prefix that occurs above occurs in the row directly above. A cell is therefore the first of its node
    exactly if its row differs from the row above in this column or an earlier one. Padding has no nodes. It is END_ID,
    which no text contains before its last token, so no cell of a text equals padding above it.
    """
    is_new = np.ones(inputs.shape, bool)
    np.not_equal(inputs[1:], inputs[:-1], out=is_new[1:])
    np.logical_or.accumulate(is_new, axis=1, out=is_new)
    is_new &= np.arange(inputs.shape[1]) < lengths[:, None] - 1
    return is_new


def number_nodes(is_new: NDArray[np.bool_], cell_of_node: Indices) -> NDArray[np.int32]:
    """Return the node of each cell (B, T), given the first cells as a mask and as indices.

    A cell that is not the first of its node has the node of the cell above. Numbers grow in row-major order, hence down
    each column: the last number that was assigned above a cell is the largest, and a running maximum copies it down.
    """
    node_of_cell = np.zeros(is_new.shape, np.int32)
    node_of_cell.ravel()[cell_of_node] = np.arange(len(cell_of_node))
    np.maximum.accumulate(node_of_cell, axis=0, out=node_of_cell)
    return node_of_cell


def packed_windows(rows: Rows, packing: Windows) -> PrefixTree:
    """Return texts packed one after the other into windows, one window per row, where every cell is a node of its own.

    Segment 0 is padding; segment 1 + i is text i.
    """
    lengths = rows.lengths
    windows, offsets = window_positions(lengths, packing.length)
    # Text and column of every token, texts one after the other.
    text = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shape = (int(windows[-1]) + 1, packing.length)
    tokens, segments = np.full(shape, END_ID, np.int64), np.zeros(shape, np.int32)
    cells = (windows[text], offsets[text] + column)
    tokens[cells], segments[cells] = rows.input_ids[text, column], 1 + text
    text, column = rows.labels.nonzero()
    all_cells = np.arange(tokens.size)
    return PrefixTree(
        tokens=tokens.ravel(),
        node_of_cell=all_cells.reshape(shape),
        cell_of_node=all_cells,
        answer_nodes=windows[text] * packing.length + offsets[text] + column - 1,
        targets=rows.input_ids[text, column],
        text_of=text,
        labels=rows.labels[text, column],
        segments=None if packing.attend_across else segments,
        num_tokens=int(lengths.sum()),
    )


def window_positions(lengths: Indices, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the window of each text and its offset there; texts are placed in order and never split.

    Raises ValueError for a text that is longer than a window.
    """
    if lengths.max() > window:
        raise ValueError(
            f"training.packing.length: a text has {lengths.max()} tokens, more than the window length {window}; "
            "set at least that length"
        )
    windows, offsets = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    number, filled = 0, 0
    for index, length in enumerate(lengths.tolist()):
        if filled + length > window:
            number, filled = number + 1, 0
        windows[index], offsets[index] = number, filled
        filled += length
    return windows, offsets
