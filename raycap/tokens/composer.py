"""Composition of texts as rows of tokens, by concatenating pieces that are tokenized once per population.

A text is a sequence of pieces (see facts/corpus.py):

"Question: What was" | " James Lee Smith" | "'s parent" | "'s employer" | "? Answer:" | " Heron Security" | "<|end|>"

Both tokenizers split texts at the boundaries of pieces, so a row equals the tokens of the whole text (tests/tokens
checks this property). The labels, which state what is measured, are known for each piece and need not be searched for
in the tokens. Sequences of pieces that many texts share are joined once, including labels, and copied into rows as one
block of memory (see pieces.py):

"Question: What was James Lee Smith's parent" | "'s employer? Answer: Heron Security<|end|>"
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from raycap.facts.corpus import Corpus, Ids, Stretch, Table, TrainedIds, WithoutCaches, answer_values
from raycap.facts.profiles import IntArray, Profiles
from raycap.spec import Kind
from raycap.tokens.pieces import (
    Cells,
    PieceTable,
    StretchTable,
    as_cells,
    as_records,
    cell_type,
    lengths_of,
    padded,
    write,
)

MAX_TEXTS_COUNTED = 200_000
"""Largest number of texts whose tokens are counted. Larger corpora are counted over as many evenly spaced texts."""


@dataclass(frozen=True)
class Rows:
    """Tokens and labels of n texts, one text per row, padded on the right with END_ID."""

    cells: Cells  # (n, length)
    corpus: NDArray[np.uint8]  # (n,), index of the corpus among those of the trial

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, part: slice | NDArray[np.integer]) -> "Rows":
        return Rows(self.cells[part], self.corpus[part])

    def take(self, indices: NDArray[np.integer]) -> "Rows":
        """Return the rows at some indices. Each row is copied as one block of memory."""
        records = as_records(self.cells).take(indices)
        return Rows(as_cells(records, self.cells.dtype), self.corpus.take(indices))

    @classmethod
    def concatenate(cls, parts: list["Rows"]) -> "Rows":
        """Concatenate rows of equal length."""
        if len(parts) == 1:
            return parts[0]
        records = np.concatenate([as_records(part.cells) for part in parts])
        return cls(as_cells(records, parts[0].cells.dtype), np.concatenate([part.corpus for part in parts]))

    @property
    def input_ids(self) -> NDArray[np.unsignedinteger[Any]]:
        """Tokens, shape (n, length): a view with strides, since tokens and labels alternate in memory."""
        return self.cells["token"]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Labels, shape (n, length): 1 + index of the measure of the row's corpus, 0 for tokens that are not measured.

        A view with strides, as input_ids is.
        """
        return self.cells["label"]

    @property
    def lengths(self) -> IntArray:
        """Number of tokens of each row up to the last measured token, which is the last of the text, shape (n,)."""
        lengths: IntArray = self.labels.shape[1] - (self.labels[:, ::-1] > 0).argmax(axis=1)
        return lengths


@dataclass(frozen=True, eq=False)
class Composer(WithoutCaches):
    """Composes the texts of one corpus as rows.

    A composer is small when pickled: tables of joined stretches are not included and are computed again when needed.
    """

    corpus: Corpus
    corpus_index: int
    """Index of the corpus among those of the trial."""
    tables: dict[Table, PieceTable]

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, corpus_index: int = 0) -> "Composer":
        """Tokenize all pieces of a corpus. Raises KeyError for a word that the word tokenizer lacks."""
        profiles = corpus.profiles
        vocabulary = tokenizer.get_vocab()
        dtype = cell_type(tokenizer.get_vocab_size())
        whole_words = isinstance(tokenizer.model, models.WordLevel)

        def encode(words: list[tuple[str, ...]], texts: list[str]) -> list[list[int]]:
            """Tokenize pieces, which are given as words and as texts with the space before them."""
            if whole_words:
                return [[vocabulary[word] for word in piece] for piece in words]
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        # Tokenize each name part that occurs once, then concatenate the parts of each person's name.
        parts, people = _used_parts(profiles)
        part_ids = [
            encode([(part,) if part else () for part in pool], [f" {part}" if part else "" for part in pool])
            for pool in parts
        ]
        names = [
            [token for table, index in zip(part_ids, person, strict=True) for token in table[index]]
            for person in people.tolist()
        ]
        pieces = {
            Table.TEXT: encode([(text.strip(),) for text in corpus.texts], list(corpus.texts)),
            Table.NAME: names,
        }
        if corpus.kind is not Kind.NAME:
            attributes, values = profiles.schema.attributes, answer_values(profiles)
            subjects = [profiles.schema.wording(subject).possessive for subject in profiles.schema.subjects]
            pieces[Table.SUBJECT] = encode([(subject,) for subject in subjects], subjects)
            pieces[Table.ANSWER] = names + encode(
                [attributes[a].words(value) for a, value in values], [f" {value}" for _, value in values]
            )
        return cls(corpus, corpus_index, {table: PieceTable.of(tokens, dtype) for table, tokens in pieces.items()})

    @cached_property
    def trained(self) -> TrainedIds:
        """Ids of the training texts."""
        return TrainedIds(self.corpus)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Data type of the cells of rows."""
        return self.tables[Table.TEXT].cells.dtype

    @cached_property
    def row_length(self) -> int:
        """Number of tokens that suffices for every text: the sum of the longest chain of each stretch."""
        return sum(self._table(span.stretch).width for span in self.corpus.spans(np.arange(1)))

    def compose(self, ids: Ids, length: int) -> Rows:
        """Return some texts as rows of shape (n, length).

        Raises ValueError if `length` is less than row_length.
        """
        # This check is essential: `write` copies to positions in the flat memory of all rows, so a chain that does not
        # fit would continue in the next row without an error.
        if length < self.row_length:
            raise ValueError(f"length: must be at least {self.row_length} for {self.corpus.kind} texts, got {length}")
        first, *others = self.corpus.spans(ids)
        joined = self._table(first.stretch)
        cells = padded(joined.records(first.rows), length, self.dtype)
        # `position` is where the next chain of each text starts, as an index into the flat array of n * length cells.
        position, rows = np.arange(0, len(ids) * length, length), first.rows
        for span in others:
            position += joined.lengths.take(rows)
            joined, rows = self._table(span.stretch), span.rows
            write(cells, position, joined.records(rows))
        return Rows(cells, np.full(len(ids), self.corpus_index, np.uint8))

    @cached_property
    def _tables(self) -> dict[str, StretchTable]:
        """Tables of the stretches that were used, by name."""
        return {}

    def _table(self, stretch: Stretch) -> StretchTable:
        if stretch.name not in self._tables:
            self._tables[stretch.name] = StretchTable(stretch, self.tables)
        return self._tables[stretch.name]

    def lengths(self, ids: Ids) -> tuple[IntArray, IntArray]:
        """Return the number of tokens and of measured tokens of some texts, each of shape (n,)."""
        return lengths_of(self.tables, self.corpus.slots(ids), len(ids))

    def last_columns(self, ids: Ids) -> IntArray:
        """Return the column of the last token of every piece in the rows of some texts, shape (n, pieces)."""
        slots = self.corpus.slots(ids)
        lengths = [lengths_of(self.tables, [slot], len(ids))[0] for slot in slots]
        return np.cumsum(np.stack(lengths, axis=1), axis=1, dtype=np.int32) - 1

    @cached_property
    def token_counts(self) -> "TokenCounts":
        """Numbers of tokens of the training texts."""
        num = len(self.trained)
        sample = np.linspace(0, num - 1, min(num, MAX_TEXTS_COUNTED)).astype(np.int64)
        total, measured = self.lengths(self.trained[sample])
        weights = self.trained.frequencies.values[sample] if self.trained.frequencies else None
        mean, mean_measured = (float(np.average(lengths, weights=weights)) for lengths in (total, measured))
        return TokenCounts(mean, mean_measured, int(total.max()), len(sample) == num)


class TokenCounts(NamedTuple):
    """Numbers of tokens of a set of texts."""

    mean: float
    """Mean number of tokens per text."""
    mean_measured: float
    """Mean number of measured tokens per text."""
    longest: int
    """Number of tokens of the longest text."""
    exact: bool
    """Whether all texts were counted and not a sample."""


def _used_parts(profiles: Profiles) -> tuple[list[list[str]], IntArray]:
    """Return the name parts that occur, for each pool, and the indices of each person's parts, shape (N, pools)."""
    used, columns = [], []
    for position, pool in enumerate(profiles.schema.name_pools):
        distinct, column = np.unique(profiles.names[:, position], return_inverse=True)
        used.append([pool[index] for index in distinct])
        columns.append(column)
    return used, np.stack(columns, axis=1).astype(np.int32)
