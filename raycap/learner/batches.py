"""Rows as a model takes them: cut to the longest, or packed into windows, on a device."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.learner.tokenizers import END_ID
from raycap.learner.tokens import Rows
from raycap.spec import OnePerRow, PackingSpec, Windows

ONE_PER_ROW = OnePerRow()


@dataclass(frozen=True)
class Batch:
    """Texts on a device. Letters as in model.py; A measured tokens, n texts."""

    input_ids: Tensor  # (B, T), without the last token, which nothing follows
    positions: Tensor  # (A,), where in the flattened input a measured token is predicted
    targets: Tensor  # (A,), the measured tokens
    text_of: Tensor  # (A,), the text each of them belongs to
    labels: Tensor  # (A,), 1 + the measure each of them belongs to
    corpus: Tensor  # (n,), the corpus of each text
    segments: Tensor | None  # (B, T), which tokens see each other; None where all in a row do
    num_tokens: int
    """Tokens of all texts, padding not counted."""

    @classmethod
    def of(cls, rows: Rows, device: torch.device, packing: PackingSpec = ONE_PER_ROW) -> Self:
        """Rows as they are, or packed into windows."""
        text, column = rows.labels.nonzero()
        lengths = rows.lengths
        segments: NDArray[np.int32] | None = None
        if isinstance(packing, Windows):
            windows, offsets = places_in_windows(lengths, packing.length)
            input_ids, segments = _windows(rows, lengths, windows, offsets, packing.length)
            positions = windows[text] * packing.length + offsets[text] + column - 1
            if packing.attend_across:
                segments = None
        else:
            length = int(lengths.max()) - 1
            input_ids = np.ascontiguousarray(rows.input_ids[:, :length])
            positions = text * length + column - 1

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            input_ids=tensor(input_ids),
            positions=tensor(positions),
            targets=tensor(rows.input_ids[text, column].astype(np.int64)),
            text_of=tensor(text),
            labels=tensor(rows.labels[text, column].astype(np.int64)),
            corpus=tensor(rows.corpus.astype(np.int64)),
            segments=None if segments is None else tensor(segments),
            num_tokens=int(lengths.sum()),
        )


def places_in_windows(lengths: NDArray[np.integer], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def _windows(
    rows: Rows, lengths: NDArray[np.integer], windows: NDArray[np.int64], offsets: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens and segments of all windows, each (W, length); padding is segment 0."""
    text = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shape = (int(windows[-1]) + 1, length)
    input_ids, segments = np.full(shape, END_ID, np.int32), np.zeros(shape, np.int32)
    there = (windows[text], offsets[text] + column)
    input_ids[there], segments[there] = rows.input_ids[text, column], 1 + text
    return input_ids, segments
