"""Held-out splits of questions of two or more hops: disjoint, exhaustive, seeded; integer set algebra on whole arrays.

A two-hop question (person p, relation r, subject s) about q = r(p) is new in a component if p, r, (p, r), q, s, (q, s)
or (p, r, s) was drawn. Each question is in exactly one split: of the one component that is new, of SEVERAL if more are
(a pair counts only where neither of its halves is new, a tuple where nothing else is), or of TRAIN.
"""

import math

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import SPLITS, TRAIN, VOID
from raycap.facts.profiles import Profiles, Schema
from raycap.facts.relations import NO_PERSON
from raycap.spec import HeldOut, Split

Codes = NDArray[np.uint8]
Drawn = dict[Split, NDArray[np.integer]]

KINDS: tuple[Split, ...] = tuple(split for split in SPLITS if split not in (Split.TRAIN, Split.SEVERAL))
BIT: dict[Split, np.uint8] = {split: np.uint8(1 << place) for place, split in enumerate(KINDS)}


def _code_of_flags() -> Codes:
    """Split code for each of the 128 sets of new components."""
    table = np.zeros(1 << len(KINDS), np.uint8)
    for flags in range(len(table)):
        new = {split for split in KINDS if flags & BIT[split]}
        if new & {Split.FIRST_PEOPLE, Split.RELATIONS}:
            new.discard(Split.FIRST_PAIRS)
        if new & {Split.SECOND_PEOPLE, Split.SECOND_SUBJECTS}:
            new.discard(Split.SECOND_PAIRS)
        if len(new) > 1:
            new.discard(Split.TUPLES)
        split = Split.TRAIN if not new else new.pop() if len(new) == 1 else Split.SEVERAL
        table[flags] = SPLITS.index(split)
    return table


CODE_OF_FLAGS = _code_of_flags()


def codes(profiles: Profiles, held_out: HeldOut, hops: int) -> Codes | None:
    """Split code of every k-hop question, (N R^(k-1) S,), VOID where there is no answer; None if all are TRAIN.

    Questions of more than two hops take the first split, from the front, that one of their two-hop parts is held out in:
    so none that is trained spells or implies one that is not. Single hops are classed by the component they belong to
    (they are trained all the same). Raises ValueError for a fraction that holds out nothing or everything.
    """
    if not held_out.fractions and profiles.answers_are_whole:
        return None
    new = _draw(profiles, held_out)
    if hops == 1:
        return _one_hop(profiles, new).ravel()
    two_hop = _two_hop(profiles, new)
    longer, num_attributes = two_hop.reshape(len(two_hop), -1), len(profiles.schema.attributes)
    for _ in range(hops - 2):
        front = two_hop[:, :, num_attributes:, None]  # (N, R, R, 1): the first two relations as a question
        back = longer[profiles.relations].reshape(*front.shape[:3], -1)  # what is asked of the second person
        back = np.where(profiles.relations[:, :, None, None] == NO_PERSON, VOID, back)
        longer = np.where((front == TRAIN) | (back == VOID), back, front).reshape(len(two_hop), -1)
    return longer.ravel()


def num_held_out(schema: Schema, num_profiles: int, held_out: HeldOut) -> dict[Split, tuple[int, int]]:
    """How many components of each kind are held out, and of how many.

    Raises ValueError for a fraction that holds out nothing or everything.
    """
    num_relations, num_subjects = len(schema.relations), len(schema.subjects)
    sizes = {
        Split.FIRST_PEOPLE: num_profiles,
        Split.RELATIONS: num_relations,
        Split.FIRST_PAIRS: num_profiles * num_relations,
        Split.SECOND_PEOPLE: num_profiles,
        Split.SECOND_SUBJECTS: num_subjects,
        Split.SECOND_PAIRS: num_profiles * num_subjects,
        Split.TUPLES: num_profiles * num_relations * num_subjects,
    }
    numbers = {split: (round(share * sizes[split]), sizes[split]) for split, share in held_out.fractions.items()}
    for split, (num, size) in numbers.items():
        if not 0 < num < size:
            raise ValueError(
                f"questions.held_out.{split}: {held_out.fractions[split]:g} of {size} is "
                f"{'nothing' if num == 0 else 'everything'}; one of them is {1 / size:.3g}"
            )
    return numbers


def expected_trained_share(held_out: HeldOut, hops: int) -> float:
    """Share of the k-hop questions that is expected to be trained: each two-hop part must be new in nothing."""
    return math.prod(1 - share for share in held_out.fractions.values()) ** (hops - 1)


def followed_share(held_out: HeldOut, num_relations: int) -> float:
    """Share of the relations that some question of two or more hops follows."""
    return 1 - round(held_out.relations * num_relations) / num_relations if num_relations else 1.0


def _draw(profiles: Profiles, held_out: HeldOut) -> Drawn:
    """The components of each kind that are held out, as indices into their own population."""
    drawn: Drawn = {}
    for split, (num, size) in num_held_out(profiles.schema, profiles.num_profiles, held_out).items():
        rng = np.random.default_rng([held_out.seed, *split.encode()])
        drawn[split] = rng.choice(size, num, replace=False, shuffle=False)
    return drawn


def _flags(shape: tuple[int, ...], new: Drawn, *kinds: Split) -> Codes:
    """An array with the bits of some kinds set: people over rows, relations or subjects over columns, pairs in both."""
    flags = np.zeros(shape, np.uint8)
    for kind in kinds:
        chosen = new.get(kind, np.empty(0, np.int64))
        if kind in (Split.FIRST_PEOPLE, Split.SECOND_PEOPLE):
            flags[chosen] |= BIT[kind]
        elif kind in (Split.RELATIONS, Split.SECOND_SUBJECTS):
            flags[:, chosen] |= BIT[kind]
        else:
            flags.reshape(-1)[chosen] |= BIT[kind]
    return flags


def _sides(profiles: Profiles, new: Drawn) -> tuple[Codes, Codes]:
    """What is new in (first person, relation), (N, R), and in (second person, subject), (N, S)."""
    schema, people = profiles.schema, profiles.num_profiles
    first_kinds = (Split.FIRST_PEOPLE, Split.RELATIONS, Split.FIRST_PAIRS)
    second_kinds = (Split.SECOND_PEOPLE, Split.SECOND_SUBJECTS, Split.SECOND_PAIRS)
    first = _flags((people, len(schema.relations)), new, *first_kinds)
    return first, _flags((people, len(schema.subjects)), new, *second_kinds)


def _one_hop(profiles: Profiles, new: Drawn) -> Codes:
    """Codes (N, S): a fact belongs to the component that it would be the first or the second half of."""
    first, second = _sides(profiles, new)
    flags = second.copy()
    flags[:, len(profiles.schema.attributes) :] |= first
    if Split.FIRST_PEOPLE in new:
        flags[new[Split.FIRST_PEOPLE]] |= BIT[Split.FIRST_PEOPLE]
    return np.where(profiles.answers == NO_PERSON, VOID, CODE_OF_FLAGS[flags])


def _two_hop(profiles: Profiles, new: Drawn) -> Codes:
    """Codes (N, R, S)."""
    first, second = _sides(profiles, new)
    flags = first[:, :, None] | second[profiles.relations]
    if Split.TUPLES in new:
        flags.reshape(-1)[new[Split.TUPLES]] |= BIT[Split.TUPLES]
    found = CODE_OF_FLAGS[flags]
    if not profiles.answers_are_whole:
        lost = (profiles.answers == NO_PERSON)[profiles.relations] | (profiles.relations == NO_PERSON)[:, :, None]
        found[lost] = VOID
    return found
