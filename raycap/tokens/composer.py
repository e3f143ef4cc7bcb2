"""From texts to rows of tokens, composed from pre-tokenised pieces and never from text. No torch here.

A text is a chain of pieces (facts/corpus.py), each tokenised once per population:

    "Question: What was" | " James Lee Smith" | "'s parent" | "'s employer" | "? Answer:" | " Heron Security" | "<|end|>"

Both tokenizers split texts at the seams between pieces, so a row equals the tokens of the whole text (a property test
proves it), and what is measured is known with the row instead of being searched for. What many texts have in common is
joined once, labels and all, and copied into a row as one block of memory (pieces.py):

    "Question: What was James Lee Smith's parent" | "'s employer? Answer: Heron Security<|end|>"
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from raycap.facts.corpus import Corpus, Ids, Stretch, Table, TrainedIds, WithoutCaches, answer_values, possessive
from raycap.facts.profiles import IntArray, Profiles
from raycap.spec import Kind
from raycap.tokens.pieces import Cells, Joined, PieceTable, as_cells, as_records, cell_type, lengths_of, padded, write
from raycap.tokens.tokenizers import value_words

MAX_TEXTS_COUNTED = 200_000
"""Tokens are counted over all texts up to this number, and over as many evenly spaced ones beyond it."""


@dataclass(frozen=True)
class Rows:
    """Texts as tokens, one per row, padded on the right with END_ID."""

    cells: Cells  # (n, length)
    corpus: NDArray[np.uint8]  # (n,), place of the corpus among the trial's

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, part: slice | NDArray[np.integer]) -> "Rows":
        return Rows(self.cells[part], self.corpus[part])

    def take(self, places: NDArray[np.integer]) -> "Rows":
        """Some rows, whole ones in memory, in any order."""
        records = as_records(self.cells).take(places)
        return Rows(as_cells(records, self.cells.dtype), self.corpus.take(places))

    @classmethod
    def concatenate(cls, parts: list["Rows"]) -> "Rows":
        """Rows of one length, one after the other."""
        if len(parts) == 1:
            return parts[0]
        records = np.concatenate([as_records(part.cells) for part in parts])
        return cls(as_cells(records, parts[0].cells.dtype), np.concatenate([part.corpus for part in parts]))

    @property
    def input_ids(self) -> NDArray[np.unsignedinteger[Any]]:
        """Tokens, (n, length), with the labels between them in memory."""
        return self.cells["token"]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """0 where nothing is measured, else 1 + the measure of the row's corpus, (n, length); tokens are between them."""
        return self.cells["label"]

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row up to the last that is measured, (n,)."""
        return self.labels.shape[1] - (self.labels[:, ::-1] > 0).argmax(axis=1)


@dataclass(frozen=True, eq=False)
class Composer(WithoutCaches):
    """Makes rows from the texts of one corpus. Cheap to send to another process, where its stretches are joined anew."""

    corpus: Corpus
    place: int
    """The corpus's place among the trial's."""
    tables: dict[Table, PieceTable]

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, place: int = 0) -> "Composer":
        """Tokenise every piece of a population once."""
        profiles = corpus.profiles
        vocabulary = tokenizer.get_vocab()
        dtype = cell_type(tokenizer.get_vocab_size())
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
        return cls(corpus, place, {table: PieceTable.of(tokens, dtype) for table, tokens in pieces.items()})

    @cached_property
    def trained(self) -> TrainedIds:
        """The ids that are trained."""
        return TrainedIds(self.corpus)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Of the cells of rows."""
        return self.tables[Table.TEXT].cells.dtype

    @cached_property
    def row_length(self) -> int:
        """Tokens that hold every text: the longest chain of each stretch."""
        return sum(self._joined(span.stretch).width for span in self.corpus.spans(np.arange(1)))

    def compose(self, ids: Ids, length: int) -> Rows:
        """Rows of shape (n, length) of some texts; length is at least row_length."""
        if length < self.row_length:  # nothing else would notice: a row would run on into the next
            raise ValueError(f"rows of {length} tokens, but texts of {self.corpus.kind} take {self.row_length}")
        first, *others = self.corpus.spans(ids)
        joined = self._joined(first.stretch)
        cells = padded(joined.records(first.rows), length, self.dtype)
        at, rows = np.arange(0, len(ids) * length, length), first.rows
        for span in others:
            at += joined.lengths.take(rows)
            joined, rows = self._joined(span.stretch), span.rows
            write(cells, at, joined.records(rows))
        return Rows(cells, np.full(len(ids), self.place, np.uint8))

    @cached_property
    def _known(self) -> dict[str, Joined]:
        return {}

    def _joined(self, stretch: Stretch) -> Joined:
        if stretch.name not in self._known:
            self._known[stretch.name] = Joined(stretch, self.tables)
        return self._known[stretch.name]

    def lengths(self, ids: Ids) -> tuple[IntArray, IntArray]:
        """Tokens of some texts, and how many of them are measured; each (n,)."""
        return lengths_of(self.tables, self.corpus.slots(ids), len(ids))

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


def _used_parts(profiles: Profiles) -> tuple[list[list[str]], IntArray]:
    """The name parts that occur, per pool, and each person's indices into them; census pools are far larger."""
    used, columns = [], []
    for position, pool in enumerate(profiles.schema.name_pools):
        seen, column = np.unique(profiles.names[:, position], return_inverse=True)
        used.append([pool[index] for index in seen])
        columns.append(column)
    return used, np.stack(columns, axis=1).astype(np.int32)
