"""How relations are drawn: uniformly, or as bijections and matchings."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raycap.spec import RelationStructure

NO_PERSON = -1
"""Where a person has no such relation: parents have no parent, children no child, if relations are bipartite."""
MATCHINGS = ("best_friend", "worst_enemy")
INVERSES = ("parent", "child")

Stream = Callable[[str], np.random.Generator]
IntArray = NDArray[np.int32]


def draw_relations(
    names: tuple[str, ...], num_profiles: int, structure: RelationStructure, self_relations: bool, stream: Stream
) -> IntArray:
    """Whom each relation of each person leads to, shape (N, R); `stream` gives every purpose a generator of its own.

    Raises ValueError for an odd number of people where they are to be paired up.
    """
    bipartite = structure is RelationStructure.BIPARTITE
    if bipartite and num_profiles % 2:
        raise ValueError(f"bipartite relations pair people up, so their number must be even, got {num_profiles}")

    def column(name: str) -> IntArray:
        if bipartite and name in MATCHINGS:
            left, right = _halves(num_profiles, stream(name))
            return _map(num_profiles, (left, right), (right, left))
        if bipartite and name in INVERSES:
            children, parents = _halves(num_profiles, stream("parent"))
            pair = (children, parents) if name == "parent" else (parents, children)
            return _map(num_profiles, pair)
        if self_relations:
            return stream(name).integers(num_profiles, size=num_profiles, dtype=np.int32)
        others = stream(name).integers(num_profiles - 1, size=num_profiles, dtype=np.int32)
        return others + (others >= np.arange(num_profiles, dtype=np.int32))

    columns = [column(name) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((num_profiles, 0), np.int32)


def _halves(num_profiles: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """A random pairing: person left[i] with person right[i]. Which half is which is random too."""
    order = rng.permutation(num_profiles).astype(np.int32)
    return order[: num_profiles // 2], order[num_profiles // 2 :]


def _map(num_profiles: int, *arrows: tuple[IntArray, IntArray]) -> IntArray:
    targets = np.full(num_profiles, NO_PERSON, np.int32)
    for sources, destinations in arrows:
        targets[sources] = destinations
    return targets


def broken_structure(
    names: tuple[str, ...], relations: IntArray, structure: RelationStructure, self_relations: bool
) -> str | None:
    """What about a table of relations does not fit how they are said to be drawn; None if it all fits."""
    people = np.arange(len(relations), dtype=np.int32)
    bipartite = structure is RelationStructure.BIPARTITE
    columns = dict(zip(names, relations.T, strict=True))
    if bipartite and len(people) % 2:
        return f"bipartite relations pair people up, but there are {len(people)}, an odd number"
    for name, column in columns.items():
        paired = bipartite and name in (*MATCHINGS, *INVERSES)
        if not (bipartite and name in INVERSES) and (column == NO_PERSON).any():
            return f"{name}: person {int((column == NO_PERSON).argmax())} has none"
        if paired and name in MATCHINGS and not (column[column] == people).all():
            return f"{name}: not a perfect matching at person {int((column[column] != people).argmax())}"
        if (paired or not self_relations) and (column == people).any():
            return f"{name}: person {int((column == people).argmax())} is related to themselves"
        if paired and name in INVERSES:
            sources = people[column != NO_PERSON]
            if len(sources) != len(people) // 2 or len(np.unique(column[sources])) != len(sources):
                return f"{name}: not a bijection between two halves of the people"
            if np.isin(column[sources], sources).any():
                return f"{name}: its two halves overlap"
    if bipartite and set(INVERSES) <= columns.keys():
        parent, child = columns["parent"], columns["child"]
        children = people[parent != NO_PERSON]
        if not (child[parent[children]] == children).all():
            return "parent and child are not the inverse of each other"
    return None
