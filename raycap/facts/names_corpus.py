"""Corpus of names alone, or of random strings, whose loss is measured from the first token to the end token."""

from dataclasses import dataclass

from raycap.facts.corpus import END, NAME_SUBJECT, Ids, Measure, Slot, Span, SpanCorpus, Stretch, Table
from raycap.facts.profiles import Profiles
from raycap.spec import Kind


@dataclass(frozen=True)
class NamesCorpus(SpanCorpus):
    """A corpus of all names; ids are people. The end token before a name is the input that predicts its first token."""

    profiles: Profiles

    kind = Kind.NAME
    measures = (Measure(NAME_SUBJECT),)
    texts = (END,)
    uses = 1
    split_codes = None

    @property
    def num_ids(self) -> int:
        """Number of names, N."""
        return self.profiles.num_profiles

    def spans(self, ids: Ids) -> list[Span]:
        """Return a single span for each text: end token, name, end token."""
        return [Span(Stretch("name", self.num_ids, self._name), ids)]

    def _name(self, people: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, 0), Slot(Table.NAME, people, 1), Slot(Table.TEXT, 0, 1)]
