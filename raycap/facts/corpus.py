"""What a model reads: a corpus is a set of texts about one population, known by their ids and made of pieces.

Every arm is a corpus: questions of k hops, biographies, names. Text and tokens are made from the same pieces, so that
adding an arm is adding a class with the members of `Corpus` and an entry in `corpora_of`. Pieces that many texts have in
a row are a stretch: "'s employer? Answer: Heron Security<|end|>" ends every question that asks for that person's employer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON
from raycap.results import Part
from raycap.spec import Kind, Split

END = "<|end|>"
"""Text of the end token, which stands right after an answer, and before a text that is measured from its first token."""
NOTHING = -1
"""A row of any table, of pieces or of stretches: nothing at all."""
SPLITS = tuple(Split)
"""Split codes are places in this list."""
TRAIN = SPLITS.index(Split.TRAIN)
VOID = 255
"""Split code of an id that is no text: it asks for someone's parent who has none."""
NAME_SUBJECT = "name"

Ids = NDArray[np.int64]


class WithoutCaches:
    """A dataclass that travels to other processes without what it has computed from its fields."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class Table(Enum):
    """Where a piece comes from."""

    TEXT = "text"
    """The corpus's own fixed texts."""
    NAME = "name"
    """A person's full name; rows are people."""
    SUBJECT = "subject"
    """A subject as it follows the one it belongs to, such as "'s best friend"; rows are subjects."""
    ANSWER = "answer"
    """A name or a value; rows as in Profiles.answers."""


class Slot(NamedTuple):
    """One piece in each of n texts."""

    table: Table
    row: int | NDArray[np.integer]
    """Row of the table, one for all or (n,); NOTHING where a text lacks this piece."""
    label: int | NDArray[np.integer] = 0
    """0 where nothing is measured, else 1 + the measure; one for all or (n,)."""


class Stretch(NamedTuple):
    """A part of the texts that is one of `num` chains of pieces."""

    name: str
    """Tells it from the other stretches of its corpus."""
    num: int
    pieces: Callable[[Ids], list[Slot]]
    """The pieces of some of the chains, of numbers from 0 to num - 1."""


class Span(NamedTuple):
    """One stretch in each of n texts."""

    stretch: Stretch
    rows: Ids
    """Which of its chains, (n,); NOTHING where a text lacks them all."""

    @property
    def slots(self) -> list[Slot]:
        """The pieces, in order."""
        slots, lacking = self.stretch.pieces(self.rows), self.rows == NOTHING
        if not lacking.any():
            return slots
        return [slot._replace(row=np.where(lacking, NOTHING, slot.row)) for slot in slots]


class Measure(NamedTuple):
    """What a labelled piece tells."""

    subject: str
    part: Part = Part.ANSWER


class Corpus(Protocol):
    """Texts about one population, with ids from 0."""

    @property
    def profiles(self) -> Profiles:
        """The population."""

    @property
    def kind(self) -> Kind:
        """What its texts are."""

    @property
    def num_ids(self) -> int:
        """Ids are 0 .. num_ids - 1; those of split code VOID are no texts."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured in its texts; label l stands for measure l - 1."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts its pieces are taken from; END is the first."""

    @property
    def uses(self) -> float:
        """Facts that a text uses on average."""

    @property
    def split_codes(self) -> NDArray[np.uint8] | None:
        """Split code of every id, (num_ids,); None where all are TRAIN."""

    def spans(self, ids: Ids) -> list[Span]:
        """The stretches of some texts, in order; the same ones for all texts of the corpus."""

    def slots(self, ids: Ids) -> list[Slot]:
        """The pieces of some texts, in order."""


class InSpans(WithoutCaches, ABC):
    """A corpus whose pieces follow from its spans."""

    @abstractmethod
    def spans(self, ids: Ids) -> list[Span]:
        """See Corpus."""

    def slots(self, ids: Ids) -> list[Slot]:
        """The pieces of some texts, in order."""
        return [slot for span in self.spans(ids) for slot in span.slots]


def num_facts(corpus: Corpus) -> int:
    """How many different facts a corpus's texts use: names alone, or answers to one-hop questions."""
    if corpus.kind is Kind.NAME:
        return corpus.profiles.num_profiles
    return int((corpus.profiles.answers != NO_PERSON).sum())


@dataclass(frozen=True)
class TrainedIds(WithoutCaches):
    """The ids of a corpus that are trained, in ascending order."""

    corpus: Corpus

    @cached_property
    def _chosen(self) -> NDArray[np.integer] | None:
        codes = self.corpus.split_codes
        if codes is None:
            return None
        return np.flatnonzero(is_trained(self.corpus.kind, codes)).astype(np.int32 if len(codes) < 2**31 else np.int64)

    def __len__(self) -> int:
        return self.corpus.num_ids if self._chosen is None else len(self._chosen)

    def __getitem__(self, places: Ids) -> Ids:
        """The ids at some places of the list."""
        return (places if self._chosen is None else self._chosen[places]).astype(np.int64)


def is_trained(kind: Kind, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether texts of these split codes are trained: single hops always, as far as they exist."""
    return codes != VOID if kind.hops < 2 else codes == TRAIN


def answer_values(profiles: Profiles) -> list[tuple[int, str]]:
    """(attribute, value) of the rows of Table.ANSWER that are no names."""
    return [
        (a, attribute.values[index])
        for a, (attribute, used) in enumerate(zip(profiles.schema.attributes, profiles.used_values, strict=True))
        for index in used.tolist()
    ]


def render(corpus: Corpus, ids: Ids) -> list[str]:
    """Texts as people read them, end token included; the tokens of such a text are what is trained."""
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
                return possessive(profiles.schema.subjects[row])
            case _ if row < profiles.num_profiles:
                return f" {profiles.full_name(row)}"
            case _:
                return values[row - profiles.num_profiles]

    slots = [
        [piece(slot.table, row) for row in np.broadcast_to(slot.row, len(ids)).tolist()] for slot in corpus.slots(ids)
    ]
    return ["".join(pieces) for pieces in zip(*slots, strict=True)]


def possessive(subject: str) -> str:
    """A subject as it follows the one it belongs to, such as "'s best friend"."""
    return f"'s {subject.replace('_', ' ')}"
