"""Corpus of k-hop questions, such as "What was A's parent's employer?", with ids that pack person, relations and
subject.

The id of a k-hop question is a number in mixed radix, ((person R + relation_1) R + ... + relation_{k-1}) S + subject,
for R relations and S subjects (the attributes, then the relations). It is also the position of the question in an array
of shape (N, R, ..., R, S), which splits.py uses. For k = 1 the id is person S + subject, the number of a *fact*. If
questions have several phrasings, the phrasing is one more digit in front of the others, so that the ids of each phrasing
are consecutive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts import splits
from raycap.facts.corpus import END, NOTHING, Ids, Measure, Slot, Span, SpanCorpus, Stretch, Table, trained_mask
from raycap.facts.profiles import IntArray, Profiles
from raycap.facts.prompts import Prompts, prompts
from raycap.facts.wordings import PROMPT_END, PROMPT_START
from raycap.results import Part
from raycap.spec import HeldOut, Kind

CHAIN_LINK = ";"
TEXTS = (END, PROMPT_START, PROMPT_END, CHAIN_LINK)
"""Fixed texts of questions in the default wording."""
END_TEXT, LINK_TEXT = 0, TEXTS.index(CHAIN_LINK)

NOTHING_HELD_OUT = HeldOut()


class QuestionIndices(NamedTuple):
    """The components of n questions."""

    phrasing: IntArray
    """Phrasing, shape (n,)."""
    person: IntArray
    """First person, shape (n,)."""
    relations: IntArray
    """Relations in the order in which they are followed, shape (n, k - 1), as indices into the schema's relations."""
    subject: IntArray
    """Subject, shape (n,), as an index into the schema's subjects."""


@dataclass(frozen=True)
class Questions(SpanCorpus):
    """A corpus of all questions with a given number of hops about a population."""

    profiles: Profiles
    hops: int
    chain_of_thought: bool = False
    """Whether answers contain the intermediate steps: "... Answer: Jane Doe Roe; Heron Security"."""
    held_out: HeldOut = NOTHING_HELD_OUT

    @property
    def kind(self) -> Kind:
        """Kind of the questions."""
        return Kind.of_hops(self.hops)

    @property
    def num_ids(self) -> int:
        """Number of questions, N R^(k-1) S, in all phrasings."""
        return self._num_each * len(self._prompts.before)

    @property
    def _num_each(self) -> int:
        """Number of questions in one phrasing."""
        schema = self.profiles.schema
        return int(self.profiles.num_profiles * len(schema.relations) ** (self.hops - 1) * len(schema.subjects))

    @cached_property
    def _prompts(self) -> Prompts:
        return prompts(self.profiles.schema, TEXTS if self._spells_chain else TEXTS[:LINK_TEXT])

    @property
    def _spells_chain(self) -> bool:
        return self.chain_of_thought and self.hops > 1

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The answers by subject, followed by the chains by subject if answers contain chains."""
        subjects = self.profiles.schema.subjects
        chains = tuple(Measure(subject, Part.CHAIN) for subject in subjects) if self._spells_chain else ()
        return tuple(map(Measure, subjects)) + chains

    @property
    def texts(self) -> tuple[str, ...]:
        """TEXTS, without CHAIN_LINK if answers contain no chains, and the prompts of other wordings."""
        return self._prompts.texts

    @property
    def uses(self) -> int:
        """Number of facts that a question uses, one per hop."""
        return self.hops

    @cached_property
    def split_codes(self) -> NDArray[np.uint8] | None:
        """Split code of every question, shape (num_ids,). None if all are TRAIN."""
        codes, num_phrasings = splits.codes(self.profiles, self.held_out, self.hops), len(self._prompts.before)
        return codes if codes is None or num_phrasings == 1 else np.tile(codes, num_phrasings)

    def num_trained(self) -> dict[str, int]:
        """Return the number of training questions about each subject."""
        subjects = self.profiles.schema.subjects
        if self.split_codes is None:
            return dict.fromkeys(subjects, self.num_ids // len(subjects))
        trained = trained_mask(self.kind, self.split_codes).reshape(-1, len(subjects))
        return dict(zip(subjects, trained.sum(axis=0).tolist(), strict=True))

    def people(self, ids: Ids) -> NDArray[np.integer]:
        """Return the first person of each question."""
        return ids % self._num_each // (self._num_each // self.profiles.num_profiles)

    def unpack(self, ids: Ids) -> QuestionIndices:
        """Return the components of some questions."""
        phrasing, rest = divide(ids, self._num_each)
        rest, subject = divide(rest, len(self.profiles.schema.subjects))
        followed = []
        for _ in range(self.hops - 1):
            rest, relation = divide(rest, len(self.profiles.schema.relations))
            followed.append(relation)
        relations = np.stack(followed[::-1], axis=1) if followed else np.empty((len(ids), 0))
        components = (phrasing, rest, relations, subject)
        return QuestionIndices(*(component.astype(np.int32) for component in components))

    def spans(self, ids: Ids) -> list[Span]:
        """Return the spans of some questions: prompt, chain if there is one, answer and end.

        Each stretch covers everything that depends on one person and one relation or subject, so that its table has N R
        or N S chains. One hop:   question(p, s). Two hops:  opening(p, r) closing(q, s). Three hops: opening(p, r)
        following(r') closing(q', s). With chains, closing is replaced by asking(s), a link(q, s) per step, and
        answer(q, s). In every phrasing, question, closing and asking have chains of their own. If not all questions
        begin with the same text, start(s) comes before opening.
        """
        num_relations, num_subjects = len(self.profiles.schema.relations), len(self.profiles.schema.subjects)
        num_asked = num_subjects * len(self._prompts.before)
        if self.hops == 1:
            return [Span(self._stretch("question", num_asked, self._question), ids)]
        # Remove the digits of the id: the phrasing from the left, and from the right the subject, then all relations but
        # the first. The remaining number is p R + r_1, which indexes the flattened (N, R) array of relations and the
        # chains of "opening".
        phrasing, rest = divide(ids, self._num_each)
        pair, subject = divide(rest, num_subjects)
        followed = []
        for _ in range(self.hops - 2):
            pair, relation = divide(pair, num_relations)
            followed.append(relation)
        asked = phrasing * num_subjects + subject  # index in the flattened (F, S) arrays of prompts
        spans = [] if self._same_start else [Span(Stretch("start", num_asked, self._start), asked)]
        spans.append(Span(self._stretch("opening", num_relations, self._opening), pair))
        leads_to = self.profiles.relations.reshape(-1)
        people = [leads_to.take(pair).astype(np.int64)]  # the person after each step
        for relation in reversed(followed):
            spans.append(Span(Stretch("following", num_relations, self._following), relation))
            people.append(leads_to.take(people[-1] * num_relations + relation).astype(np.int64))
        facts = [person * num_subjects + subject for person in people]
        if not self._spells_chain:
            closing = facts[-1] + phrasing * (self.profiles.num_profiles * num_subjects)
            return [*spans, Span(self._stretch("closing", num_asked, self._closing), closing)]
        spans.append(Span(Stretch("asking", num_asked, self._asking), asked))
        spans += [Span(self._stretch("link", num_subjects, self._link), fact) for fact in facts]
        return [*spans, Span(self._stretch("answer", num_subjects, self._answer), facts[-1])]

    def _stretch(self, name: str, num_each: int, pieces: Callable[[Ids], list[Slot]]) -> Stretch:
        """Return a stretch with `num_each` chains for each person."""
        return Stretch(name, self.profiles.num_profiles * num_each, pieces)

    @cached_property
    def _same_start(self) -> bool:
        """Whether all questions begin with the same text."""
        return bool((self._prompts.before == self._prompts.before[0, 0]).all())

    def _fact_and_prompt(self, numbers: Ids) -> tuple[Ids, Ids]:
        """Return facts, and the indices of prompts in flattened (F, S) arrays, of numbers phrasing (N S) + fact."""
        num_subjects = len(self.profiles.schema.subjects)
        phrasing, facts = divide(numbers, self.profiles.num_profiles * num_subjects)
        return facts, phrasing * num_subjects + facts % num_subjects

    def _question(self, numbers: Ids) -> list[Slot]:
        facts, asked = self._fact_and_prompt(numbers)
        person = facts // len(self.profiles.schema.subjects)
        return [*self._start(asked), Slot(Table.NAME, person), *self._closing(numbers)]

    def _start(self, asked: Ids) -> list[Slot]:
        return [Slot(Table.TEXT, self._prompts.before.reshape(-1).take(asked))]

    def _opening(self, followed: Ids) -> list[Slot]:
        person, relation = divide(followed, len(self.profiles.schema.relations))
        start = self._start(np.zeros_like(followed)) if self._same_start else []
        return [*start, Slot(Table.NAME, person), *self._following(relation)]

    def _following(self, relations: Ids) -> list[Slot]:
        return [Slot(Table.SUBJECT, len(self.profiles.schema.attributes) + relations)]

    def _asking(self, asked: Ids) -> list[Slot]:
        has_possessive = self._prompts.has_possessive.reshape(-1).take(asked)
        subjects = np.where(has_possessive, asked % len(self.profiles.schema.subjects), NOTHING)
        return [Slot(Table.SUBJECT, subjects), Slot(Table.TEXT, self._prompts.after.reshape(-1).take(asked))]

    def _closing(self, numbers: Ids) -> list[Slot]:
        facts, asked = self._fact_and_prompt(numbers)
        return [*self._asking(asked), *self._answer(facts)]

    def _link(self, facts: Ids) -> list[Slot]:
        """An intermediate step: the person's name. It counts for the chain of the subject that the question asks
        for."""
        person, subject = divide(facts, len(self.profiles.schema.subjects))
        label = 1 + len(self.profiles.schema.subjects) + subject  # chains follow the answers in `measures`
        return [Slot(Table.NAME, person, label), Slot(Table.TEXT, LINK_TEXT, label)]

    def _answer(self, facts: Ids) -> list[Slot]:
        label = 1 + facts % len(self.profiles.schema.subjects)
        answers = self.profiles.answers.reshape(-1)
        return [Slot(Table.ANSWER, answers.take(facts), label), Slot(Table.TEXT, END_TEXT, label)]


def divide(numbers: Ids, divisor: int) -> tuple[Ids, Ids]:
    """Return quotients and remainders of non-negative numbers, several times faster than np.divmod."""
    quotient = numbers // divisor
    return quotient, numbers - quotient * divisor
