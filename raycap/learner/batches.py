"""Rows as a model takes them: every prefix that rows share once, or packed into windows, on a device.

    rows       Question: What was | Ada | May | Lee | 's parent | ? Answer: | Tom ...
               Question: What was | Ada | May | Lee | 's employer | ? Answer: | Heron Security ...

What a causal model makes of a token depends on what stands before it, so rows that begin alike share all they begin
with: the first four tokens above are computed once. A *node* is a token with everything before it; rows are paths
through the tree of nodes. All but attention is computed by node, and padding is no node.
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
    """Texts of each replica on a device. Letters as in model.py; B rows of T cells.

    Replicas differ in how many nodes and measured tokens they have: short ones are filled up, with `measured` 0.
    """

    tokens: Tensor  # (R, N), token of each node, counted over the vocabularies of all replicas
    position_ids: Tensor  # (R, N), tokens before it in its row
    cells: Tensor  # (R, B T), node of each cell of the rows, counted over the nodes of all replicas
    cell_of: Tensor  # (R, N), a cell of each node, counted over the cells of all replicas
    shape: tuple[int, int]  # (B, T)
    answers: Tensor  # (R, A), node after which a measured token is predicted, counted over the nodes of all replicas
    answer_cells: Tensor  # (R, A), a cell of that node
    targets: Tensor  # (R, A), the measured tokens
    loss_mask: Tensor  # (R, A), 1.0 where there is one
    text_of: Tensor  # (R, A), the text each of them belongs to
    labels: Tensor  # (R, A), 1 + the measure each of them belongs to
    corpus: Tensor  # (R, A), the corpus of its text
    segments: Tensor | None  # (R, B, T), which cells see each other; None where all in a row do
    num_texts: tuple[int, ...]
    num_tokens: tuple[int, ...]
    """Tokens of all texts, padding not counted."""

    @classmethod
    def of(cls, rows: list[Rows], vocab_size: int, device: torch.device, packing: PackingSpec = ONE_PER_ROW) -> Self:
        """The rows of each replica as they are, or packed into windows."""
        known: dict[int, PrefixTree] = {}  # replicas of one order have the very same rows
        for mine in rows:
            if id(mine) not in known:
                known[id(mine)] = packed_windows(mine, packing) if isinstance(packing, Windows) else prefix_tree(mine)
        trees = [known[id(mine)] for mine in rows]
        num_rows, length = (max(tree.cells.shape[axis] for tree in trees) for axis in (0, 1))
        num_nodes, num_answers = (max(len(getattr(t, name)) for t in trees) for name in ("tokens", "answers"))
        num_cells = num_rows * length

        def moved(array: NDArray[Any]) -> Tensor:
            tensor = torch.from_numpy(array)
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

        def stacked(values: list[Indices], width: int, step: int = 0) -> Tensor:
            """Arrays one above the other, filled up with 0, each counted on by `step`."""
            if len(values) == 1:
                return moved(values[0].astype(np.int64).reshape(1, -1))
            together = np.zeros((len(values), width), np.int64)
            for place, (row, value) in enumerate(zip(together, values, strict=True)):
                row[: len(value)] = value
                row += place * step
            return moved(together)

        def cell(tree: PrefixTree, nodes: Indices) -> Indices:
            """Cells of nodes; rows of other replicas may be longer."""
            row, column = np.divmod(tree.cell_of[nodes], tree.cells.shape[1])
            return row * length + column

        def grid(values: Indices) -> Indices:
            """Rows (b, t) as (num_rows, length), flat."""
            if values.shape == (num_rows, length):
                return values.ravel()
            return np.pad(values, [(0, num_rows - len(values)), (0, length - values.shape[1])]).ravel()

        answers = [tree.answers for tree in trees]
        loss_mask = np.zeros((len(trees), num_answers), np.float32)
        for row, answer in zip(loss_mask, answers, strict=True):
            row[: len(answer)] = 1.0
        segments = None
        if trees[0].segments is not None:
            segments = stacked([grid(t.segments) for t in trees if t.segments is not None], num_cells)
        return cls(
            tokens=stacked([tree.tokens for tree in trees], num_nodes, vocab_size),
            position_ids=stacked([tree.cell_of % tree.cells.shape[1] for tree in trees], num_nodes),
            cells=stacked([grid(tree.cells) for tree in trees], num_cells, num_nodes),
            cell_of=stacked([cell(tree, np.arange(len(tree.tokens))) for tree in trees], num_nodes, num_cells),
            shape=(num_rows, length),
            answers=stacked(answers, num_answers, num_nodes),
            answer_cells=stacked([cell(t, t.answers) for t in trees], num_answers, num_cells),
            targets=stacked([tree.targets for tree in trees], num_answers),
            loss_mask=moved(loss_mask),
            text_of=stacked([tree.text_of for tree in trees], num_answers),
            labels=stacked([tree.labels for tree in trees], num_answers),
            corpus=stacked([mine.corpus[t.text_of] for mine, t in zip(rows, trees, strict=True)], num_answers),
            segments=None if segments is None else segments.view(-1, num_rows, length),
            num_texts=tuple(len(mine) for mine in rows),
            num_tokens=tuple(tree.num_tokens for tree in trees),
        )


class PrefixTree(NamedTuple):
    """The batch of one replica; nodes are counted along the rows."""

    tokens: Indices  # (N,)
    cells: Indices  # (B, T), node of each cell; any node where a row has ended
    cell_of: Indices  # (N,), the first cell of each node, in the flat rows
    answers: Indices  # (A,), nodes
    targets: Indices  # (A,)
    text_of: Indices  # (A,)
    labels: Indices  # (A,)
    segments: Indices | None  # (B, T)
    num_tokens: int


def prefix_tree(rows: Rows) -> PrefixTree:
    """One text per row; what rows begin with alike becomes the same nodes."""
    lengths = rows.lengths
    length = int(lengths.max())
    ids = np.ascontiguousarray(rows.input_ids[:, :length])
    # As strings of bytes rows that begin alike come to stand together, in whatever order.
    order = ids.view(f"S{ids.itemsize * length}").ravel().argsort(kind="stable")
    ids, labels, lengths = ids[order], rows.labels[order, :length], lengths[order]
    inputs = ids[:, :-1]  # nothing follows the last token
    new = np.ones(inputs.shape, bool)
    np.not_equal(inputs[1:], inputs[:-1], out=new[1:])
    np.logical_or.accumulate(new, axis=1, out=new)
    new &= np.arange(length - 1) < lengths[:, None] - 1
    cell_of = np.flatnonzero(new)
    cells = np.zeros(new.shape, np.int32)
    cells.ravel()[cell_of] = np.arange(len(cell_of))
    np.maximum.accumulate(cells, axis=0, out=cells)  # where it is not new, it is that of a row above
    text, column = labels.nonzero()
    return PrefixTree(
        tokens=inputs.ravel()[cell_of],
        cells=cells,
        cell_of=cell_of,
        answers=cells[text, column - 1],
        targets=ids[text, column],
        text_of=order[text],
        labels=labels[text, column],
        segments=None,
        num_tokens=int(lengths.sum()),
    )


def packed_windows(rows: Rows, packing: Windows) -> PrefixTree:
    """Texts one after the other in windows. Padding is segment 0, and every cell a node of its own."""
    lengths = rows.lengths
    windows, offsets = window_positions(lengths, packing.length)
    text = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shape = (int(windows[-1]) + 1, packing.length)
    tokens, segments = np.full(shape, END_ID, np.int64), np.zeros(shape, np.int32)
    there = (windows[text], offsets[text] + column)
    tokens[there], segments[there] = rows.input_ids[text, column], 1 + text
    text, column = rows.labels.nonzero()
    every_cell = np.arange(tokens.size)
    return PrefixTree(
        tokens=tokens.ravel(),
        cells=every_cell.reshape(shape),
        cell_of=every_cell,
        answers=windows[text] * packing.length + offsets[text] + column - 1,
        targets=rows.input_ids[text, column],
        text_of=text,
        labels=rows.labels[text, column],
        segments=None if packing.attend_across else segments,
        num_tokens=int(lengths.sum()),
    )


def window_positions(lengths: Indices, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Window of each text, and where in it the text begins: one after the other, never cut.

    Raises ValueError for a text that is longer than a window.
    """
    if lengths.max() > window:
        raise ValueError(f"training.packing.length: a text has {lengths.max()} tokens, a window only {window}")
    windows, offsets = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    number, filled = 0, 0
    for place, length in enumerate(lengths.tolist()):
        if filled + length > window:
            number, filled = number + 1, 0
        windows[place], offsets[place] = number, filled
        filled += length
    return windows, offsets
