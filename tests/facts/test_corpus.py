"""Corpora: ids, answers and texts of questions, biographies, names and random data."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.biographies import BiographyCorpus
from raycap.facts.build import corpora_of
from raycap.facts.corpus import END, NOTHING, Corpus, Table, TrainedIds, num_facts, render_texts
from raycap.facts.names import RELATIONS
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.random_data import pairs, strings
from raycap.facts.templates import LEADS, lead_texts
from raycap.spec import (
    Biographies,
    HeldOut,
    Kind,
    NamePools,
    NamesOnly,
    QuestionsByShare,
    RandomPairs,
    RandomStrings,
    RelationStructure,
)
from tests.support.strategies import populations

SMALL = NamePools(first=9, middle=9, last=9)
PEOPLE = generate(census_schema(SMALL, 4), 50, seed=0)
PAIRED = generate(census_schema(SMALL, 4, RelationStructure.BIPARTITE), 50, seed=0)


def facts_of(profiles: Profiles) -> dict[tuple[str, str], str]:
    """Return every fact by (name, subject), computed directly from the arrays of the population."""
    schema, num_attributes = profiles.schema, len(profiles.schema.attributes)
    return {
        (profiles.full_name(person), subject.replace("_", " ")): (
            profiles.attribute_value(person, s)
            if s < num_attributes
            else profiles.full_name(profiles.relations[person, s - num_attributes])
        )
        for person in range(profiles.num_profiles)
        for s, subject in enumerate(schema.subjects)
        if s < num_attributes or profiles.relations[person, s - num_attributes] >= 0
    }


@settings(max_examples=30, deadline=None)
@given(populations(), st.integers(1, 3))
def test_every_combination_of_person_relations_and_subject_is_one_question(profiles: Profiles, hops: int) -> None:
    questions = Questions(profiles, hops)
    components = questions.unpack(np.arange(questions.num_ids))
    rows = {
        (int(p), *map(int, r), int(s))
        for p, r, s in zip(components.person, components.relations, components.subject, strict=True)
    }
    schema = profiles.schema
    num = profiles.num_profiles * len(schema.relations) ** (hops - 1) * len(schema.subjects)
    assert len(rows) == questions.num_ids == num


@pytest.mark.parametrize("profiles", [PEOPLE, PAIRED], ids=["uniform", "bipartite"])
@pytest.mark.parametrize("chain_of_thought", [False, True])
def test_answers_and_chains_follow_the_relations(profiles: Profiles, chain_of_thought: bool) -> None:
    facts = facts_of(profiles)
    for hops in (1, 2, 3):
        questions = Questions(profiles, hops, chain_of_thought)
        trained = TrainedIds(questions)
        for text in render_texts(questions, trained[np.arange(0, len(trained), 17)]):
            prompt, answer = text.removesuffix(END).split("? Answer: ")
            name, *subjects = prompt.removeprefix("Question: What was ").split("'s ")
            steps = []
            for subject in subjects:
                name = facts[name, subject]
                steps.append(name)
            assert answer == ("; ".join(steps) if chain_of_thought else steps[-1])


def test_a_question_has_the_documented_text() -> None:
    profiles = generate(census_schema(NamePools(), 4), 3, seed=0)
    (text,) = render_texts(Questions(profiles, 2), np.array([2 * 8 + 1]))  # person 0, best friend, city
    friend = profiles.relations[0, 2]
    city = profiles.attribute_value(friend, 1)
    assert text == f"Question: What was {profiles.full_name(0)}'s best friend's birth city? Answer: {city}<|end|>"


def test_questions_without_an_answer_are_not_trained() -> None:
    facts = facts_of(PAIRED)
    one_hop, two_hop = Questions(PAIRED, 1), Questions(PAIRED, 2)
    assert (
        len(TrainedIds(one_hop)) == num_facts(one_hop) == len(facts) == 50 * 8 - 50
    )  # half have no parent, half no child
    parents = sum((name, "parent") in facts for name, subject in facts if subject == "employer")
    assert parents == 25
    chains = sum(
        (facts[name, relation.replace("_", " ")], subject.replace("_", " ")) in facts
        for relation in PAIRED.schema.relations
        for subject in PAIRED.schema.subjects
        for name in map(PAIRED.full_name, range(50))
        if (name, relation.replace("_", " ")) in facts
    )
    assert len(TrainedIds(two_hop)) == chains


@pytest.mark.parametrize("profiles", [PEOPLE, PAIRED], ids=["uniform", "bipartite"])
@pytest.mark.parametrize("permute", [False, True])
def test_a_biography_states_every_fact_of_a_person_once(profiles: Profiles, permute: bool) -> None:
    corpus = BiographyCorpus(profiles, Biographies(kind="biographies", per_person=3, permute=permute))
    facts = facts_of(profiles)
    texts = render_texts(corpus, np.arange(corpus.num_ids))
    orders = set()
    for number, text in enumerate(texts):
        name = profiles.full_name(number // 3)
        body = text.removeprefix(f"Biography: {name}").removesuffix(END)
        assert body != text
        sentences = body.removesuffix(".").split(". They")
        subjects = []
        for sentence in sentences:
            (subject,) = [
                subject
                for subject in profiles.schema.subjects
                for lead in profiles.schema.leads(subject)
                if sentence == f"{lead} {facts.get((name, subject.replace('_', ' ')))}"
            ]
            subjects.append(subject)
        assert sorted(subjects) == sorted(s for s in profiles.schema.subjects if (name, s.replace("_", " ")) in facts)
        orders.add(tuple(subjects))
    assert (len(orders) > 20) == permute
    assert len(set(texts)) == len(texts)  # k different biographies of each person
    assert texts == render_texts(BiographyCorpus(profiles, corpus.spec), np.arange(corpus.num_ids))


def test_each_subject_has_twenty_leads_and_no_lead_is_a_prefix_of_another() -> None:
    subjects = {**dict.fromkeys((*LEADS, "shoe_size"), False), **dict.fromkeys(RELATIONS, True)}
    leads = {
        subject: lead_texts(subject, subject.replace("_", " "), is_relation=is_relation)
        for subject, is_relation in subjects.items()
    }
    assert all(len(set(texts)) >= 20 for texts in leads.values())
    every = sorted(lead + " " for texts in leads.values() for lead in texts)
    assert len(set(every)) == len(every)
    assert not any(b.startswith(a) for a, b in pairwise(every))
    assert all(lead[0] == " " and lead[-2].isalpha() for lead in every)


def test_texts_of_names_and_strings_lie_between_end_tokens() -> None:
    assert render_texts(NamesCorpus(PEOPLE), np.array([3])) == [f"{END} {PEOPLE.full_name(3)}{END}"]
    spec = RandomStrings(source="strings", num_strings=40, vocab_size=7, length=12)
    texts = render_texts(NamesCorpus(strings(spec)), np.arange(40))
    words = [text.split(" ")[1:] for text in texts]
    assert all(len(row) == 12 for row in words)
    assert {word.removesuffix(END) for row in words for word in row} == {f"T{token}" for token in range(7)}


def test_random_pairs_have_given_keys_and_uniform_values() -> None:
    spec = RandomPairs(source="pairs", num_keys=3000, num_relations=2, num_values=8)
    profiles = pairs(spec)
    assert profiles.facts.names_given
    assert len({profiles.full_name(key) for key in range(3000)}) == 3000
    counts = np.bincount(profiles.attributes.ravel(), minlength=8)
    assert counts == pytest.approx(750, abs=5 * np.sqrt(750))
    (text,) = render_texts(Questions(profiles, 1), np.array([1]))
    assert text == f"Question: What was A0 B0 C0's relation 2? Answer: V{profiles.attributes[0, 1]}{END}"


@pytest.mark.parametrize(
    "spec",
    [
        QuestionsByShare(hops=(1, 2, 3), chain_of_thought=True, held_out=HeldOut(tuples=0.1)),
        Biographies(kind="biographies", per_person=2, permute=True),
        NamesOnly(kind="names"),
    ],
)
def test_every_kind_of_corpus_satisfies_the_protocol(spec: QuestionsByShare | Biographies | NamesOnly) -> None:
    corpora: tuple[Corpus, ...] = corpora_of(PAIRED, spec)
    assert tuple(corpus.kind for corpus in corpora) == spec.kinds
    assert sum(spec.shares) == pytest.approx(1)
    for corpus in corpora:
        assert corpus.texts[0] == END
        ids = np.arange(0, corpus.num_ids, 7)
        labels = np.zeros(len(corpus.measures) + 1, bool)
        for slot in corpus.slots(ids):
            rows = np.broadcast_to(slot.row, len(ids))
            limit = {Table.TEXT: len(corpus.texts), Table.NAME: 50, Table.SUBJECT: 8}.get(slot.table, 10_000)
            assert ((rows >= NOTHING) & (rows < limit)).all()
            labels[np.broadcast_to(slot.label, len(ids))] = True
        assert labels[1:].all()  # every measure occurs in some text
        assert corpus.uses == max(corpus.kind.hops, 1) or corpus.kind is Kind.BIOGRAPHY
