"""Names alone, and random strings, which are names of many parts: measured from the first token to the end."""

from dataclasses import dataclass

from raycap.facts.corpus import END, NAME_SUBJECT, Ids, Measure, Slot, Table
from raycap.facts.profiles import Profiles
from raycap.spec import Kind


@dataclass(frozen=True)
class Recital:
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

    def slots(self, ids: Ids) -> list[Slot]:
        """End token, name, end token."""
        return [Slot(Table.TEXT, 0), Slot(Table.NAME, ids, 1), Slot(Table.TEXT, 0, 1)]
