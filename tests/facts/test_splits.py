"""Held-out splits: disjoint, exhaustive and seeded, and no held-out question is trained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts import splits
from raycap.facts.corpus import SPLITS, TRAIN, VOID, TrainedIds
from raycap.facts.order import Mix, Order
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.splits import KINDS, codes, num_held_out
from raycap.spec import HeldOut, NamePools, RelationStructure, Split

SMALL = NamePools(first=9, middle=9, last=9)
UNIFORM = generate(census_schema(SMALL, 4), 40, seed=0)
PAIRED = generate(census_schema(SMALL, 4, RelationStructure.BIPARTITE), 40, seed=0)
ALL_KINDS = HeldOut(
    first_people=0.1, people=0.1, relations=0.25, first_pairs=0.1, second_people=0.1, second_subjects=0.125,
    second_pairs=0.1, tuples=0.1,
)  # fmt: skip
held_outs = st.builds(
    HeldOut,
    first_people=st.sampled_from([0.0, 0.05, 0.3]),
    people=st.sampled_from([0.0, 0.1]),
    relations=st.sampled_from([0.0, 0.25]),
    first_pairs=st.sampled_from([0.0, 0.1]),
    second_people=st.sampled_from([0.0, 0.1]),
    second_subjects=st.sampled_from([0.0, 0.125, 0.5]),
    second_pairs=st.sampled_from([0.0, 0.2]),
    tuples=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 3),
)
populations = st.sampled_from([UNIFORM, PAIRED])


def components(profiles: Profiles, person: int, relation: int, subject: int) -> dict[Split, set[tuple[int, ...]]]:
    """Return the components of a two-hop question; a person in either role is one of PEOPLE."""
    second = int(profiles.relations[person, relation])
    return {
        Split.FIRST_PEOPLE: {(person,)},
        Split.PEOPLE: {(person,), (second,)},
        Split.RELATIONS: {(relation,)},
        Split.FIRST_PAIRS: {(person, relation)},
        Split.SECOND_PEOPLE: {(second,)},
        Split.SECOND_SUBJECTS: {(subject,)},
        Split.SECOND_PAIRS: {(second, subject)},
        Split.TUPLES: {(person, relation, subject)},
    }


@settings(max_examples=40, deadline=None)
@given(populations, held_outs, st.integers(1, 3))
def test_every_question_is_in_exactly_one_split(profiles: Profiles, held_out: HeldOut, hops: int) -> None:
    questions = Questions(profiles, hops, held_out=held_out)
    found = questions.split_codes
    if found is None:
        assert not held_out.fractions
        assert profiles is UNIFORM
        return
    assert found.shape == (questions.num_ids,)
    assert set(np.unique(found)) <= {*range(len(SPLITS)), VOID}
    indices = questions.unpack(np.arange(questions.num_ids))
    person, exists = indices.person, np.ones(questions.num_ids, bool)
    for relation in indices.relations.T:
        exists &= person >= 0
        person = np.where(exists, profiles.relations[person, relation], -1)
    exists &= person >= 0
    exists[exists] &= profiles.answers[person[exists], indices.subject[exists]] >= 0
    assert np.array_equal(found == VOID, ~exists)


@settings(max_examples=25, deadline=None)
@given(populations, held_outs, st.booleans(), st.integers(1, 3), st.integers(0, 2))
def test_no_held_out_question_is_trained(
    profiles: Profiles, held_out: HeldOut, chain_of_thought: bool, hops: int, rank: int
) -> None:
    """Checks the texts that a worker receives over several epochs against the drawn components."""
    sizes = {
        Split.FIRST_PEOPLE: (40,), Split.PEOPLE: (40,), Split.RELATIONS: (4,), Split.FIRST_PAIRS: (40, 4),
        Split.SECOND_PEOPLE: (40,), Split.SECOND_SUBJECTS: (8,), Split.SECOND_PAIRS: (40, 8), Split.TUPLES: (40, 4, 8),
    }  # fmt: skip
    drawn = splits._draw(profiles, held_out)
    assert set(drawn) == set(held_out.fractions)
    new = {
        split: set(zip(*(axis.tolist() for axis in np.unravel_index(chosen, sizes[split])), strict=True))
        for split, chosen in drawn.items()
    }
    assert all(len(components) == round(held_out.fractions[s] * np.prod(sizes[s])) for s, components in new.items())
    questions = Questions(profiles, hops, chain_of_thought, held_out)
    trained = TrainedIds(questions)
    order = Order((len(trained),), (hops,), (Mix(0, (1.0,)),), 64, 0)
    steps = 3 * -(-len(trained) // 64)
    trained_indices = np.concatenate([order.step_indices(step, rank, 3)[0] for step in range(0, steps, 2)])
    indices = questions.unpack(np.unique(trained[trained_indices]))
    num_attributes = len(profiles.schema.attributes)
    for p, chain, s in zip(indices.person.tolist(), indices.relations.tolist(), indices.subject.tolist(), strict=True):
        person = p
        for i, relation in enumerate(chain):  # every two-hop part of the question
            following = num_attributes + chain[i + 1] if i + 1 < len(chain) else s
            for split, of_kind in components(profiles, person, relation, following).items():
                assert not of_kind & new.get(split, set())
            person = int(profiles.relations[person, relation])


@given(populations, st.sets(st.sampled_from(KINDS), min_size=1), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_adding_a_kind_does_not_change_the_components_of_another(
    profiles: Profiles, kinds: set[Split], seed: int
) -> None:
    """A held-out question remains held out, and a training question can move only into the split of the added kind."""
    fractions = {str(split): getattr(ALL_KINDS, split) for split in kinds}
    without = codes(profiles, HeldOut(**fractions, seed=seed), 2)
    for added in set(KINDS) - kinds:
        with_it = codes(profiles, HeldOut(**fractions, **{str(added): getattr(ALL_KINDS, added)}, seed=seed), 2)
        moved = without != with_it
        allowed = {SPLITS.index(added), SPLITS.index(Split.SEVERAL), *(SPLITS.index(split) for split in kinds)}
        assert set(with_it[moved]) <= allowed
        assert ((without == TRAIN) | (with_it != TRAIN)).all()  # no held-out question becomes a training question
        assert set(with_it[moved & (without == TRAIN)]) <= {SPLITS.index(added)}


def test_each_kind_holds_out_the_declared_fraction_of_its_components() -> None:
    """With a single kind, so that no question belongs to SEVERAL."""
    for split in KINDS:
        held_out = HeldOut(**{str(split): getattr(ALL_KINDS, split)}, seed=3)
        found = codes(UNIFORM, held_out, 2)
        indices = Questions(UNIFORM, 2).unpack(np.arange(len(found)))
        components_of: dict[str, set] = {"held_out": set(), "trained": set()}
        for code, p, (r,), s in zip(found, indices.person, indices.relations, indices.subject, strict=True):
            assert SPLITS[code] in (split, Split.TRAIN)
            key = "trained" if code == TRAIN else "held_out"
            components_of[key] |= components(UNIFORM, int(p), int(r), int(s))[split]
        if split is Split.PEOPLE:  # a question is held out with only one new person, so the other is not new
            components_of["held_out"] -= components_of["trained"]
        assert not components_of["held_out"] & components_of["trained"]
        num, size = num_held_out(UNIFORM.schema, 40, held_out)[split]
        assert num == round(getattr(ALL_KINDS, split) * size)
        if split in (Split.SECOND_PEOPLE, Split.SECOND_PAIRS):  # some people are not the target of any relation
            assert len(components_of["held_out"]) <= num
        else:
            assert len(components_of["held_out"]) == num


def test_a_question_with_two_new_components_belongs_to_several() -> None:
    found = codes(UNIFORM, ALL_KINDS, 2).reshape(40, 4, 8)
    only = {split: HeldOut(**{str(split): getattr(ALL_KINDS, split)}) for split in KINDS}
    new = {split: codes(UNIFORM, held_out, 2).reshape(40, 4, 8) != TRAIN for split, held_out in only.items()}
    several = new[Split.FIRST_PEOPLE] & new[Split.SECOND_SUBJECTS]
    assert several.any()
    assert (found[several] == SPLITS.index(Split.SEVERAL)).all()
    pair_of_new_person = new[Split.FIRST_PAIRS] & new[Split.FIRST_PEOPLE] & ~new[Split.RELATIONS]
    others = new[Split.SECOND_PEOPLE] | new[Split.SECOND_SUBJECTS] | new[Split.SECOND_PAIRS]
    others |= new[Split.PEOPLE]
    assert (found[pair_of_new_person & ~others] == SPLITS.index(Split.FIRST_PEOPLE)).all()
    pure_tuples = found == SPLITS.index(Split.TUPLES)
    assert not any((pure_tuples & new[split]).any() for split in KINDS if split is not Split.TUPLES)


def test_people_that_are_held_out_take_part_in_no_role() -> None:
    held_out = HeldOut(people=0.2, first_pairs=0.2)
    found = codes(UNIFORM, held_out, 2).reshape(40, 4, 8)
    held = np.zeros(40, bool)
    held[splits._draw(UNIFORM, held_out)[Split.PEOPLE]] = True
    assert held.sum() == 8
    composed = held[:, None] | held[UNIFORM.relations]
    assert (found[composed] != TRAIN).all()
    # A pair of a held-out person is not new in itself; a new pair that leads to a held-out person is one of several.
    assert (found[held] == SPLITS.index(Split.PEOPLE)).all()
    new_pair = codes(UNIFORM, HeldOut(first_pairs=0.2), 2).reshape(40, 4, 8) != TRAIN
    leads_to_held = new_pair & (~held[:, None] & held[UNIFORM.relations])[:, :, None]
    assert leads_to_held.any()
    assert (found[leads_to_held] == SPLITS.index(Split.SEVERAL)).all()
    one_hop = Questions(UNIFORM, 1, held_out=held_out).split_codes.reshape(40, 8)
    assert (one_hop[held] == SPLITS.index(Split.PEOPLE)).all()


def test_one_hop_questions_have_splits_and_are_all_trained() -> None:
    one_hop = Questions(UNIFORM, 1, held_out=ALL_KINDS)
    assert len(TrainedIds(one_hop)) == one_hop.num_ids
    found = one_hop.split_codes.reshape(40, 8)
    only_people = codes(UNIFORM, HeldOut(first_people=0.1), 1).reshape(40, 8)
    rows = (only_people == SPLITS.index(Split.FIRST_PEOPLE)).all(axis=1)
    assert rows.sum() == 4
    assert (found[rows] != TRAIN).all()


def test_splits_are_seeded() -> None:
    again = codes(UNIFORM, ALL_KINDS, 2)
    assert np.array_equal(codes(UNIFORM, ALL_KINDS, 2), again)
    assert not np.array_equal(codes(UNIFORM, ALL_KINDS.model_copy(update={"seed": 1}), 2), again)


REFUSED = [("relations", 0.02, "4 components, got 0.02"), ("second_subjects", 0.99, "8 components, got 0.99")]


@pytest.mark.parametrize(("kind", "fraction", "content"), REFUSED)
def test_fractions_that_hold_out_nothing_or_everything_are_refused(kind: str, fraction: float, content: str) -> None:
    with pytest.raises(ValueError, match=rf"held_out.{kind}: .*{content}"):
        codes(UNIFORM, HeldOut(**{kind: fraction}), 2)
