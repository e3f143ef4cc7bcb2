"""Batches in which every token after the first is measured, for tests that compare logits at every position."""

from dataclasses import replace

import numpy as np
import torch

from raycap.learner.batches import Batch
from raycap.learner.model import CPU, Llama
from raycap.tokens.composer import Rows
from raycap.tokens.pieces import cell_type


def whole_rows(tokens: torch.Tensor, vocab_size: int) -> Batch:
    """Convert tokens (B, T + 1) into a batch of one replica with B T measured tokens."""
    cells = np.ones(tokens.shape, cell_type(vocab_size))
    cells["token"] = tokens.numpy()
    cells["label"][:, 0] = 0
    rows = Rows(cells, np.zeros(len(tokens), np.uint8))
    return Batch.of([rows], vocab_size, CPU)


def logits_of(model: Llama, input_ids: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (B, T, V) of a single model after every token of input_ids (B, T)."""
    batch = whole_rows(torch.cat([input_ids, input_ids[:, :1]], dim=1), model.vocab_size)
    if segments is not None:
        batch = replace(batch, segments=segments[None])
    logits = torch.empty(*input_ids.shape, model.vocab_size)
    with torch.no_grad():
        index = batch.text_of[0], batch.position_ids[0][batch.answer_nodes[0]]
        logits[index] = (model(batch) @ model.unembedding.mT)[0]
    return logits
