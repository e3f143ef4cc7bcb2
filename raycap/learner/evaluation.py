"""Losses over whole populations in bits, by kind of text, subject, part and split.

The loss of a text is the sum of -log p(token | all tokens before) over its measured tokens. The model's losses are in
nats; they are converted to bits before they are summed or stored (docs/science.md#symbols).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.corpus import NOTHING, SPLITS, TRAIN, VOID, Corpus, Ids
from raycap.learner.batches import Batch
from raycap.learner.curriculum import LOSS_UNIT_BITS
from raycap.learner.language_model import LanguageModel
from raycap.results import HISTOGRAM_EDGES_BITS, LossRow, LossTable
from raycap.spec import Precision
from raycap.tokens.composer import Composer
from raycap.tokens.training_data import TrainingData

BITS_PER_NAT = 1 / math.log(2)
MAX_EVALUATION_ROWS = 4096
MAX_LOGITS = 2**25
"""Maximum number of logits in one evaluation batch; 128 MiB in fp32."""
MAX_TEXTS_COUNTED = 2**17
"""Number of texts whose measures are counted at once, which bounds memory."""
AUTOCAST_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class DivergedError(ArithmeticError):
    """Raised when losses are no longer finite."""


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context for a precision; it is disabled for fp32."""
    return torch.autocast(
        device.type, AUTOCAST_DTYPES.get(precision, torch.bfloat16), enabled=precision in AUTOCAST_DTYPES
    )


def in_loss_units(nats: Tensor) -> Tensor:
    """Convert losses in nats to integers in units of LOSS_UNIT_BITS, whose sums do not depend on their order."""
    return (nats * (BITS_PER_NAT / LOSS_UNIT_BITS)).round().long()


@dataclass(frozen=True)
class Sample:
    """The texts of a corpus that are evaluated: all of single hops, a sample of each split for more hops."""

    composer: Composer
    population: int  # index of the population among those of the trial
    ids: Ids
    groups: NDArray[np.int64]
    """Group of each text: its frequency class times the number of splits, plus its split code, (ids,)."""
    num_texts: NDArray[np.int64]
    """Number of texts that contain each measure, evaluated or not, (groups, measures)."""

    @property
    def splits(self) -> NDArray[np.int64]:
        """Split code of each text, (ids,)."""
        return self.groups % len(SPLITS)

    @classmethod
    def of(cls, composer: Composer, population: int, *, size: int, seed: int) -> Self:
        """Return all texts of a single-hop corpus, else a sample of about `size` texts per split, stratified by subject.

        The sample has equally many texts of each subject and frequency class, drawn without replacement with `seed`.
        """
        corpus = composer.corpus
        codes = corpus.split_codes
        if codes is None:
            codes = np.full(corpus.num_ids, TRAIN, np.uint8)
        if corpus.kind.hops < 2:
            ids = np.flatnonzero(codes != VOID)
            groups = codes[ids] + len(SPLITS) * _classes(corpus, ids)
            return cls(composer, population, ids, groups, _num_texts(corpus, ids, groups))
        num_subjects = len(corpus.profiles.schema.subjects)  # the last digit of a question's id is its subject
        rng = np.random.default_rng([seed, corpus.kind.hops])
        num_classes = _num_classes(corpus)
        counts = np.zeros((num_classes, len(SPLITS), len(corpus.measures)), np.int64)
        chosen = []
        for split in np.unique(codes[codes != VOID]):
            ids = np.flatnonzero(codes == split)
            stratum = ids % num_subjects + num_subjects * _classes(corpus, ids)
            totals = np.bincount(stratum, minlength=num_subjects * num_classes)
            by_class = totals.reshape(num_classes, num_subjects)
            counts[:, split] = np.tile(by_class, len(corpus.measures) // num_subjects)
            if len(ids) > size:
                per_stratum = max(2, size // int(np.count_nonzero(totals)))
                strata = np.split(ids[np.argsort(stratum, kind="stable")], np.cumsum(totals)[:-1])
                drawn = [rng.choice(s, per_stratum, replace=False) if len(s) > per_stratum else s for s in strata]
                ids = np.concatenate(drawn)
            chosen.append(ids)
        ids = np.sort(np.concatenate(chosen))
        groups = codes[ids] + len(SPLITS) * _classes(corpus, ids)
        return cls(composer, population, ids, groups, counts.reshape(-1, len(corpus.measures)))


def samples_of(data: TrainingData) -> list[Sample]:
    """Return the sample of every corpus that the evaluations of a trial use."""
    training = data.spec.training
    return [
        Sample.of(composer, population, size=training.evaluation_sample, seed=training.order_seed)
        for composer, population in zip(data.composers, data.population_of, strict=True)
    ]


def _num_classes(corpus: Corpus) -> int:
    """Return the number of frequency classes of the people, 1 if all are equally frequent."""
    frequencies = corpus.profiles.frequencies
    return len(frequencies.names) if frequencies else 1


def _classes(corpus: Corpus, ids: Ids) -> NDArray[np.int64]:
    """Return the frequency class of the person that each text is about."""
    frequencies = corpus.profiles.frequencies
    if frequencies is None:
        return np.zeros(len(ids), np.int64)
    classes: NDArray[np.int64] = frequencies.class_of[corpus.people(ids)].astype(np.int64)
    return classes


def _num_texts(corpus: Corpus, ids: Ids, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of texts that contain each measure, (groups, measures); `groups` are those of `ids`."""
    counts = np.zeros((_num_classes(corpus) * len(SPLITS), 1 + len(corpus.measures)), np.int64)
    for begin in range(0, len(ids), MAX_TEXTS_COUNTED):
        part = slice(begin, begin + MAX_TEXTS_COUNTED)
        contains = np.zeros((len(ids[part]), 1 + len(corpus.measures)), bool)
        for slot in corpus.slots(ids[part]):
            filled = np.not_equal(slot.row, NOTHING)
            contains[np.arange(len(contains)), np.where(filled, slot.label, 0)] = True  # column 0: empty slots
        for group in np.unique(groups[part]):
            counts[group] += contains[groups[part] == group].sum(axis=0)
    return counts[:, 1:]


@torch.no_grad()
def losses(
    model: LanguageModel, sample: Sample, *, precision: Precision, rank: int = 0, world_size: int = 1
) -> LossTable:
    """Return the losses of a single model on the texts of a sample.

    With several ranks, each evaluates every `world_size`-th text, and the sum of their tables covers the sample.

    Raises DivergedError if a loss is not finite.
    """
    ids = sample.ids[rank::world_size]
    batches = text_losses(model, sample.composer, ids, precision)
    return tabulate(sample, sample.groups[rank::world_size], batches)


def tabulate(sample: Sample, groups: NDArray[np.int64], batches: Iterable["TextBatch"]) -> LossTable:
    """Return the sums of losses of some texts of a sample.

    Args:
        sample: The sample.
        groups: Groups of the texts.
        batches: Losses of the texts, in the order of their groups.

    Raises DivergedError if a loss is not finite.
    """
    corpus, shape = sample.composer.corpus, sample.num_texts.shape
    sums, squares, counts = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    histograms = np.zeros((*shape, 1 + len(HISTOGRAM_EDGES_BITS)), np.int64)
    for part, bits, contains, _ in batches:
        if not np.isfinite(bits).all():
            bad = (~np.isfinite(bits)).any(axis=1).sum()
            raise DivergedError(f"the losses of {bad} {corpus.kind} texts are not finite")
        of_batch = groups[part]
        for group in np.unique(of_batch):
            of_group = of_batch == group
            sums[group] += bits[of_group].sum(axis=0)
            squares[group] += (bits[of_group] ** 2).sum(axis=0)
            counts[group] += contains[of_group].sum(axis=0)
        bins = np.searchsorted(HISTOGRAM_EDGES_BITS, bits, side="right")
        np.add.at(histograms, (of_batch[:, None], np.arange(shape[1]), bins), contains)
    rows = [
        LossRow(
            kind=corpus.kind,
            subject=measure.subject,
            part=measure.part,
            split=SPLITS[group % len(SPLITS)],
            population=sample.population,
            frequency_class=group // len(SPLITS),
            sum_bits=float(sums[group, column]),
            sum_squares_bits2=float(squares[group, column]),
            num_evaluated=int(counts[group, column]),
            num_texts=int(sample.num_texts[group, column]),
            histogram=tuple(histograms[group, column].tolist()),
        )
        for group in range(len(sample.num_texts))
        for column, measure in enumerate(corpus.measures)
        if sample.num_texts[group, column]
    ]
    return LossTable(rows=tuple(rows))


class TextBatch(NamedTuple):
    """Losses of some texts of a corpus."""

    part: slice
    """The texts, as a slice of the ids that were given."""
    bits: NDArray[np.float64]
    """Loss of each measure, (texts, measures)."""
    contains: NDArray[np.bool_]
    """Which measures each text contains, (texts, measures)."""
    ranks: NDArray[np.int64] | None
    """Largest rank of a token of each measure among all tokens, (texts, measures): 1 if each is the most probable one."""


@torch.no_grad()
def text_losses(
    model: LanguageModel, composer: Composer, ids: Ids, precision: Precision, *, ranked: bool = False
) -> Iterator[TextBatch]:
    """Yield the losses of a single model on texts in batches; with `ranked` also the ranks of their tokens."""
    num_measures = len(composer.corpus.measures)
    num_rows = rows_per_batch(model, composer)
    for begin in range(0, len(ids), num_rows):
        part = slice(begin, begin + num_rows)
        batch = Batch.of([composer.compose(ids[part], composer.row_length)], model.vocab_size, model.device)
        with autocast(precision, model.device):
            (nats,) = model.token_losses(batch)
            ranks_of_tokens = token_ranks(model.answer_logits(batch), batch.targets)[0] if ranked else None
        (num_texts,) = batch.num_texts
        # Entry (text, measure) of a flattened table.
        entry = batch.text_of[0] * num_measures + batch.labels[0] - 1
        bits, contains = bits_by_measure(nats, entry, (num_texts, num_measures))
        ranks = None
        if ranks_of_tokens is not None:
            largest = torch.zeros(num_texts * num_measures, dtype=torch.int64, device=model.device)
            largest.scatter_reduce_(0, entry, ranks_of_tokens, "amax")
            ranks = largest.view(num_texts, num_measures).cpu().numpy()
        yield TextBatch(part, bits, contains, ranks)


def rows_per_batch(model: LanguageModel, composer: Composer) -> int:
    """Return the largest number of texts in an evaluation batch."""
    by_logits = int(MAX_LOGITS / model.vocab_size / composer.token_counts.mean_measured)
    return min(MAX_EVALUATION_ROWS, max(1, by_logits))


def bits_by_measure(
    nats: Tensor, entry: Tensor, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the summed losses of each measure of each text in bits, and which measures each text contains.

    Args:
        nats: Loss of each measured token, (A,).
        entry: Entry of each token in the flattened table of texts and measures, (A,).
        shape: Numbers of texts and measures.
    """
    sums = torch.zeros(2, shape[0] * shape[1], dtype=torch.float64, device=nats.device)  # losses; numbers of tokens
    sums.index_add_(1, entry, torch.stack([nats.double(), torch.ones_like(nats, dtype=torch.float64)]))
    nats_of, tokens = sums.view(2, *shape).cpu().numpy()
    return nats_of * BITS_PER_NAT, tokens > 0


def token_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the rank of every measured token among all tokens, (R, A): 1 + the number of tokens with larger logits."""
    ranks: Tensor = 1 + (logits > logits.gather(2, targets[..., None])).sum(dim=2)
    return ranks
