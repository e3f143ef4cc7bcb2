"""Losses of whole populations in bits. The only home of nats.

The loss of a text is the sum over its measured tokens of -log p(token | everything before); every part of every text is
kept apart by kind, subject, part and split.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.corpus import NOTHING, SPLITS, TRAIN, VOID, Corpus, Ids
from raycap.learner.batches import Batch
from raycap.learner.curriculum import LOSS_UNIT_BITS
from raycap.learner.fused_ops import cross_entropy
from raycap.learner.model import Llama
from raycap.results import HISTOGRAM_EDGES_BITS, LossRow, LossTable
from raycap.spec import Precision
from raycap.tokens.composer import Composer

BITS_PER_NAT = 1 / math.log(2)
MAX_EVALUATION_ROWS = 4096
MAX_LOGITS = 2**25
"""Logits computed at once in an evaluation; 128 MiB in fp32."""
MAX_TEXTS_COUNTED = 2**17
AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class DivergedError(ArithmeticError):
    """Losses are no longer finite numbers."""


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a precision computes."""
    return torch.autocast(device.type, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST)


def token_losses(model: Llama, batch: Batch) -> Tensor:
    """Loss of every measured token, (R, A), in nats: `in_loss_units` makes it fit to sum and report."""
    return cross_entropy(model(batch), model.unembedding, batch.targets)


def in_loss_units(nats: Tensor) -> Tensor:
    """Losses in nats as whole units of LOSS_UNIT_BITS."""
    return (nats * (BITS_PER_NAT / LOSS_UNIT_BITS)).round().long()


@dataclass(frozen=True)
class Sample:
    """Which texts of a corpus are evaluated: single hops all, more hops at most so many of each split."""

    composer: Composer
    population: int
    ids: Ids
    splits: NDArray[np.uint8]  # (ids,), split code of each
    num_texts: NDArray[np.int64]
    """How many texts hold each measure by split code, evaluated or not: (splits, measures)."""

    @classmethod
    def of(cls, composer: Composer, population: int, *, size: int, seed: int) -> Self:
        """All texts, or about `size` of each split, as many of each subject, drawn without replacement from `seed`."""
        corpus = composer.corpus
        codes = corpus.split_codes
        if codes is None:
            codes = np.full(corpus.num_ids, TRAIN, np.uint8)
        if corpus.kind.hops < 2:
            ids = np.flatnonzero(codes != VOID)
            return cls(composer, population, ids, codes[ids], _num_texts(corpus, ids, codes[ids]))
        num_subjects = len(corpus.profiles.schema.subjects)  # the last digit of a question's id is its subject
        rng = np.random.default_rng([seed, corpus.kind.hops])
        counts = np.zeros((len(SPLITS), len(corpus.measures)), np.int64)
        chosen = []
        for split in np.unique(codes[codes != VOID]):
            ids = np.flatnonzero(codes == split)
            totals = np.bincount(ids % num_subjects, minlength=num_subjects)
            counts[split] = np.tile(totals, len(corpus.measures) // num_subjects)
            if len(ids) > size:
                each = max(2, size // int(np.count_nonzero(totals)))
                strata = np.split(ids[np.argsort(ids % num_subjects, kind="stable")], np.cumsum(totals)[:-1])
                drawn = [rng.choice(of, each, replace=False) if len(of) > each else of for of in strata]
                ids = np.concatenate(drawn)
            chosen.append(ids)
        ids = np.sort(np.concatenate(chosen))
        return cls(composer, population, ids, codes[ids], counts)


def _num_texts(corpus: Corpus, ids: Ids, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many of some texts hold each measure, by split code."""
    counts = np.zeros((len(SPLITS), 1 + len(corpus.measures)), np.int64)
    for begin in range(0, len(ids), MAX_TEXTS_COUNTED):
        part = slice(begin, begin + MAX_TEXTS_COUNTED)
        held = np.zeros((len(ids[part]), 1 + len(corpus.measures)), bool)
        for slot in corpus.slots(ids[part]):
            there = np.not_equal(slot.row, NOTHING)
            held[np.arange(len(held)), np.where(there, slot.label, 0)] = True
        for split in np.unique(codes[part]):
            counts[split] += held[codes[part] == split].sum(axis=0)
    return counts[:, 1:]


@torch.no_grad()
def losses(model: Llama, sample: Sample, *, precision: Precision, rank: int = 0, world_size: int = 1) -> LossTable:
    """Losses of the texts of a sample to a single model; of several ranks each evaluates its share, and the tables add up.

    Raises DivergedError if a loss is not finite.
    """
    corpus, ids = sample.composer.corpus, sample.ids[rank::world_size]
    shape = sample.num_texts.shape
    sums, squares, counts = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    histograms = np.zeros((*shape, 1 + len(HISTOGRAM_EDGES_BITS)), np.int64)
    for part, bits, held in _text_losses(model, sample.composer, ids, precision):
        if not np.isfinite(bits).all():
            bad = (~np.isfinite(bits)).any(axis=1).sum()
            raise DivergedError(f"the losses of {bad} {corpus.kind} texts are not finite")
        splits = sample.splits[rank::world_size][part]
        for split in np.unique(splits):
            of_split = splits == split
            sums[split] += bits[of_split].sum(axis=0)
            squares[split] += (bits[of_split] ** 2).sum(axis=0)
            counts[split] += held[of_split].sum(axis=0)
        bins = np.searchsorted(HISTOGRAM_EDGES_BITS, bits, side="right")
        np.add.at(histograms, (splits[:, None], np.arange(shape[1]), bins), held)
    rows = [
        LossRow(
            kind=corpus.kind,
            subject=measure.subject,
            part=measure.part,
            split=SPLITS[split],
            population=sample.population,
            sum_bits=float(sums[split, place]),
            sum_squares_bits2=float(squares[split, place]),
            num_evaluated=int(counts[split, place]),
            num_texts=int(sample.num_texts[split, place]),
            histogram=tuple(histograms[split, place].tolist()),
        )
        for split in range(len(SPLITS))
        for place, measure in enumerate(corpus.measures)
        if sample.num_texts[split, place]
    ]
    return LossTable(rows=tuple(rows))


def _text_losses(
    model: Llama, composer: Composer, ids: Ids, precision: Precision
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.bool_]]]:
    """Batch by batch: which of the ids, loss of each text by measure in bits, and whether it holds the measure."""
    num_measures = len(composer.corpus.measures)
    num_rows = min(
        MAX_EVALUATION_ROWS, max(1, int(MAX_LOGITS / model.vocab_size / composer.token_counts.mean_measured))
    )
    for begin in range(0, len(ids), num_rows):
        part = slice(begin, begin + num_rows)
        batch = Batch.of([composer.compose(ids[part], composer.row_length)], model.vocab_size, model.device)
        with autocast(precision, model.device):
            (nats,) = token_losses(model, batch)
        (num_texts,) = batch.num_texts
        place = batch.text_of[0] * num_measures + batch.labels[0] - 1
        sums = torch.zeros(2, num_texts * num_measures, dtype=torch.float64, device=model.device)
        sums.index_add_(1, place, torch.stack([nats.double(), torch.ones_like(nats, dtype=torch.float64)]))
        bits, tokens = sums.view(2, num_texts, num_measures).cpu().numpy()
        yield part, bits * BITS_PER_NAT, tokens > 0
