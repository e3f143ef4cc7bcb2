"""Questions of k hops: "What was A's parent's employer?" is (person, relations, subject) packed into one id.

A k-hop id in mixed radix: ((person R + relation_1) R + ... + relation_{k-1}) S + subject, with R relations and S
subjects (attributes first, then relations).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts import splits
from raycap.facts.corpus import END, Ids, InSpans, Measure, Slot, Span, Stretch, Table, is_trained
from raycap.facts.profiles import IntArray, Profiles
from raycap.results import Part
from raycap.spec import HeldOut, Kind

TEXTS = (END, "Question: What was", "? Answer:", ";")
END_TEXT, PROMPT_START, PROMPT_END, CHAIN_LINK = range(len(TEXTS))


NOTHING_HELD_OUT = HeldOut()


class QuestionIndices(NamedTuple):
    """Unpacked questions; arrays share their first axis."""

    person: IntArray
    relations: IntArray
    """(n, k - 1), indices into the schema's relations, in the order they are followed."""
    subject: IntArray


@dataclass(frozen=True)
class Questions(InSpans):
    """All questions of one number of hops about a population: a Corpus."""

    profiles: Profiles
    hops: int
    chain_of_thought: bool = False
    """Whether the answer spells every step: "... Answer: Jane Doe Roe; Heron Security"."""
    held_out: HeldOut = NOTHING_HELD_OUT

    @property
    def kind(self) -> Kind:
        """One hop, two hops, three."""
        return Kind.of_hops(self.hops)

    @property
    def num_ids(self) -> int:
        """N R^(k-1) S."""
        schema = self.profiles.schema
        return self.profiles.num_profiles * len(schema.relations) ** (self.hops - 1) * len(schema.subjects)

    @property
    def _spells_chain(self) -> bool:
        return self.chain_of_thought and self.hops > 1

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The answer by subject, then the chain by the same."""
        subjects = self.profiles.schema.subjects
        chains = tuple(Measure(subject, Part.CHAIN) for subject in subjects) if self._spells_chain else ()
        return tuple(map(Measure, subjects)) + chains

    @property
    def texts(self) -> tuple[str, ...]:
        """Without the link of chains where there are none."""
        return TEXTS if self._spells_chain else TEXTS[:CHAIN_LINK]

    @property
    def uses(self) -> int:
        """One fact per hop."""
        return self.hops

    @cached_property
    def split_codes(self) -> NDArray[np.uint8] | None:
        """See splits.py."""
        return splits.codes(self.profiles, self.held_out, self.hops)

    def num_trained(self) -> dict[str, int]:
        """How many questions are trained about each subject."""
        subjects = self.profiles.schema.subjects
        if self.split_codes is None:
            return dict.fromkeys(subjects, self.num_ids // len(subjects))
        trained = is_trained(self.kind, self.split_codes).reshape(-1, len(subjects))
        return dict(zip(subjects, trained.sum(axis=0).tolist(), strict=True))

    def unpack(self, ids: Ids) -> QuestionIndices:
        """Who and what some ids ask for."""
        rest, subject = quotient_and_rest(ids, len(self.profiles.schema.subjects))
        followed = []
        for _ in range(self.hops - 1):
            rest, relation = quotient_and_rest(rest, len(self.profiles.schema.relations))
            followed.append(relation)
        relations = np.stack(followed[::-1], axis=1) if followed else np.empty((len(ids), 0))
        return QuestionIndices(rest.astype(np.int32), relations.astype(np.int32), subject.astype(np.int32))

    def spans(self, ids: Ids) -> list[Span]:
        """Prompt, chain if it is spelled, answer and end: in one piece for a single hop, else in as few as tables allow.

        What a question says about one person (and a relation or subject of theirs) is one stretch.
        """
        num_relations, num_subjects = len(self.profiles.schema.relations), len(self.profiles.schema.subjects)
        if self.hops == 1:
            return [Span(self._stretch("question", num_subjects, self._question), ids)]
        asked, subject = quotient_and_rest(ids, num_subjects)
        followed = []
        for _ in range(self.hops - 2):
            asked, relation = quotient_and_rest(asked, num_relations)
            followed.append(relation)
        spans = [Span(self._stretch("opening", num_relations, self._opening), asked)]
        leads_to = self.profiles.relations.reshape(-1)
        people = [leads_to.take(asked).astype(np.int64)]
        for relation in reversed(followed):
            spans.append(Span(Stretch("following", num_relations, self._following), relation))
            people.append(leads_to.take(people[-1] * num_relations + relation).astype(np.int64))
        facts = [person * num_subjects + subject for person in people]
        if not self._spells_chain:
            return [*spans, Span(self._stretch("closing", num_subjects, self._closing), facts[-1])]
        spans.append(Span(Stretch("asking", num_subjects, self._asking), subject))
        spans += [Span(self._stretch("link", num_subjects, self._link), fact) for fact in facts]
        return [*spans, Span(self._stretch("answer", num_subjects, self._answer), facts[-1])]

    def _stretch(self, name: str, num_each: int, pieces: Callable[[Ids], list[Slot]]) -> Stretch:
        """A stretch of `num_each` chains about each person."""
        return Stretch(name, self.profiles.num_profiles * num_each, pieces)

    def _question(self, facts: Ids) -> list[Slot]:
        person = facts // len(self.profiles.schema.subjects)
        return [Slot(Table.TEXT, PROMPT_START), Slot(Table.NAME, person), *self._closing(facts)]

    def _opening(self, followed: Ids) -> list[Slot]:
        person, relation = quotient_and_rest(followed, len(self.profiles.schema.relations))
        return [Slot(Table.TEXT, PROMPT_START), Slot(Table.NAME, person), *self._following(relation)]

    def _following(self, relations: Ids) -> list[Slot]:
        return [Slot(Table.SUBJECT, len(self.profiles.schema.attributes) + relations)]

    def _asking(self, subjects: Ids) -> list[Slot]:
        return [Slot(Table.SUBJECT, subjects), Slot(Table.TEXT, PROMPT_END)]

    def _closing(self, facts: Ids) -> list[Slot]:
        return [*self._asking(facts % len(self.profiles.schema.subjects)), *self._answer(facts)]

    def _link(self, facts: Ids) -> list[Slot]:
        """A person on the way to the answer, labelled with the subject that is asked for in the end."""
        person, subject = quotient_and_rest(facts, len(self.profiles.schema.subjects))
        label = 1 + len(self.profiles.schema.subjects) + subject
        return [Slot(Table.NAME, person, label), Slot(Table.TEXT, CHAIN_LINK, label)]

    def _answer(self, facts: Ids) -> list[Slot]:
        label = 1 + facts % len(self.profiles.schema.subjects)
        answers = self.profiles.answers.reshape(-1)
        return [Slot(Table.ANSWER, answers.take(facts), label), Slot(Table.TEXT, END_TEXT, label)]


def quotient_and_rest(numbers: Ids, divisor: int) -> tuple[Ids, Ids]:
    """As np.divmod, which is several times slower than the one division it takes."""
    quotient = numbers // divisor
    return quotient, numbers - quotient * divisor
