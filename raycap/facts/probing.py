"""Targets, sites, folds and controls of probes, and pairs of questions between which residuals are interchanged.

A one-hop question asks for the subject s of a person p. A two-hop question (p, r, s) asks for the subject s of the bridge
q = r(p). The first fact of a question is (p, s) or (p, r), and its last fact (p, s) or (q, s). See docs/probes.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import NOTHING, SPLITS, TRAIN, VOID, Ids, Table
from raycap.facts.profiles import Profiles
from raycap.facts.questions import Questions
from raycap.spec import Split
from raycap.spec.probes import ProbeSite, ProbeTarget

ABSENT = -1
"""Label of questions that lack a part of a target."""
Labels = NDArray[np.int64]


class TargetPart(NamedTuple):
    """A part of a target, such as the last name of the bridge, as a classification of n questions."""

    name: str
    words: tuple[str, ...]
    """Text of each class as the word tokenizer splits it."""
    labels: Labels
    """Class of each question, (n,), or ABSENT."""
    control: Labels
    """Class of each question in the control task, (n,), or ABSENT."""


@dataclass(frozen=True)
class ProbeTask:
    """A target of n questions. The bits of its parts add."""

    target: ProbeTarget
    parts: tuple[TargetPart, ...]
    groups: Ids
    """Number of the fact whose questions are always in one fold, (n,)."""
    types: Ids
    """Number of what determines the label, (n,). The control task gives each type the label of another one."""


class _Components(NamedTuple):
    """The components of n questions, each of shape (n,)."""

    person: Ids
    relation: Ids  # the subject of a one-hop question
    last_person: Ids  # the person of the last fact
    subject: Ids


def _components(corpus: Questions, ids: Ids) -> _Components:
    _, person, relations, subject = corpus.unpack(ids)
    if corpus.hops == 1:
        return _Components(*(each.astype(np.int64) for each in (person, subject, person, subject)))
    relation = relations[:, 0]
    bridge = corpus.profiles.relations[person, relation]
    return _Components(*(each.astype(np.int64) for each in (person, relation, bridge, subject)))


def draw_questions(
    corpus: Questions, splits: tuple[Split, ...], num: int, rng: np.random.Generator
) -> tuple[Ids, NDArray[np.uint8]]:
    """Return at most `num` questions of each split, or of a one-hop corpus in total, and their split codes.

    One-hop questions have the code TRAIN, since all of them are trained.
    """
    codes = corpus.split_codes
    if codes is None:
        codes = np.full(corpus.num_ids, TRAIN, np.uint8)
    if corpus.hops == 1:
        codes = np.where(codes == VOID, VOID, TRAIN).astype(np.uint8)
    drawn = []
    for split in splits:
        ids = np.flatnonzero(codes == SPLITS.index(split))
        drawn.append(rng.choice(ids, num, replace=False) if len(ids) > num else ids)
    ids = np.sort(np.concatenate(drawn))
    return ids, codes[ids]


def probe_task(corpus: Questions, ids: Ids, target: ProbeTarget, rng: np.random.Generator) -> ProbeTask | None:
    """Return the task of a target for some questions, or None if the corpus lacks the target.

    Questions with equal first facts are in one group, for subjects and answers those with equal last facts.
    """
    if corpus.hops == 1 and target in (ProbeTarget.RELATION, ProbeTarget.BRIDGE):
        return None
    profiles, parts = corpus.profiles, _components(corpus, ids)
    num_people, num_subjects = profiles.num_profiles, len(profiles.schema.subjects)
    other = rng.permutation(num_people)
    first_facts, last_facts = (
        parts.person * num_subjects + parts.relation,
        parts.last_person * num_subjects + parts.subject,
    )
    match target:
        case ProbeTarget.PERSON:
            return ProbeTask(
                target, _name_parts(profiles, parts.person, other[parts.person]), first_facts, parts.person
            )
        case ProbeTarget.BRIDGE:
            return ProbeTask(
                target,
                _name_parts(profiles, parts.last_person, other[parts.last_person]),
                first_facts,
                parts.last_person,
            )
        case ProbeTarget.ANSWER:
            return ProbeTask(target, _answer_parts(profiles, parts, other), last_facts, last_facts)
        case ProbeTarget.RELATION:
            followed = profiles.schema.relations
            part = _word_part(profiles, followed, parts.relation, first_facts, rng)
            return ProbeTask(target, (part,), first_facts, first_facts)
        case ProbeTarget.SUBJECT:
            part = _word_part(profiles, profiles.schema.subjects, parts.subject, last_facts, rng)
            return ProbeTask(target, (part,), last_facts, last_facts)


def _classes(name: str, words: Callable[[int], str], labels: Labels, control: Labels) -> TargetPart:
    """Return a part whose classes are the values that occur among the labels and controls."""
    values = np.unique(np.concatenate([labels[labels != ABSENT], control[control != ABSENT]]))

    def number(array: Labels) -> Labels:
        return np.where(array == ABSENT, ABSENT, np.searchsorted(values, array))

    return TargetPart(name, tuple(words(value) for value in values.tolist()), number(labels), number(control))


def _name_parts(profiles: Profiles, people: Ids, control: Ids) -> tuple[TargetPart, ...]:
    """Return the parts of the names of people, and in the control task of other people; ABSENT people have no name."""
    parts = []
    for position, pool in enumerate(profiles.schema.name_pools):
        words = np.array([index if word else ABSENT for index, word in enumerate(pool)])
        column = words[profiles.names[:, position]]
        parts.append(_classes(f"name {position + 1}", pool.__getitem__, _at(column, people), _at(column, control)))
    return tuple(parts)


def _at(column: Labels, people: Ids) -> Labels:
    """Return the elements of a column at some people, ABSENT for people who are ABSENT."""
    return np.where(people == ABSENT, ABSENT, column[people])


def _answer_parts(profiles: Profiles, parts: _Components, other: Ids) -> tuple[TargetPart, ...]:
    """Return the parts of answers: names for relations, and the words of every attribute.

    The control task asks the person `other[q]` instead of q, so its answers have the same distribution.
    """
    schema, found = profiles.schema, list[TargetPart]()
    asked = parts.last_person, other[parts.last_person]
    if schema.relations:
        relation = parts.subject - len(schema.attributes)
        real, control = (
            np.where(relation >= 0, profiles.relations[people, np.maximum(relation, 0)], ABSENT) for people in asked
        )
        found += _name_parts(profiles, real, control)
    for index, attribute in enumerate(schema.attributes):
        split = [attribute.words(value) for value in attribute.values]
        for position in range(len(split[0])):
            distinct = sorted({words[position] for words in split})
            number = {word: label for label, word in enumerate(distinct)}
            table = np.array([number[words[position]] for words in split])
            real, control = (
                _at(table, np.where(parts.subject == index, profiles.attributes[people, index], ABSENT))
                for people in asked
            )
            name = attribute.name if len(split[0]) == 1 else f"{attribute.name} {position + 1}"
            found.append(_classes(name, distinct.__getitem__, real, control))
    return tuple(found)


def _word_part(
    profiles: Profiles, subjects: tuple[str, ...], labels: Labels, types: Ids, rng: np.random.Generator
) -> TargetPart:
    """Return subjects as classes. In the control task, each type has a subject that is drawn at random."""
    random = rng.integers(len(subjects), size=int(types.max()) + 1)[types]
    return _classes("word", lambda index: profiles.schema.wording(subjects[index]).possessive, labels, random)


def fold_of(groups: Ids, num_folds: int, rng: np.random.Generator) -> Ids:
    """Return the fold of each question, (n,). Questions of one group are in one fold, and folds have equally many groups."""
    _, index = np.unique(groups, return_inverse=True)
    return rng.permutation(int(index.max()) + 1)[index] % num_folds


def site_slots(corpus: Questions, ids: Ids) -> dict[ProbeSite, int]:
    """Return the index of the piece at whose last token each site is, for the sites that all of some questions have."""
    found: dict[ProbeSite, int] = {}
    slots = corpus.slots(ids)
    has_row = [bool(np.not_equal(slot.row, NOTHING).all()) for slot in slots]
    measured = [bool(np.any(slot.label)) for slot in slots]
    subjects = [index for index, slot in enumerate(slots) if slot.table is Table.SUBJECT]
    found[ProbeSite.PERSON] = next(index for index, slot in enumerate(slots) if slot.table is Table.NAME)
    if corpus.hops > 1:
        found[ProbeSite.RELATION] = subjects[0]
    found[ProbeSite.SUBJECT] = subjects[-1]
    found[ProbeSite.ANSWER] = measured.index(True) - 1
    links = [index for index, slot in enumerate(slots) if slot.table is Table.NAME and measured[index]]
    if links:
        found |= {ProbeSite.CHAIN: links[-1], ProbeSite.CHAIN_END: links[-1] + 1}
    return {site: index for site, index in found.items() if has_row[index]}


class Pairs(NamedTuple):
    """Pairs of questions about one subject with other people at the last fact and other answers, as two arrays of ids."""

    base: Ids
    source: Ids


def draw_pairs(corpus: Questions, ids: Ids, num: int, rng: np.random.Generator, *, attempts: int = 20) -> Pairs:
    """Return at most `num` pairs of some questions; a question that finds no partner in some attempts is left out."""
    parts = _components(corpus, ids)
    answers = corpus.profiles.answers[parts.last_person, parts.subject]
    by_subject = np.argsort(parts.subject, kind="stable")
    begin = np.searchsorted(parts.subject[by_subject], parts.subject, side="left")
    end = np.searchsorted(parts.subject[by_subject], parts.subject, side="right")
    base = rng.choice(len(ids), min(num, len(ids)), replace=False)
    source = np.full(len(base), ABSENT)
    for _ in range(attempts):
        drawn = by_subject[rng.integers(begin[base], end[base])]
        fits = (parts.last_person[drawn] != parts.last_person[base]) & (answers[drawn] != answers[base])
        source = np.where((source == ABSENT) & fits, drawn, source)
    found = source != ABSENT
    return Pairs(ids[base[found]], ids[source[found]])
