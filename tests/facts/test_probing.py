"""Folds, controls, sites and pairs of probes."""

import numpy as np
import pytest

from raycap.facts.build import corpora_of
from raycap.facts.corpus import SPLITS, render_pieces
from raycap.facts.probing import draw_pairs, draw_questions, fold_of, probe_task, site_slots
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.spec import HeldOut, NamePools, QuestionsByShare, RelationStructure, Split
from raycap.spec.probes import ProbeSite, ProbeTarget

PEOPLE = generate(census_schema(NamePools(first=8, middle=8, last=8), 3), 60, seed=0)
ONE_HOP, TWO_HOP = corpora_of(PEOPLE, QuestionsByShare(hops=(1, 2), held_out=HeldOut(tuples=0.1)))
CHAIN = Questions(PEOPLE, 2, chain_of_thought=True)
HALVES = Questions(
    generate(census_schema(NamePools(first=8, middle=8, last=8), 4, RelationStructure.BIPARTITE), 60, seed=0), 2
)


def draw(corpus: Questions, *splits: Split) -> np.ndarray:
    return draw_questions(corpus, splits or (Split.TRAIN,), 1000, np.random.default_rng(0))[0]


@pytest.mark.parametrize("corpus", [ONE_HOP, TWO_HOP, CHAIN, HALVES], ids=["one hop", "two hops", "chain", "bipartite"])
def test_labels_are_those_of_the_texts_and_no_fact_is_in_two_folds(corpus: Questions) -> None:
    ids = draw(corpus)
    _, person, relations, subject = corpus.unpack(ids)
    first = person if corpus.hops == 1 else corpus.profiles.relations[person, relations[:, 0]]
    pieces, measured = render_pieces(corpus, ids)
    answers = [pieces[-2][index].strip() for index in range(len(ids))]
    names = [corpus.profiles.full_name(p) for p in (person if corpus.hops == 1 else first)]
    tasks = {target: probe_task(corpus, ids, target, np.random.default_rng(1)) for target in ProbeTarget}
    assert [target for target, task in tasks.items() if task is None] == (
        [ProbeTarget.RELATION, ProbeTarget.BRIDGE] if corpus.hops == 1 else []
    )
    for target, task in tasks.items():
        if task is None:
            continue
        words = [
            "".join((" " if part.name.startswith("name") and text else "") * bool(text) + text for part in task.parts
                    if part.labels[index] >= 0 for text in [part.words[part.labels[index]]]).strip()
            for index in range(len(ids))
        ]  # fmt: skip
        expected = {
            ProbeTarget.ANSWER: answers,
            ProbeTarget.BRIDGE: names,
            ProbeTarget.PERSON: [corpus.profiles.full_name(p) for p in person],
            ProbeTarget.SUBJECT: [
                corpus.profiles.schema.wording(corpus.profiles.schema.subjects[s]).possessive for s in subject
            ],
        }
        assert words == expected.get(target, words)
        assert all(((part.labels < 0) == (part.control < 0)).mean() > 0.5 for part in task.parts)
        folds = fold_of(task.groups, 4, np.random.default_rng(2))
        pairs = (
            np.stack([first, subject], axis=1)
            if target in (ProbeTarget.ANSWER, ProbeTarget.SUBJECT)
            else np.stack([person, relations[:, 0] if corpus.hops > 1 else subject], axis=1)
        )
        _, fact = np.unique(pairs, axis=0, return_inverse=True)
        assert len(np.unique(np.stack([fact.ravel(), folds], axis=1), axis=0)) == fact.max() + 1
        assert set(folds) == set(range(4))
    assert measured[-2].all()


def test_a_type_has_one_label_in_the_control_task() -> None:
    ids = draw(TWO_HOP)
    for target in ProbeTarget:
        task = probe_task(TWO_HOP, ids, target, np.random.default_rng(1))
        assert task is not None
        for part in task.parts:
            pairs = np.unique(np.stack([task.types, part.control], axis=1), axis=0)
            assert len(pairs) == len(np.unique(task.types))


def test_questions_are_drawn_from_the_given_splits() -> None:
    ids, codes = draw_questions(TWO_HOP, (Split.TRAIN, Split.TUPLES), 50, np.random.default_rng(0))
    assert len(ids) == 100
    assert np.array_equal(codes, TWO_HOP.split_codes[ids])
    assert {SPLITS[code] for code in codes} == {Split.TRAIN, Split.TUPLES}


def test_sites_are_the_pieces_that_they_name() -> None:
    for corpus, missing in ((ONE_HOP, 3), (TWO_HOP, 2), (CHAIN, 0)):
        ids = draw(corpus)
        pieces, _ = render_pieces(corpus, ids)
        sites = site_slots(corpus, ids)
        assert len(sites) == len(ProbeSite) - missing
        assert all(text.endswith("Answer:") for text in pieces[sites[ProbeSite.ANSWER]])
        person = corpus.unpack(ids).person
        assert pieces[sites[ProbeSite.PERSON]] == [f" {PEOPLE.full_name(p)}" for p in person]
        if corpus.hops > 1:
            relation = corpus.unpack(ids).relations[:, 0]
            phrases = [PEOPLE.schema.wording(PEOPLE.schema.relations[r]).possessive for r in relation]
            assert pieces[sites[ProbeSite.RELATION]] == phrases


def test_pairs_share_the_subject_and_differ_in_bridge_and_answer() -> None:
    for corpus in (ONE_HOP, TWO_HOP):
        pairs = draw_pairs(corpus, draw(corpus), 200, np.random.default_rng(0))
        base, source = corpus.unpack(pairs.base), corpus.unpack(pairs.source)
        people = [
            part.person if corpus.hops == 1 else PEOPLE.relations[part.person, part.relations[:, 0]]
            for part in (base, source)
        ]
        assert len(pairs.base) == 200
        assert np.array_equal(base.subject, source.subject)
        assert (people[0] != people[1]).all()
        assert (PEOPLE.answers[people[0], base.subject] != PEOPLE.answers[people[1], base.subject]).all()
