"""Biographies: sentences about every subject of a person, from templates; values and the name itself are measured.

Biography: James Lee Smith entered the world on 1950-01-02. They studied at Heron College. ...
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import END, NAME_SUBJECT, NOTHING, Ids, Measure, Slot, Table, WithoutCaches
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NOBODY
from raycap.facts.templates import lead_texts
from raycap.spec import Biographies as BiographiesSpec
from raycap.spec import Kind

FRAME = (END, "Biography:", ".", " They")
END_TEXT, START, STOP, PRONOUN = range(len(FRAME))


@dataclass(frozen=True)
class Biographies(WithoutCaches):
    """`per_person` biographies of each person, id = person * per_person + number: a Corpus."""

    profiles: Profiles
    spec: BiographiesSpec

    kind = Kind.BIOGRAPHY
    split_codes = None

    @property
    def num_ids(self) -> int:
        """N k."""
        return self.profiles.num_profiles * self.spec.per_person

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Each subject's value, with the full stop (and end of text) after it, and the name."""
        return (*map(Measure, self.profiles.schema.subjects), Measure(NAME_SUBJECT))

    @cached_property
    def _leads(self) -> tuple[tuple[str, ...], ...]:
        return tuple(lead_texts(subject) for subject in self.profiles.schema.subjects)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The frame, then every lead of every subject."""
        return (*FRAME, *(lead for leads in self._leads for lead in leads))

    @property
    def uses(self) -> float:
        """Every subject that a person has, once."""
        return float((self.profiles.answers != NOBODY).sum() / self.profiles.num_profiles)

    @cached_property
    def _templates(self) -> NDArray[np.uint8]:
        """(N k, S): which lead introduces which subject."""
        rng = np.random.default_rng([self.spec.seed, *b"leads"])
        columns = [rng.integers(len(leads), size=self.num_ids, dtype=np.uint8) for leads in self._leads]
        return np.stack(columns, axis=1)

    @cached_property
    def _orders(self) -> NDArray[np.uint8]:
        """(N k, S): which subject comes when."""
        subjects = np.arange(len(self.profiles.schema.subjects), dtype=np.uint8)
        orders = np.broadcast_to(subjects, (self.num_ids, len(subjects)))
        if not self.spec.permute:
            return orders
        return np.random.default_rng([self.spec.seed, *b"orders"]).permuted(orders, axis=1)

    def slots(self, ids: Ids) -> list[Slot]:
        """Start, name, and for each subject a pronoun (the name does for the first), lead, value, full stop."""
        person = ids // self.spec.per_person
        first_lead = np.array([0, *accumulate(map(len, self._leads))])[:-1] + len(FRAME)
        slots = [Slot(Table.TEXT, START), Slot(Table.NAME, person, len(self.measures))]
        told, last_label = np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
        for number, subject in enumerate(self._orders[ids].T.astype(np.int64)):
            value = self.profiles.answers[person, subject]
            missing = value == NOBODY
            lead = first_lead[subject] + self._templates[ids, subject]

            def unless(skipped: NDArray[np.bool_], text: int | NDArray[np.int64]) -> NDArray[np.int64]:
                return np.where(skipped, NOTHING, text)

            label = 1 + subject
            if number:
                slots.append(Slot(Table.TEXT, unless(missing | ~told, PRONOUN)))
            slots.append(Slot(Table.TEXT, unless(missing, lead)))
            slots.append(Slot(Table.ANSWER, value, label))
            slots.append(Slot(Table.TEXT, unless(missing, STOP) if missing.any() else STOP, label))
            told |= ~missing
            last_label = np.where(missing, last_label, label)
        return [*slots, Slot(Table.TEXT, END_TEXT, last_label)]
