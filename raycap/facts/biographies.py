"""Biographies: one templated sentence for each fact about a person. The loss of values and names is measured.

A biography reads "Biography: James Lee Smith entered the world on 1950-01-02. They studied at Heron College. ...". See
docs/science.md#biographies.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import END, NAME_SUBJECT, NOTHING, Ids, Measure, Slot, Span, SpanCorpus, Stretch, Table
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON
from raycap.spec import Biographies, Kind

FRAME = (END, "Biography:", ".", " They")
"""Fixed texts of all biographies, in the order of the indices below."""
END_TEXT, START, STOP, PRONOUN = range(len(FRAME))


@dataclass(frozen=True)
class BiographyCorpus(SpanCorpus):
    """A corpus of `per_person` biographies of each person. The id of a biography is person * per_person + number."""

    profiles: Profiles
    spec: Biographies

    kind = Kind.BIOGRAPHY
    split_codes = None

    @property
    def num_ids(self) -> int:
        """Number of biographies, N k for k per person."""
        return self.profiles.num_profiles * self.spec.per_person

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The value of each subject, including the full stop (and the end token) after it, and then the name."""
        return (*map(Measure, self.profiles.schema.subjects), Measure(NAME_SUBJECT))

    @cached_property
    def _leads(self) -> tuple[tuple[str, ...], ...]:
        return tuple(map(self.profiles.schema.leads, self.profiles.schema.subjects))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """FRAME, then all leads of all subjects."""
        return (*FRAME, *(lead for leads in self._leads for lead in leads))

    @property
    def uses(self) -> float:
        """Mean number of facts about a person. A biography uses each of them once."""
        frequencies = self.profiles.frequencies
        num_facts = (self.profiles.answers != NO_PERSON).sum(axis=1)
        return float(np.average(num_facts, weights=frequencies.values if frequencies else None))

    @cached_property
    def _templates(self) -> NDArray[np.uint8]:
        """Index of the lead of each subject in each biography, shape (N k, S)."""
        rng = np.random.default_rng([self.spec.seed, *b"leads"])
        columns = [rng.integers(len(leads), size=self.num_ids, dtype=np.uint8) for leads in self._leads]
        return np.stack(columns, axis=1)

    @cached_property
    def _orders(self) -> NDArray[np.uint8]:
        """Subjects in the order of their sentences for each biography, shape (N k, S)."""
        subjects = np.arange(len(self.profiles.schema.subjects), dtype=np.uint8)
        orders = np.broadcast_to(subjects, (self.num_ids, len(subjects)))
        if not self.spec.permute:
            return orders
        return np.random.default_rng([self.spec.seed, *b"orders"]).permuted(orders, axis=1)

    def spans(self, ids: Ids) -> list[Span]:
        """Return the spans of some biographies: opening, then a lead and a value for each subject, then the end.

        Subjects that a person lacks are NOTHING. The first sentence continues the name, the others begin with a
        pronoun.
        """
        num_people, num_subjects = self.profiles.answers.shape
        person = ids // self.spec.per_person
        opening = Stretch("opening", num_people, self._opening)
        lead = Stretch("lead", 2 * len(self.texts), self._lead)
        value = Stretch("value", num_people * num_subjects, self._value)
        first_lead = np.array([0, *accumulate(map(len, self._leads))])[:-1] + len(
            FRAME
        )  # index in `texts`, per subject
        spans = [Span(opening, person)]
        num_sentences, last_label = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        for subject in self._orders[ids].T.astype(np.int64):
            missing = self.profiles.answers[person, subject] == NO_PERSON
            text = first_lead[subject] + self._templates[ids, subject]
            spans.append(Span(lead, np.where(missing, NOTHING, 2 * text + (num_sentences > 0))))
            spans.append(Span(value, np.where(missing, NOTHING, person * num_subjects + subject)))
            num_sentences += ~missing
            # The end token after the last sentence belongs to the value of that sentence.
            last_label = np.where(missing, last_label, 1 + subject)
        return [*spans, Span(Stretch("end", 1 + num_subjects, self._end), last_label)]

    def _opening(self, people: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, START), Slot(Table.NAME, people, len(self.measures))]

    def _lead(self, leads: Ids) -> list[Slot]:
        """Chain 2 i is text i alone, chain 2 i + 1 is a pronoun and text i."""
        text, after_pronoun = np.divmod(leads, 2)
        return [Slot(Table.TEXT, np.where(after_pronoun, PRONOUN, NOTHING)), Slot(Table.TEXT, text)]

    def _value(self, facts: Ids) -> list[Slot]:
        """A value and the full stop after it. Chain p S + s is subject s of person p."""
        num_subjects = len(self.profiles.schema.subjects)
        answers, label = self.profiles.answers.reshape(-1), 1 + facts % num_subjects
        return [Slot(Table.ANSWER, answers.take(facts), label), Slot(Table.TEXT, STOP, label)]

    def _end(self, labels: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, END_TEXT, labels)]
