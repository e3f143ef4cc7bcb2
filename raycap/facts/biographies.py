"""Biographies: sentences about every subject of a person, from templates; values and the name itself are measured.

Biography: James Lee Smith entered the world on 1950-01-02. They studied at Heron College. ...
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import END, NAME_SUBJECT, NOTHING, Ids, InSpans, Measure, Slot, Span, Stretch, Table
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON
from raycap.facts.templates import lead_texts
from raycap.spec import Biographies as BiographiesSpec
from raycap.spec import Kind

FRAME = (END, "Biography:", ".", " They")
END_TEXT, START, STOP, PRONOUN = range(len(FRAME))


@dataclass(frozen=True)
class Biographies(InSpans):
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
        return float((self.profiles.answers != NO_PERSON).sum() / self.profiles.num_profiles)

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

    def spans(self, ids: Ids) -> list[Span]:
        """Start and name; for each subject that the person has a lead (after a pronoun, but for the first) and the value."""
        num_people, num_subjects = self.profiles.answers.shape
        person = ids // self.spec.per_person
        opening = Stretch("opening", num_people, self._opening)
        lead = Stretch("lead", 2 * len(self.texts), self._lead)
        value = Stretch("value", num_people * num_subjects, self._value)
        first_lead = np.array([0, *accumulate(map(len, self._leads))])[:-1] + len(FRAME)
        spans = [Span(opening, person)]
        told, last_label = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        for subject in self._orders[ids].T.astype(np.int64):
            missing = self.profiles.answers[person, subject] == NO_PERSON
            text = first_lead[subject] + self._templates[ids, subject]
            spans.append(Span(lead, np.where(missing, NOTHING, 2 * text + (told > 0))))
            spans.append(Span(value, np.where(missing, NOTHING, person * num_subjects + subject)))
            told += ~missing
            last_label = np.where(missing, last_label, 1 + subject)
        return [*spans, Span(Stretch("end", 1 + num_subjects, self._end), last_label)]

    def _opening(self, people: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, START), Slot(Table.NAME, people, len(self.measures))]

    def _lead(self, leads: Ids) -> list[Slot]:
        """Text i stands alone as lead 2 i, and after a pronoun as lead 2 i + 1."""
        text, after_pronoun = np.divmod(leads, 2)
        return [Slot(Table.TEXT, np.where(after_pronoun, PRONOUN, NOTHING)), Slot(Table.TEXT, text)]

    def _value(self, facts: Ids) -> list[Slot]:
        """A value and the full stop after it."""
        num_subjects = len(self.profiles.schema.subjects)
        answers, label = self.profiles.answers.reshape(-1), 1 + facts % num_subjects
        return [Slot(Table.ANSWER, answers.take(facts), label), Slot(Table.TEXT, STOP, label)]

    def _end(self, labels: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, END_TEXT, labels)]
