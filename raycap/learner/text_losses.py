"""The losses of a model on every text, as a table with one row per text and measured part (an analysis of stored models).

Columns of texts.parquet:

id, kind, population, split, trained     the text; ids are those of its corpus
subject, part                            the measured part
loss_bits, rank, right                   its loss; largest rank of a token, 1 for the most probable; whether it is 1 for all
uniform_bits                             loss of a model that knows only the distribution of the answers
evaluated                                whether the text is in the sample that evaluations in training use
exposures                                mean number of times that a trained text of the kind was trained on; null under a
                                         curriculum

Questions only:

person, relation_1, bridge_1, ...        the people and relations on the way; people are indices into the population
alone_1_bits, ...                        loss of each hop asked alone, if the trial has one-hop questions
trained_1, ...                           number of trained questions of this kind with the same fact at this hop
in_degree                                number of relations of people that lead to the last bridge
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.facts.corpus import NAME_SUBJECT, SPLITS, TRAIN, VOID, Corpus, Ids, trained_mask
from raycap.facts.entropy import answer_bits
from raycap.facts.order import Mix
from raycap.facts.question_columns import MAX_HOPS, QuestionColumns
from raycap.facts.questions import Questions
from raycap.learner.evaluation import Sample, samples_of, text_losses
from raycap.learner.kept_models import LoadedModel
from raycap.results import Part, TextLosses
from raycap.spec import Kind, SelectionScheme
from raycap.storage.inspections import TEXTS_FILE

TEXTS_PER_GROUP = 2**17
"""Number of texts in a row group of the file, which bounds memory."""
WORDS = pa.dictionary(pa.int16(), pa.string())
HOPS = range(1, MAX_HOPS + 1)
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "kind": WORDS,
        "population": pa.int8(),
        "split": WORDS,
        "trained": pa.bool_(),
        "subject": WORDS,
        "part": WORDS,
        "loss_bits": pa.float64(),
        "rank": pa.int32(),
        "right": pa.bool_(),
        "uniform_bits": pa.float64(),
        "evaluated": pa.bool_(),
        "exposures": pa.float64(),
        "person": pa.int32(),
        **{f"relation_{hop}": WORDS for hop in HOPS[:-1]},
        **{f"bridge_{hop}": pa.int32() for hop in HOPS[:-1]},
        **{f"alone_{hop}_bits": pa.float64() for hop in HOPS},
        **{f"trained_{hop}": pa.int64() for hop in HOPS},
        "in_degree": pa.int64(),
    }
)


def write_text_losses(loaded: LoadedModel, options: dict[str, Any], folder: Path) -> TextLosses:
    """Write texts.parquet into a folder, and return its number of rows by kind."""
    alone: dict[int, NDArray[np.float64]] = {}  # losses of facts asked alone, by population
    num_rows: dict[str, int] = {}
    with pq.ParquetWriter(folder / TEXTS_FILE, SCHEMA, compression="zstd") as writer:
        samples = enumerate(samples_of(loaded.data))
        for index, sample in sorted(samples, key=lambda each: each[1].composer.corpus.kind.hops):
            corpus, population = sample.composer.corpus, sample.population
            if corpus.kind is Kind.ONE_HOP and isinstance(corpus, Questions):
                num_facts = corpus.profiles.num_profiles * len(corpus.profiles.schema.subjects)
                alone[population] = np.full(num_facts, np.nan)
            for batch in _batches(loaded, sample, index, alone.get(population)):
                writer.write_batch(batch, row_group_size=batch.num_rows)
                num_rows[corpus.kind] = num_rows.get(corpus.kind, 0) + batch.num_rows
    return TextLosses(num_rows=num_rows)


def _batches(
    loaded: LoadedModel, sample: Sample, index: int, alone: NDArray[np.float64] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one corpus. Losses of one-hop questions are stored in `alone`, those of other kinds read from it."""
    composer, corpus = sample.composer, sample.composer.corpus
    codes = np.full(corpus.num_ids, TRAIN, np.uint8) if corpus.split_codes is None else corpus.split_codes
    is_evaluated = np.zeros(corpus.num_ids, bool)
    is_evaluated[sample.ids] = True
    all_ids = np.flatnonzero(codes != VOID)
    subjects = [measure.subject for measure in corpus.measures]
    facts = corpus.profiles.facts
    uniform = answer_bits(facts, SelectionScheme.SET) | {NAME_SUBJECT: math.log2(facts.num_names)}
    uniform_bits = np.array([uniform.get(subject, np.nan) for subject in subjects])
    names = tuple(dict.fromkeys(subjects))
    parts = tuple(Part)
    subject_codes = np.array([names.index(subject) for subject in subjects])
    part_codes = np.array([parts.index(measure.part) for measure in corpus.measures])
    exposures = _exposures(loaded, index)
    columns_of = QuestionColumns(corpus) if isinstance(corpus, Questions) else None
    precision = loaded.spec.training.precision
    for begin in range(0, len(all_ids), TEXTS_PER_GROUP):
        ids = all_ids[begin : begin + TEXTS_PER_GROUP]
        shape = len(ids), len(subjects)
        bits, ranks, contains = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool)
        for batch in text_losses(loaded.model, composer, ids, precision, ranked=True):
            assert batch.ranks is not None
            bits[batch.part], ranks[batch.part], contains[batch.part] = batch.bits, batch.ranks, batch.contains
        text, measure = np.nonzero(contains)
        is_trained = trained_mask(corpus.kind, codes[ids])
        columns: dict[str, Any] = {
            "id": ids[text],
            "kind": _words(np.zeros(len(text), np.int16), (corpus.kind,)),
            "population": np.full(len(text), sample.population),
            "split": _words(codes[ids][text], SPLITS),
            "trained": is_trained[text],
            "subject": _words(subject_codes[measure], names),
            "part": _words(part_codes[measure], parts),
            "loss_bits": bits[text, measure],
            "rank": ranks[text, measure],
            "right": ranks[text, measure] == 1,
            "uniform_bits": pa.array(uniform_bits[measure], from_pandas=True),
            "evaluated": is_evaluated[ids][text],
            "exposures": None if exposures is None else np.where(is_trained, exposures, 0.0)[text],
        }
        if columns_of is not None:
            columns |= _question_columns(corpus, columns_of, ids, text, bits.sum(axis=1), alone)
        arrays = [_array(columns.get(field.name), len(text), field.type) for field in SCHEMA]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _question_columns(
    corpus: Corpus,
    columns_of: QuestionColumns,
    ids: Ids,
    text: NDArray[np.int64],
    loss_bits: NDArray[np.float64],
    alone: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Return the columns that only questions have. `text` has the question of each row, `loss_bits` the loss of each."""
    relations = corpus.profiles.schema.relations
    columns: dict[str, Any] = {
        name: _words(values[text], relations) if name.startswith("relation_") else values[text]
        for name, values in columns_of.of(ids).items()
    }
    if alone is not None:
        facts = columns_of.facts(ids)
        if corpus.kind is Kind.ONE_HOP:
            alone[facts[:, 0]] = loss_bits  # of several phrasings, the last one
        for hop, facts_of_hop in enumerate(facts.T, start=1):
            columns[f"alone_{hop}_bits"] = pa.array(alone[facts_of_hop][text], from_pandas=True)
    return columns


def _array(values: Any, size: int, dtype: pa.DataType) -> pa.Array:
    """Return values as an Arrow array of a type; nulls if there are none."""
    if values is None:
        return pa.nulls(size, dtype)
    return (values if isinstance(values, pa.Array) else pa.array(values)).cast(dtype)


def _words(codes: NDArray[np.integer], words: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int16)), pa.array(list(map(str, words)), pa.string())
    )


def _exposures(loaded: LoadedModel, index: int) -> float | None:
    """Return how often a trained text of a corpus was trained on, on average; None under a curriculum."""
    if loaded.spec.training.curriculum:
        return None
    order = loaded.data.order((Mix(0, loaded.data.shares()),))
    size = order.sizes[index]
    return order.num_texts_before(loaded.moment.step)[index] / size if size else 0.0
