"""Question by question: whether the answers to two-hop questions are composed of their hops or memorised.

The model's probabilities p1 and p2 of the hops asked alone predict that of a composed answer, p1 p2 + (1 - p1) / n, if the
answer is uniform over n values once the first hop is wrong. Unlike the inversion of a mean loss, this assumes nothing about
the distribution of losses over questions. See docs/science.md#per-question.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.analysis.inversion import hop_loss_bits
from raycap.results import InspectionRecord, Part, TextLosses
from raycap.results.composition import COMPOSITION, Composition, Estimate, Mechanism, SplitComposition
from raycap.spec import Kind, ModelAnalysis, Split
from raycap.storage import Storage
from raycap.storage.inspections import TEXTS_FILE, inspection_folder, read_inspections, write_inspection

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KNOWN_BITS = 1.0
"""A hop is known if its loss is below this: the model assigns the right answer more than half of the probability."""
MAX_MEMORISED, MIN_MEMORISED = 0.1, 0.9
"""Composed if the interval of the memorised share lies below the first, memorised if it lies above the second."""
FACTORS = {"person": ("person",), "pair": ("person", "relation"), "bridge": ("bridge",), "subject": ("subject",)}
"""Groups of questions whose shares of the variance are reported, by the columns that define them."""
MIN_BRIDGES = 2
"""Smallest number of bridges that gives a standard error."""


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
    return Composition(
        trained=_split(trained),
        held_out=None if compared is None else _split(compared),
        memorised_share=share,
        mechanism=mechanism,
    )


def _memorised_share(trained: Questions, compared: Questions | None, learned: Estimate) -> Estimate:
    """Return the memorised share with its standard error to first order (the delta method)."""
    if compared is not None:
        shown = _mean(compared, compared.uniform_bits - compared.loss_bits)
        ratio = shown.value / learned.value
        error = math.hypot(shown.standard_error, ratio * learned.standard_error) / learned.value
        return Estimate(value=1 - ratio, standard_error=error)
    unexplained, bits = trained.composed_bits - trained.loss_bits, trained.uniform_bits - trained.loss_bits
    value = float(unexplained.sum() / bits.sum())
    error = _mean(trained, unexplained - value * bits).standard_error / learned.value
    return Estimate(value=value, standard_error=error)


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
    error = np.sqrt((deviations**2).sum() * num / (num - 1)) / len(values)
    return Estimate(value=float(values.mean()), standard_error=float(error))


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


def store_compositions(storage: Storage, trial_ids: Iterable[str]) -> list[str]:
    """Compute and store the compositions of all models of some trials with a texts.parquet, unless they are stored.

    Returns messages about files that cannot be read.
    """
    problems = []
    for trial_id in trial_ids:
        stored = read_inspections(storage, trial_id, COMPOSITION, Composition)
        done = {(record.moment, record.model_sha256) for record in stored}
        for record in read_inspections(storage, trial_id, ModelAnalysis.LOSSES, TextLosses):
            if (record.moment, record.model_sha256) in done:
                continue
            began = time.perf_counter()
            folder = inspection_folder(trial_id, ModelAnalysis.LOSSES, record.options, record.moment.step)
            try:
                with storage.filesystem.open_input_file(storage.path(f"{folder}/{TEXTS_FILE}")) as source:
                    found = read_composition(source)
            except (OSError, ValueError) as error:
                problems.append(f"{storage.location(folder)}: {error}; delete this folder and run raycap losses again")
                continue
            if found is not None:
                values = {"name": COMPOSITION, "body": found, "seconds": time.perf_counter() - began}
                write_inspection(storage, InspectionRecord[Composition](**(dict(record) | values)))
    return problems


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
