"""The residual stream of a model at single tokens: reading it, and running the model with other residuals.

Residuals are numbered in the order in which they are computed: 0 is the embeddings, 2 l - 1 the residual between the
attention and the MLP of block l, and 2 l the output of block l, for l from 1. In records, the *layer* of residual i is
i / 2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.corpus import Ids
from raycap.learner.batches import Batch, to_device
from raycap.learner.evaluation import BITS_PER_NAT
from raycap.learner.fused_ops import cross_entropy
from raycap.learner.model import Llama, Tap
from raycap.tokens.composer import Composer, Rows

MAX_ROWS = 1024
"""Largest number of texts in one batch."""


def num_residuals(model: Llama) -> int:
    """Return the number of residuals of a forward pass."""
    return 1 + 2 * len(model.layers)


def whole_rows(rows: Rows, model: Llama) -> Batch:
    """Return the batch of some texts in which each cell is a node of its own and all are answer positions.

    Equal prefixes are not shared, so that residuals of a text can be changed without changing those of other texts, and
    the last block computes every cell.
    """
    length = int(rows.lengths.max())
    ids, labels = rows.input_ids[:, :length], rows.labels[:, 1:length]
    num_rows, cells = len(ids), np.arange(len(ids) * (length - 1))[None]
    indices = to_device(cells, model.device)

    def tensor(array: NDArray[Any]) -> Tensor:
        return to_device(array.astype(np.int64).reshape(1, -1), model.device)

    return Batch(
        tokens=tensor(ids[:, :-1]),
        position_ids=indices % (length - 1),
        node_of_cell=indices,
        cell_of_node=indices,
        shape=(num_rows, length - 1),
        answer_nodes=indices,
        answer_cells=indices,
        targets=tensor(ids[:, 1:]),
        loss_mask=tensor(labels > 0).float(),
        text_of=indices // (length - 1),
        labels=tensor(labels),
        corpus=torch.zeros_like(indices),
        segments=None,
        num_texts=(num_rows,),
        num_tokens=(int(rows.lengths.sum()),),
    )


@torch.no_grad()
def read_residuals(model: Llama, composer: Composer, ids: Ids, columns: NDArray[np.integer]) -> Tensor:
    """Return the residuals of a single model at some tokens of some texts, (residuals, n, sites, H), on the CPU.

    Args:
        model: A stack of one.
        composer: Composer of the texts.
        ids: The n texts.
        columns: Column of each site in the row of each text, (n, sites).
    """
    found = torch.empty(num_residuals(model), *columns.shape, model.spec.hidden_size)
    for begin in range(0, len(ids), MAX_ROWS):
        part = slice(begin, begin + MAX_ROWS)
        batch = whole_rows(composer.compose(ids[part], composer.row_length), model)
        cells = to_device(np.arange(len(columns[part]))[:, None] * batch.shape[1] + columns[part], model.device)
        seen: list[Tensor] = []

        def keep(x: Tensor, cells: Tensor = cells, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x[0, cells])
            return x

        model(batch, keep)
        found[:, part] = torch.stack(seen).cpu()
    return found


@dataclass(frozen=True)
class Patch:
    """Residuals that replace those of n texts at one token each, wholly or within a subspace."""

    residual: int
    columns: NDArray[np.integer]  # (n,)
    values: Tensor  # (n, H)
    basis: Tensor | None = None  # (H, k), orthonormal columns that span the subspace; None for the whole space


@torch.no_grad()
def text_losses(model: Llama, rows: Rows, patch: Patch | None = None) -> NDArray[np.float64]:
    """Return the loss of the measured tokens of each text in bits, (n,), with the residuals of a patch."""
    losses = []
    for begin in range(0, len(rows), MAX_ROWS):
        part = slice(begin, begin + MAX_ROWS)
        batch = whole_rows(rows[part], model)
        num_rows, length = batch.shape
        hidden = model(batch, _tap(patch, part, length) if patch else None)
        nats = cross_entropy(hidden, model.unembedding, batch.targets) * batch.loss_mask
        losses.append(nats.view(num_rows, length).double().sum(dim=1).cpu().numpy() * BITS_PER_NAT)
    return np.concatenate(losses)


def _tap(patch: Patch, part: slice, length: int) -> Tap:
    """Return the tap that changes the residual of a patch in a batch of some of its texts."""
    columns = patch.columns[part]
    cells = torch.from_numpy(np.arange(len(columns)) * length + columns)
    index = -1

    def replace(x: Tensor) -> Tensor:
        nonlocal index
        index += 1
        if index != patch.residual:
            return x
        change = patch.values[part].to(x.device) - x[0, cells]
        if patch.basis is not None:
            basis = patch.basis.to(x.device)
            change = change @ basis @ basis.mT
        x = x.clone()
        x[0, cells] += change
        return x

    return replace
