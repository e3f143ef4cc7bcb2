"""Question by question: whether the answers to two-hop questions are composed of their hops or memorised.

The model's probabilities p1 and p2 of the hops asked alone predict that of a composed answer, p1 p2 + (1 - p1) / n, if the
answer is uniform over n values once the first hop is wrong. Unlike the inversion of a mean loss, this assumes nothing about
the distribution of losses over questions. See docs/science.md#per-question.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import reduce
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.analysis.capacity import hop_loss_bits
from raycap.results import Part
from raycap.spec import Kind, Split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KNOWN_BITS = 1.0
"""A hop is known if its loss is below this: the model assigns the right answer more than half of the probability."""
MAX_MEMORISED, MIN_MEMORISED = 0.1, 0.9
"""Composed if the interval of the memorised share lies below the first, memorised if it lies above the second."""
FACTORS = {"person": ("person",), "pair": ("person", "relation"), "bridge": ("bridge",), "subject": ("subject",)}
"""Groups of questions whose shares of the variance are reported, by the columns that define them."""
Z_95 = 1.96
MIN_BRIDGES = 2
"""Smallest number of bridges that gives a standard error."""


class Mechanism(StrEnum):
    """How answers to two-hop questions come about."""

    COMPOSED = "composed"
    """From the facts of the hops: training a question hardly helps beyond them."""
    MEMORISED = "memorised"
    """From training the question itself."""
    MIXED = "mixed"
    """From both."""
    UNDECIDED = "undecided"
    """The interval allows several of these, or the answers are not known."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over bridges, in which the questions of one bridge count as one observation."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval."""
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


@dataclass(frozen=True)
class Questions:
    """Two-hop questions of one model; every array has shape (n,)."""

    person: Ints
    relation: Ints
    bridge: Ints
    subject: Ints
    loss_bits: Floats
    uniform_bits: Floats
    first_bits: Floats
    """Loss of the first hop asked alone."""
    second_bits: Floats
    """Loss of the second hop asked alone."""

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Questions":
        return Questions(*(values[chosen] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.loss_bits)

    @property
    def num_bridges(self) -> int:
        """Number of bridges that occur."""
        return len(np.unique(self.bridge))

    @property
    def composed_bits(self) -> Floats:
        """Predicted loss of each question if its answer is composed of its hops."""
        first, second, chance = (2.0**-bits for bits in (self.first_bits, self.second_bits, self.uniform_bits))
        return -np.log2(first * second + (1 - first) * chance)


@dataclass(frozen=True)
class SplitComposition:
    """Composition of the questions of one split."""

    num_questions: int
    loss_bits: Estimate
    composed_bits: Estimate
    """Loss predicted by composing the single hops."""
    gap_bits: Estimate
    """Loss minus predicted loss: negative if more is known than composition explains."""
    num_known: int
    """Number of questions of which both hops are known."""
    known_gap_bits: Estimate | None
    """The same for these questions; None if they have fewer than MIN_BRIDGES bridges."""
    hop_bits: float
    """Mean loss of a hop by inversion of the loss of each question."""
    hop_bits_of_mean: float
    """Loss of a hop by inversion of the mean loss of each subject."""
    measured_hop_bits: float
    """Mean loss of the hops asked alone."""
    variance_shares: dict[str, float]
    """Share of the variance of losses between the groups of each factor in FACTORS, corrected for their number."""


@dataclass(frozen=True)
class Composition:
    """Evidence on the mechanism behind the two-hop answers of one model."""

    trained: SplitComposition
    held_out: SplitComposition | None
    """Untrained combinations of facts that all occur in training; None if they have fewer than MIN_BRIDGES bridges."""
    memorised_share: Estimate | None
    """Share of the learned bits of trained questions that neither composition nor untrained combinations show. None if the
    trained questions show no learned bits."""
    mechanism: Mechanism

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def composition(trained: Questions, held_out: Questions | None) -> Composition:
    """Return the composition of trained questions and of untrained combinations of known components.

    The memorised share is 1 - (U - l') / (U - l), where U is the loss of uniform guesses and l that of trained questions.
    l' is the loss of untrained combinations, or without them the loss that composition predicts. The latter gives a lower
    limit: answers that are both memorised and composable count as composed.
    """
    compared = held_out if held_out is not None and held_out.num_bridges >= MIN_BRIDGES else None
    learned = _mean(trained, trained.uniform_bits - trained.loss_bits)
    share, mechanism = None, Mechanism.UNDECIDED
    if learned.interval[0] > 0:
        share = _memorised_share(trained, compared, learned)
        mechanism = _mechanism(*share.interval)
    return Composition(_split(trained), None if compared is None else _split(compared), share, mechanism)


def _memorised_share(trained: Questions, compared: Questions | None, learned: Estimate) -> Estimate:
    """Return the memorised share with its standard error to first order (the delta method)."""
    if compared is not None:
        shown = _mean(compared, compared.uniform_bits - compared.loss_bits)
        ratio = shown.value / learned.value
        error = math.hypot(shown.standard_error, ratio * learned.standard_error) / learned.value
        return Estimate(1 - ratio, error)
    unexplained, bits = trained.composed_bits - trained.loss_bits, trained.uniform_bits - trained.loss_bits
    value = float(unexplained.sum() / bits.sum())
    return Estimate(value, _mean(trained, unexplained - value * bits).standard_error / learned.value)


def _mechanism(low: float, high: float) -> Mechanism:
    if high < MAX_MEMORISED:
        return Mechanism.COMPOSED
    if low > MIN_MEMORISED:
        return Mechanism.MEMORISED
    return Mechanism.MIXED if low > MAX_MEMORISED and high < MIN_MEMORISED else Mechanism.UNDECIDED


def _split(questions: Questions) -> SplitComposition:
    known = (questions.first_bits < KNOWN_BITS) & (questions.second_bits < KNOWN_BITS)
    gap = questions.loss_bits - questions.composed_bits
    by_subject = np.unique(questions.subject)
    of_mean = [
        hop_loss_bits(questions.loss_bits[chosen].mean(), float(questions.uniform_bits[chosen][0]), 2) * chosen.mean()
        for chosen in (questions.subject == subject for subject in by_subject)
    ]
    each = [
        hop_loss_bits(questions.loss_bits[chosen], float(questions.uniform_bits[chosen][0]), 2).sum()
        for chosen in (questions.subject == subject for subject in by_subject)
    ]
    return SplitComposition(
        num_questions=len(questions),
        loss_bits=_mean(questions, questions.loss_bits),
        composed_bits=_mean(questions, questions.composed_bits),
        gap_bits=_mean(questions, gap),
        num_known=int(known.sum()),
        known_gap_bits=_mean(questions[known], gap[known]) if questions[known].num_bridges >= MIN_BRIDGES else None,
        hop_bits=float(sum(each)) / len(questions),
        hop_bits_of_mean=float(sum(of_mean)),
        measured_hop_bits=float((questions.first_bits + questions.second_bits).mean() / 2),
        variance_shares={name: _variance_share(questions, names) for name, names in FACTORS.items()},
    )


def _mean(questions: Questions, values: Floats) -> Estimate:
    """Return the mean of values with its standard error, clustered by bridge."""
    _, cluster = np.unique(questions.bridge, return_inverse=True)
    deviations = np.bincount(cluster, values - values.mean())
    num = len(deviations)
    return Estimate(float(values.mean()), float(np.sqrt((deviations**2).sum() * num / (num - 1)) / len(values)))


def _variance_share(questions: Questions, names: Sequence[str]) -> float:
    """Return the share of the variance of losses that lies between groups, epsilon squared.

    It is 1 - MS_within / MS_total, which is 0 on average for groups drawn at random, however many there are.
    """
    _, group = np.unique(np.stack([getattr(questions, name) for name in names]), axis=1, return_inverse=True)
    group, losses = group.reshape(-1), questions.loss_bits
    counts = np.bincount(group)
    within = losses - (np.bincount(group, losses) / counts)[group]
    total = float(((losses - losses.mean()) ** 2).sum())
    if total == 0 or len(losses) <= len(counts):
        return 0.0
    return 1 - float((within**2).sum()) / (len(losses) - len(counts)) / (total / (len(losses) - 1))


SPLITS = (Split.TRAIN, Split.TUPLES)
COLUMNS = ("person", "relation_1", "bridge_1", "subject", "loss_bits", "uniform_bits", "alone_1_bits", "alone_2_bits")
"""Columns of texts.parquet in the order of the fields of Questions."""


# --- texts.parquet ----------------------------------------------------------------------------------------------------


def read_composition(source: BinaryIO) -> Composition | None:
    """Return the composition of a model from its texts.parquet.

    Returns None without trained two-hop and one-hop questions, and for chains of thought, which measure every hop.
    """
    table = pa.concat_tables(list(_two_hop_rows(source)))
    if pc.any(pc.equal(table["part"], str(Part.CHAIN))).as_py():
        return None
    trained, held_out = (_questions(table.filter(pc.equal(table["split"], str(split)))) for split in SPLITS)
    return composition(trained, held_out) if trained.num_bridges >= MIN_BRIDGES else None


def _two_hop_rows(source: BinaryIO) -> Iterator[pa.Table]:
    """Yield the rows of two-hop questions of SPLITS of which both hops were asked alone, by row group."""
    file = pq.ParquetFile(source)
    for index in range(file.num_row_groups):
        table = file.read_row_group(index, columns=["kind", "split", "part", *COLUMNS])
        text = {name: table[name].cast(pa.string()) for name in ("kind", "split", "part")}
        conditions = (
            pc.equal(text["kind"], str(Kind.TWO_HOP)),
            pc.is_in(text["split"], pa.array(list(map(str, SPLITS)))),
            pc.is_valid(table["alone_1_bits"]),
            pc.is_valid(table["alone_2_bits"]),
        )
        words = {name: table[name].cast(pa.string()) for name in ("relation_1", "subject")}
        columns = {
            "split": text["split"],
            "part": text["part"],
            **{name: words.get(name, table[name]) for name in COLUMNS},
        }
        yield pa.table(columns).filter(reduce(pc.and_, conditions))


def _questions(table: pa.Table) -> Questions:
    arrays = []
    for name in COLUMNS:
        column = table[name]
        if pa.types.is_string(column.type):
            column = column.combine_chunks().dictionary_encode().indices
        arrays.append(column.to_numpy())
    return Questions(*arrays)
