"""Mutations of JSON trees: every field deleted or replaced by values that it cannot have."""

import copy
from collections.abc import Iterator
from typing import Any

DEEP: Any = []
for _ in range(300):  # deeper than any reader of JSON accepts, and than Python's recursion limit for small stacks
    DEEP = [DEEP]
DELETED = object()
VALUES: dict[str, Any] = {
    "deleted": DELETED,
    "null": None,
    "text": "x\u202e[bold]",
    "negative": -1,
    "fraction": -0.5,
    "huge": 10**400,
    "huge float": 1e300,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "list": [],
    "object": {"x": 1},
    "deep": DEEP,
}


def mutations(tree: Any, *, max_items: int = 2) -> Iterator[tuple[str, Any]]:
    """Yield descriptions and mutated copies of a tree of objects and lists.

    Args:
        tree: the tree; it is not changed.
        max_items: number of items, from the beginning of each list, that are mutated.
    """
    for path in _paths(tree, max_items):
        for name, value in VALUES.items():
            mutated = copy.deepcopy(tree)
            parent = mutated
            for key in path[:-1]:
                parent = parent[key]
            if value is DELETED:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            yield f"{'.'.join(map(str, path))}: {name}", mutated


def _paths(tree: Any, max_items: int) -> Iterator[tuple[Any, ...]]:
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), max_items)) if isinstance(tree, list) else ()
    for key in keys:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(tree[key], max_items))
