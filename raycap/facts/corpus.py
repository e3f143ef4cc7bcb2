"""The interface of a corpus, a set of texts about one population that are identified by ids and consist of pieces.

Questions of k hops, biographies and names each are a corpus. Text and tokens are made from the same pieces, so a new
kind of text needs a class with the members of `Corpus` and an entry in `build.corpora_of`.

A text is a sequence of pieces, such as a name or a value. Sequences of pieces that many texts share are grouped into a
stretch, which the tokens package joins once and copies as a block. For example "'s employer? Answer: Heron
Security<|end|>" ends every question about the employer of one person. A stretch is a set of such chains, and a span
selects one chain of a stretch for each text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raycap.facts.frequencies import TextFrequencies
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON
from raycap.results import Part
from raycap.spec import Kind, Split

END = "<|end|>"
"""Text of the end token. It follows every answer and precedes texts whose loss is measured from the first token."""
NOTHING = -1
"""Row number, in any table of pieces or chains, of the empty piece. Being -1, it selects the last row of an array."""
SPLITS = tuple(Split)
"""A split code is an index into this tuple."""
TRAIN = SPLITS.index(Split.TRAIN)
"""Split code of training questions."""
VOID = 255
"""Split code of ids without a text: questions without an answer, such as about the parent of a person without
parent."""
NAME_SUBJECT = "name"
"""Subject of the measure of names."""

Ids = NDArray[np.int64]


class WithoutCaches:
    """Base class of dataclasses that are pickled without their cached properties."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class Table(Enum):
    """The table of pieces that a piece is taken from."""

    TEXT = "text"
    """Fixed texts of the corpus; rows index `Corpus.texts`."""
    NAME = "name"
    """Full names; rows are people."""
    SUBJECT = "subject"
    """Subjects in possessive form, such as "'s best friend"; rows are subjects."""
    ANSWER = "answer"
    """Names and attribute values; rows are those of `Profiles.answers`."""


class Slot(NamedTuple):
    """One piece for each of n texts."""

    table: Table
    row: int | NDArray[np.integer]
    """Rows of the table, a scalar or shape (n,). NOTHING for texts without this piece."""
    label: int | NDArray[np.integer] = 0
    """1 + index of the measure that the tokens of the piece count for, 0 for none. A scalar or shape (n,)."""


class Stretch(NamedTuple):
    """A set of `num` chains (sequences of pieces), one of which is part of each text."""

    name: str
    """Name that is unique in the corpus."""
    num: int
    pieces: Callable[[Ids], list[Slot]]
    """Function from chain numbers, in 0 .. num - 1, to the pieces of these chains."""


class Span(NamedTuple):
    """One chain of a stretch for each of n texts."""

    stretch: Stretch
    rows: Ids
    """Chain numbers, shape (n,). NOTHING for texts without this stretch."""

    @property
    def slots(self) -> list[Slot]:
        """The pieces of the chains, in order."""
        slots, missing = self.stretch.pieces(self.rows), self.rows == NOTHING
        if not missing.any():
            return slots
        return [slot._replace(row=np.where(missing, NOTHING, slot.row)) for slot in slots]


class Measure(NamedTuple):
    """A quantity whose loss is reported: a part of the texts about one subject."""

    subject: str
    part: Part = Part.ANSWER


class Corpus(Protocol):
    """A set of texts about one population."""

    @property
    def profiles(self) -> Profiles:
        """The population."""

    @property
    def kind(self) -> Kind:
        """Kind of the texts."""

    @property
    def num_ids(self) -> int:
        """Number of ids, which are 0 .. num_ids - 1. Ids with split code VOID have no text."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures of the texts. Label l > 0 of a piece refers to measure l - 1."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Fixed texts of Table.TEXT. The first one is END."""

    @property
    def uses(self) -> float:
        """Mean number of facts that a text uses, for counting exposures."""

    @property
    def split_codes(self) -> NDArray[np.uint8] | None:
        """Split code of every id, shape (num_ids,). None if all are TRAIN."""

    def people(self, ids: Ids) -> NDArray[np.integer]:
        """Return the person that each text is about. Their frequency is that of the text."""

    def spans(self, ids: Ids) -> list[Span]:
        """Return the spans of some texts, in order. All texts of a corpus have the same sequence of stretches."""

    def slots(self, ids: Ids) -> list[Slot]:
        """Return the pieces of some texts, in order."""


class SpanCorpus(WithoutCaches, ABC):
    """Base class of corpora that derives `slots` from `spans`. The ids about a person follow each other."""

    profiles: Profiles

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """See Corpus."""

    def people(self, ids: Ids) -> NDArray[np.integer]:
        """Return the person that each text is about."""
        return ids // (self.num_ids // self.profiles.num_profiles)

    @abstractmethod
    def spans(self, ids: Ids) -> list[Span]:
        """See Corpus."""

    def slots(self, ids: Ids) -> list[Slot]:
        """Return the pieces of some texts, in order."""
        return [slot for span in self.spans(ids) for slot in span.slots]


def num_facts(corpus: Corpus) -> int:
    """Return the number of distinct facts in the texts of a corpus: its names, or the answers to all one-hop
    questions."""
    if corpus.kind is Kind.NAME:
        return corpus.profiles.num_profiles
    return int((corpus.profiles.answers != NO_PERSON).sum())


@dataclass(frozen=True)
class TrainedIds(WithoutCaches):
    """The ids of a corpus's training texts as a sequence, in ascending order."""

    corpus: Corpus

    @cached_property
    def _ids(self) -> NDArray[np.integer] | None:
        codes = self.corpus.split_codes
        if codes is None:
            return None
        return np.flatnonzero(trained_mask(self.corpus.kind, codes)).astype(
            np.int32 if len(codes) < 2**31 else np.int64
        )

    def __len__(self) -> int:
        return self.corpus.num_ids if self._ids is None else len(self._ids)

    def __getitem__(self, indices: Ids) -> Ids:
        """Return the ids at some indices of the sequence."""
        return (indices if self._ids is None else self._ids[indices]).astype(np.int64)

    @cached_property
    def frequencies(self) -> TextFrequencies | None:
        """Frequencies of the texts; None if all are equal."""
        if (of_people := self.corpus.profiles.frequencies) is None or not len(self):
            return None
        values = of_people.values[self.corpus.people(self[np.arange(len(self))])]
        return TextFrequencies(values / values.mean())


def trained_mask(kind: Kind, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether texts with these split codes are training texts. One-hop questions are, regardless of their split."""
    return np.not_equal(codes, VOID) if kind.hops < 2 else np.equal(codes, TRAIN)


def answer_values(profiles: Profiles) -> list[tuple[int, str]]:
    """Return (attribute, value) of the rows of Table.ANSWER that follow the names."""
    return [
        (a, attribute.values[index])
        for a, (attribute, used) in enumerate(zip(profiles.schema.attributes, profiles.used_values, strict=True))
        for index in used.tolist()
    ]


def render_texts(corpus: Corpus, ids: Ids) -> list[str]:
    """Return texts as strings, including end tokens. Their tokens are the rows that `tokens.composer` makes."""
    return ["".join(pieces) for pieces in zip(*render_pieces(corpus, ids)[0], strict=True)]


def render_pieces(corpus: Corpus, ids: Ids) -> tuple[list[list[str]], NDArray[np.bool_]]:
    """Return the pieces of texts as strings, a list of n strings for each slot, and which are measured, (slots, n)."""
    profiles = corpus.profiles
    values = [f" {value}" for _, value in answer_values(profiles)]

    @cache
    def piece(table: Table, row: int) -> str:
        if row == NOTHING:
            return ""
        match table:
            case Table.TEXT:
                return corpus.texts[row]
            case Table.SUBJECT:
                return profiles.schema.wording(profiles.schema.subjects[row]).possessive
            case _ if row < profiles.num_profiles:
                return f" {profiles.full_name(row)}"
            case _:
                return values[row - profiles.num_profiles]

    slots = corpus.slots(ids)
    pieces = [[piece(slot.table, row) for row in np.broadcast_to(slot.row, len(ids)).tolist()] for slot in slots]
    return pieces, np.stack([np.broadcast_to(np.asarray(slot.label) > 0, len(ids)) for slot in slots])
