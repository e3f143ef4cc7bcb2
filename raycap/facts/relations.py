"""Generation of relations, uniform or as bijections and matchings, and checks of loaded relations."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raycap.spec import RelationStructure

NO_PERSON = -1
"""Target of a relation that a person does not have. In bipartite populations parents have no parent and children no
child."""
MATCHINGS = ("best_friend", "worst_enemy")
"""Relations that are perfect matchings in bipartite populations."""
INVERSES = ("parent", "child")
"""Relations that are inverse bijections between two halves of a bipartite population."""

Stream = Callable[[str], np.random.Generator]
"""Function that returns the random generator for a purpose, such as the name of a relation."""
IntArray = NDArray[np.int32]


def draw_relations(
    names: tuple[str, ...], num_profiles: int, structure: RelationStructure, self_relations: bool, stream: Stream
) -> IntArray:
    """Draw the person that each relation of each person leads to, shape (N, R).

    Raises ValueError if the structure is bipartite and the number of people is odd.
    """
    bipartite = structure is RelationStructure.BIPARTITE
    if bipartite and num_profiles % 2:
        raise ValueError(f"bipartite relations need an even number of people, got {num_profiles}")

    def column(name: str) -> IntArray:
        if bipartite and name in MATCHINGS:
            left, right = _halves(num_profiles, stream(name))
            return _map(num_profiles, (left, right), (right, left))
        if bipartite and name in INVERSES:
            children, parents = _halves(num_profiles, stream("parent"))  # one stream for both, so that they are inverse
            pair = (children, parents) if name == "parent" else (parents, children)
            return _map(num_profiles, pair)
        if self_relations:
            return stream(name).integers(num_profiles, size=num_profiles, dtype=np.int32)
        # Draw among the other N - 1 people and skip the person itself.
        others = stream(name).integers(num_profiles - 1, size=num_profiles, dtype=np.int32)
        return others + (others >= np.arange(num_profiles, dtype=np.int32))

    columns = [column(name) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((num_profiles, 0), np.int32)


def _halves(num_profiles: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return a random pairing of person left[i] with person right[i]. All ordered pairings are equally likely."""
    order = rng.permutation(num_profiles).astype(np.int32)
    return order[: num_profiles // 2], order[num_profiles // 2 :]


def _map(num_profiles: int, *arrows: tuple[IntArray, IntArray]) -> IntArray:
    """Return the targets of a relation that leads from each source to its destination, NO_PERSON for other people."""
    targets = np.full(num_profiles, NO_PERSON, np.int32)
    for sources, destinations in arrows:
        targets[sources] = destinations
    return targets


def broken_structure(
    names: tuple[str, ...], relations: IntArray, structure: RelationStructure, self_relations: bool
) -> str | None:
    """Return why relations of shape (N, R) are impossible under a structure, or None if they are possible."""
    people = np.arange(len(relations), dtype=np.int32)
    bipartite = structure is RelationStructure.BIPARTITE
    columns = dict(zip(names, relations.T, strict=True))
    if bipartite and len(people) % 2:
        return f"bipartite relations need an even number of people, got {len(people)}"
    for name, column in columns.items():
        paired = bipartite and name in (*MATCHINGS, *INVERSES)
        if not (bipartite and name in INVERSES) and (column == NO_PERSON).any():
            return f"{name}: person {int((column == NO_PERSON).argmax())} has no such relation"
        if paired and name in MATCHINGS and not (column[column] == people).all():
            return f"{name}: is not a perfect matching at person {int((column[column] != people).argmax())}"
        if (paired or not self_relations) and (column == people).any():
            return f"{name}: person {int((column == people).argmax())} is related to themselves"
        if paired and name in INVERSES:
            sources = people[column != NO_PERSON]
            if len(sources) != len(people) // 2 or len(np.unique(column[sources])) != len(sources):
                return f"{name}: is not a bijection between two halves of the people"
            if np.isin(column[sources], sources).any():
                return f"{name}: leads to people who have this relation too, so the halves overlap"
    if bipartite and set(INVERSES) <= columns.keys():
        parent, child = columns["parent"], columns["child"]
        children = people[parent != NO_PERSON]
        if not (child[parent[children]] == children).all():
            return "parent and child are not inverse to each other"
    return None
