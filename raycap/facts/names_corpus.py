"""Names alone, and random strings, which are names of many parts: measured from the first token to the end."""

from dataclasses import dataclass

from raycap.facts.corpus import END, NAME_SUBJECT, Ids, InSpans, Measure, Slot, Span, Stretch, Table
from raycap.facts.profiles import Profiles
from raycap.spec import Kind


@dataclass(frozen=True)
class NamesCorpus(InSpans):
    """Every name once; ids are people: a Corpus. The end token before a name is what it is predicted from."""

    profiles: Profiles

    kind = Kind.NAME
    measures = (Measure(NAME_SUBJECT),)
    texts = (END,)
    uses = 1
    split_codes = None

    @property
    def num_ids(self) -> int:
        """N."""
        return self.profiles.num_profiles

    def spans(self, ids: Ids) -> list[Span]:
        """All in one: end token, name, end token."""
        return [Span(Stretch("name", self.num_ids, self._name), ids)]

    def _name(self, people: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, 0), Slot(Table.NAME, people, 1), Slot(Table.TEXT, 0, 1)]
