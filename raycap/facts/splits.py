"""Held-out splits of questions of two or more hops. Splits are disjoint, exhaustive and seeded.

A two-hop question (person p, relation r, subject s) about the second person q = r(p) has seven components: p, r, (p,
r), q, s, (q, s) and (p, r, s). A component is *new* if it was drawn to be held out. People are drawn for each role, and
for both roles together (Split.PEOPLE): then p or q is new. Each question is in exactly one split: that of its only kind of
new component, SEVERAL if it has more than one, or TRAIN if it has none. A pair counts as new only if neither of its halves
is, and a tuple only if nothing else is. See docs/science.md#splits.

The new components of a question are represented as a set of 8 bits, one per component kind. The bits of all N R S
questions are computed at once by broadcasting, and CODE_OF_FLAGS maps each of the 256 sets to a split code.
"""

import math

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import SPLITS, TRAIN, VOID
from raycap.facts.profiles import Profiles, Schema
from raycap.facts.relations import NO_PERSON
from raycap.spec import HeldOut, Split

Codes = NDArray[np.uint8]
Components = dict[Split, NDArray[np.integer]]
"""Held-out components of each kind, as indices into the flattened array of all components of that kind."""

KINDS: tuple[Split, ...] = tuple(split for split in SPLITS if split not in (Split.TRAIN, Split.SEVERAL))
"""The kinds of components that can be held out."""
BIT: dict[Split, np.uint8] = {split: np.uint8(1 << index) for index, split in enumerate(KINDS)}
"""Flag of each kind. Flags are combined with bitwise or."""


def _code_of_flags() -> Codes:
    """Return the split code for each of the 256 sets of new components, indexed by the combined flags."""
    table = np.zeros(1 << len(KINDS), np.uint8)
    for flags in range(len(table)):
        new = {split for split in KINDS if flags & BIT[split]}
        # A new person or relation makes every pair with it new, so the pair counts only if both halves are known.
        if new & {Split.FIRST_PEOPLE, Split.RELATIONS}:
            new.discard(Split.FIRST_PAIRS)
        if new & {Split.SECOND_PEOPLE, Split.SECOND_SUBJECTS}:
            new.discard(Split.SECOND_PAIRS)
        if len(new) > 1:  # likewise for a tuple with any other new component
            new.discard(Split.TUPLES)
        split = Split.TRAIN if not new else new.pop() if len(new) == 1 else Split.SEVERAL
        table[flags] = SPLITS.index(split)
    return table


CODE_OF_FLAGS = _code_of_flags()


def codes(profiles: Profiles, held_out: HeldOut, hops: int) -> Codes | None:
    """Return the split code of every k-hop question, shape (N R^(k-1) S,), VOID for questions without an answer.

    The result is None if all questions are TRAIN.

    A question of more than two hops has several two-hop parts. It takes the split of the first part that is held out,
    so no training question contains a held-out question. One-hop questions are assigned to a split by the components
    that they contain, although all of them are trained.

    Raises ValueError if a fraction holds out no component or all components of a kind.
    """
    if not held_out.fractions and profiles.all_answers_exist:
        return None
    new = _draw(profiles, held_out)
    if hops == 1:
        return _one_hop(profiles, new).ravel()
    two_hop = _two_hop(profiles, new)
    # A k-hop question (p, r_1, r_2, ..., s) consists of the two-hop question (p, r_1, r_2) in front and the (k-1)-hop
    # question (q, r_2, ..., s) about the second person q = r_1(p) behind it. `longer` has shape (N, R^(k-2) S): the
    # codes of all (k-1)-hop questions about each person. As a subject, r_2 has index num_attributes + r_2.
    longer, num_attributes = two_hop.reshape(len(two_hop), -1), len(profiles.schema.attributes)
    for _ in range(hops - 2):
        front = two_hop[:, :, num_attributes:, None]  # (N, R, R, 1)
        back = longer[profiles.relations].reshape(*front.shape[:3], -1)  # (N, R, R, R^(k-3) S)
        # NO_PERSON is -1 and has selected the last person above; there is no second person to ask about.
        back = np.where(profiles.relations[:, :, None, None] == NO_PERSON, VOID, back)
        longer = np.where((front == TRAIN) | (back == VOID), back, front).reshape(len(two_hop), -1)
    return longer.ravel()


def num_held_out(schema: Schema, num_profiles: int, held_out: HeldOut) -> dict[Split, tuple[int, int]]:
    """Return for each held-out kind the number of held-out components and the number of all components.

    Raises ValueError if a fraction holds out no component or all components of its kind.
    """
    num_relations, num_subjects = len(schema.relations), len(schema.subjects)
    sizes = {
        Split.FIRST_PEOPLE: num_profiles,
        Split.PEOPLE: num_profiles,
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
                f"questions.held_out.{split}: must hold out at least 1 and not all of {size} components, got "
                f"{held_out.fractions[split]:g}, which holds out {num}; one component is {1 / size:.3g}"
            )
    return numbers


def expected_trained_share(held_out: HeldOut, hops: int) -> float:
    """Return the expected fraction of k-hop questions that are trained: no two-hop part may have a new component."""
    return math.prod(share_without(split, share) for split, share in held_out.fractions.items()) ** (hops - 1)


def share_without(split: Split, fraction: float) -> float:
    """Return the expected fraction of two-hop questions without a held-out component of one kind.

    Held-out people may be in neither of two roles; the people in both roles are taken as different.
    """
    return (1 - fraction) ** (2 if split is Split.PEOPLE else 1)


def followed_share(held_out: HeldOut, num_relations: int) -> float:
    """Return the fraction of the relations that training questions of two or more hops follow."""
    return 1 - round(held_out.relations * num_relations) / num_relations if num_relations else 1.0


def _draw(profiles: Profiles, held_out: HeldOut) -> Components:
    """Draw the held-out components of each kind, from a separate random stream for each kind."""
    drawn: Components = {}
    for split, (num, size) in num_held_out(profiles.schema, profiles.num_profiles, held_out).items():
        rng = np.random.default_rng([held_out.seed, *split.encode()])
        drawn[split] = rng.choice(size, num, replace=False, shuffle=False)
    return drawn


def _flags(shape: tuple[int, ...], new: Components, *kinds: Split) -> Codes:
    """Return flags of pairs, shape (people, relations) or (people, subjects), with the bits of new components of some
    kinds.

    A new person sets its bit in a row, a new relation or subject in a column, and a new pair in one element.
    """
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


def _sides(profiles: Profiles, new: Components) -> tuple[Codes, Codes]:
    """Return the flags of (first person, relation), shape (N, R), and of (second person, subject), shape (N, S)."""
    schema, people = profiles.schema, profiles.num_profiles
    first_kinds = (Split.FIRST_PEOPLE, Split.RELATIONS, Split.FIRST_PAIRS)
    second_kinds = (Split.SECOND_PEOPLE, Split.SECOND_SUBJECTS, Split.SECOND_PAIRS)
    first = _flags((people, len(schema.relations)), new, *first_kinds)
    second = _flags((people, len(schema.subjects)), new, *second_kinds)
    if Split.PEOPLE in new:
        chosen = new[Split.PEOPLE]
        first[chosen] = first[chosen] & ~BIT[Split.FIRST_PAIRS] | BIT[Split.PEOPLE]
        second[chosen] = second[chosen] & ~BIT[Split.SECOND_PAIRS] | BIT[Split.PEOPLE]
    return first, second


def _one_hop(profiles: Profiles, new: Components) -> Codes:
    """Return the split codes of one-hop questions, shape (N, S).

    A fact gets the flags that it has as the second half (person, subject) of a two-hop question, a relation also those
    that it has as the first half, and every fact about a held-out first person that person's flag.
    """
    first, second = _sides(profiles, new)
    flags = second.copy()
    flags[:, len(profiles.schema.attributes) :] |= first
    if Split.FIRST_PEOPLE in new:
        flags[new[Split.FIRST_PEOPLE]] |= BIT[Split.FIRST_PEOPLE]
    return np.where(profiles.answers == NO_PERSON, VOID, CODE_OF_FLAGS[flags])


def _two_hop(profiles: Profiles, new: Components) -> Codes:
    """Return the split codes of two-hop questions, shape (N, R, S)."""
    first, second = _sides(profiles, new)
    # (N, R, 1) | (N, R, S): second[q] for q = r(p) are the flags of all subjects of the second person.
    flags = first[:, :, None] | second[profiles.relations]
    if Split.TUPLES in new:
        flags.reshape(-1)[new[Split.TUPLES]] |= BIT[Split.TUPLES]
    split_codes: Codes = CODE_OF_FLAGS[flags]
    if not profiles.all_answers_exist:
        no_answer = (profiles.answers == NO_PERSON)[profiles.relations]
        no_second_person = (profiles.relations == NO_PERSON)[:, :, None]
        split_codes[no_answer | no_second_person] = VOID
    return split_codes
