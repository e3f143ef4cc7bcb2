"""From texts to rows of tokens, composed from pre-tokenised pieces and never from text. No torch here.

A text is a chain of pieces (facts/corpus.py), each tokenised once per population:

    "Question: What was" | " James Lee Smith" | "'s parent" | "'s employer" | "? Answer:" | " Heron Security" | "<|end|>"

Both tokenizers split texts at the seams between pieces, so a row equals the tokens of the whole text (a property test
proves it), and what is measured is known with the row instead of being searched for.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from raycap.facts.corpus import (
    NOTHING,
    Corpus,
    Ids,
    Slot,
    Table,
    TrainedIds,
    WithoutCaches,
    answer_values,
    possessive,
)
from raycap.facts.profiles import IntArray, Profiles
from raycap.learner.tokenizers import END_ID, value_words
from raycap.spec import Kind

MAX_TEXTS_COUNTED = 200_000
"""Tokens are counted over all texts up to this number, and over as many evenly spaced ones beyond it."""


@dataclass(frozen=True)
class PieceTable:
    """Tokens of many pieces: `tokens` (n + 1, longest), padded with END_ID, and `lengths` (n + 1,); the last is NOTHING."""

    tokens: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, pieces: list[list[int]]) -> "PieceTable":
        """A table of some pieces."""
        lengths = np.array([*(len(piece) for piece in pieces), 0], np.int32)
        tokens = np.full((len(lengths), max(lengths)), END_ID, np.int32)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = [token for piece in pieces for token in piece]
        return cls(tokens, lengths)

    @cached_property
    def uniform(self) -> bool:
        """Whether all pieces have the same number of tokens."""
        return bool((self.lengths[:-1] == self.tokens.shape[1]).all())


@dataclass(frozen=True)
class Rows:
    """Texts as tokens, one per row, padded on the right with END_ID."""

    input_ids: IntArray  # (n, length)
    labels: NDArray[np.uint8]  # (n, length), 0 where nothing is measured, else 1 + the measure of the row's corpus
    corpus: NDArray[np.uint8]  # (n,), place of the corpus among the trial's

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice | NDArray[np.integer]) -> "Rows":
        return Rows(self.input_ids[part], self.labels[part], self.corpus[part])

    @classmethod
    def concatenate(cls, parts: list["Rows"]) -> "Rows":
        """Rows of one length, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.corpus for part in parts]),
        )

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row up to the last that is measured, (n,)."""
        return self.labels.shape[1] - (self.labels[:, ::-1] > 0).argmax(axis=1)


@dataclass(frozen=True)
class Composer(WithoutCaches):
    """Makes rows from the texts of one corpus. Plain arrays, cheap to send to another process."""

    corpus: Corpus
    place: int
    """The corpus's place among the trial's."""
    tables: dict[Table, PieceTable]

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, place: int = 0) -> "Composer":
        """Tokenise every piece of a population once."""
        profiles = corpus.profiles
        vocabulary = tokenizer.get_vocab()
        whole_words = isinstance(tokenizer.model, models.WordLevel)

        def encode(pieces: list[tuple[str, ...]]) -> list[list[int]]:
            """Each piece given as its words; BPE sees them with the spaces that stand between and before them."""
            if whole_words:
                return [[vocabulary[word.strip()] for word in words] for words in pieces]
            texts = ["".join(words) for words in pieces]
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        parts, people = _used_parts(profiles)
        part_ids = [encode([(f" {part}",) for part in pool]) for pool in parts]
        names = [
            [token for table, index in zip(part_ids, person, strict=True) for token in table[index]]
            for person in people.tolist()
        ]
        pieces = {Table.TEXT: encode([(text,) for text in corpus.texts]), Table.NAME: names}
        if corpus.kind is not Kind.NAME:
            attributes = profiles.schema.attributes
            values = [
                value_words(attributes[a], value) if whole_words else (f" {value}",)
                for a, value in answer_values(profiles)
            ]
            pieces[Table.SUBJECT] = encode([(possessive(subject),) for subject in profiles.schema.subjects])
            pieces[Table.ANSWER] = names + encode(values)
        return cls(corpus, place, {table: PieceTable.of(tokens) for table, tokens in pieces.items()})

    @cached_property
    def trained(self) -> TrainedIds:
        """The ids that are trained."""
        return TrainedIds(self.corpus)

    @cached_property
    def row_length(self) -> int:
        """Tokens in the longest possible row."""
        slots = self.corpus.slots(np.arange(1))
        return sum(
            int(table.lengths[slot.row]) if isinstance(slot.row, int) else table.tokens.shape[1]
            for slot, table in ((slot, self.tables[slot.table]) for slot in slots)
        )

    def compose(self, ids: Ids, length: int) -> Rows:
        """Rows of shape (n, length) of some texts; length is at least row_length."""
        input_ids = np.full((len(ids), length), END_ID, np.int32)
        labels = np.zeros((len(ids), length), np.uint8)
        cursor: int | IntArray = 0  # where the next piece goes; one number as long as it is the same in every row
        for piece in _joined(self.corpus.slots(ids)):
            start = cursor
            for slot in piece:
                cursor = _put(input_ids, cursor, self.tables[slot.table], slot.row)
            _mark(labels, start, cursor, piece[0].label)
        return Rows(input_ids, labels, np.full(len(ids), self.place, np.uint8))

    def lengths(self, ids: Ids) -> tuple[IntArray, IntArray]:
        """Tokens of some texts, and how many of them are measured; each (n,)."""
        total, measured = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
        for slot in self.corpus.slots(ids):
            length = self.tables[slot.table].lengths[slot.row]
            total += length
            measured += length * np.not_equal(slot.label, 0)
        return total, measured

    @cached_property
    def token_counts(self) -> "TokenCounts":
        """Tokens of the trained texts."""
        num = len(self.trained)
        chosen = np.linspace(0, num - 1, min(num, MAX_TEXTS_COUNTED)).astype(np.int64)
        total, measured = self.lengths(self.trained[chosen])
        return TokenCounts(float(total.mean()), float(measured.mean()), int(total.max()), len(chosen) == num)


class TokenCounts(NamedTuple):
    """Tokens of many texts."""

    mean: float
    mean_measured: float
    longest: int
    exact: bool
    """Whether all texts were counted."""


def _joined(slots: list[Slot]) -> list[list[Slot]]:
    """Slots in runs of the same label, which are marked together."""
    runs = [[slots[0]]]
    for slot in slots[1:]:
        if slot.label is runs[-1][0].label:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs


def _used_parts(profiles: Profiles) -> tuple[list[list[str]], IntArray]:
    """The name parts that occur, per pool, and each person's indices into them; census pools are far larger."""
    used, columns = [], []
    for position, pool in enumerate(profiles.schema.name_pools):
        seen, column = np.unique(profiles.names[:, position], return_inverse=True)
        used.append([pool[index] for index in seen])
        columns.append(column)
    return used, np.stack(columns, axis=1).astype(np.int32)


def _put(
    input_ids: IntArray, cursor: int | IntArray, table: PieceTable, row: int | NDArray[np.integer]
) -> int | IntArray:
    """Write one piece per text at the cursor; returns where each text goes on."""
    width = int(table.lengths[row]) if isinstance(row, int) else table.tokens.shape[1]
    tokens = table.tokens[row, :width] if isinstance(row, int) else table.tokens[row]
    if isinstance(cursor, int):
        input_ids[:, cursor : cursor + width] = tokens
        if isinstance(row, int) or (table.uniform and NOTHING not in row):
            return cursor + width
        return cursor + table.lengths[row]
    texts = np.arange(len(input_ids))
    for column in range(width):  # padding written past a short piece is overwritten by the next one
        input_ids[texts, cursor + column] = tokens[..., column]
    return cursor + table.lengths[row]


def _mark(
    labels: NDArray[np.uint8], start: int | IntArray, end: int | IntArray, label: int | NDArray[np.integer]
) -> None:
    """Label the columns from start to end."""
    if isinstance(label, int) and label == 0:
        return
    column_of_labels = np.asarray(label, np.uint8).reshape(-1, 1)
    if isinstance(start, int) and isinstance(end, int):
        labels[:, start:end] = column_of_labels
        return
    columns = np.arange(labels.shape[1], dtype=np.int32)
    first, last = (np.broadcast_to(at, len(labels))[:, None] for at in (start, end))
    labels += ((columns >= first) & (columns < last)) * column_of_labels
