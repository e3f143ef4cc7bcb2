"""Questions as ids: every question once, answers read off the profiles."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import END, num_questions, render, unpack
from raycap.spec import NamePools
from tests.strategies import populations


@settings(max_examples=30, deadline=None)
@given(populations(), st.integers(1, 3))
def test_every_chain_of_relations_is_one_question(profiles: Profiles, hops: int) -> None:
    total = num_questions(profiles, hops)
    questions = unpack(profiles, hops, np.arange(total))
    rows = {
        (int(p), *map(int, r), int(s))
        for p, r, s in zip(questions.person, questions.relations, questions.subject, strict=True)
    }
    schema = profiles.schema
    assert len(rows) == total == profiles.num_profiles * len(schema.relations) ** (hops - 1) * len(schema.subjects)


def test_answers_follow_the_relations() -> None:
    profiles = generate(census_schema(NamePools(first=9, middle=9, last=9), 4), 50, seed=0)
    schema = profiles.schema
    facts = {
        (profiles.full_name(person), subject.replace("_", " ")): (
            profiles.attribute_value(person, s) if s < 4 else profiles.full_name(profiles.relations[person, s - 4])
        )
        for person in range(50)
        for s, subject in enumerate(schema.subjects)
    }
    for hops in (1, 2, 3):
        ids = np.arange(0, num_questions(profiles, hops), 17)
        for prompt, answer in render(profiles, unpack(profiles, hops, ids)):
            name, *chain = prompt.removeprefix("Question: What was ").removesuffix("? Answer:").split("'s ")
            for subject in chain:
                name = facts[name, subject]
            assert answer == f" {name}"
            assert END not in prompt + answer


def test_the_text_of_a_question() -> None:
    profiles = generate(census_schema(NamePools(), 4), 3, seed=0)
    ((prompt, answer),) = render(profiles, unpack(profiles, 2, np.array([2 * 8 + 1])))  # person 0, best friend, city
    friend = profiles.relations[0, 2]
    assert prompt == f"Question: What was {profiles.full_name(0)}'s best friend's birth city? Answer:"
    assert answer == f" {profiles.attribute_value(friend, 1)}"
