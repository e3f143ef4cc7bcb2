"""A spec as read, file and overrides in one tree, with the place of every value; and how faults are put into words."""

import json
from typing import Any

from raycap.spec.yaml_tree import MAX_DEPTH, KeyPath, Tree, YamlError, read_yaml


class SpecError(ValueError):
    """A spec that cannot be run. `problems` holds one line per fault, each with its place and the way out.

    Lines are printable and of a readable length, whatever a spec, a file or a library has put into them.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = [truncated(_printable(problem), 1_000) for problem in problems]
        super().__init__("\n".join(self.problems))


class SpecDocument:
    """The tree of a spec with the place of every value, in the file or in an override."""

    def __init__(self, source: str, contents: Tree) -> None:
        self.tree: dict[str, Any] = contents.value
        self.text = contents.text
        self._positions = {place: f"{source}:{line}:{column}" for place, (line, column) in contents.places.items()}

    def override(self, text: str) -> None:
        """Apply one key=value override; what follows `grid.` is the name of one axis."""
        key, equals, value = text.partition("=")
        source = f"override {truncated(text)!r}"
        parts = key.split(".")
        if not equals or not all(parts) or not key.isprintable() or len(parts) > MAX_DEPTH:
            raise SpecError([f"{source}: must have the form key=value, such as trial.training.seed=3"])
        try:
            parsed = read_yaml(value.encode("utf-8", "surrogatepass")).value
        except YamlError as error:
            raise SpecError([f"{source}: {error}"]) from None
        if parts[0] == "grid" and len(parts) > 1:
            parts = ["grid", ".".join(parts[1:])]
            parsed = parsed if isinstance(parsed, list) else [parsed]
        node = self.tree
        for depth, part in enumerate(parts[:-1], 1):
            if part not in node:
                node[part] = {}
                self._positions[tuple(parts[:depth])] = source
            node = node[part]
            if not isinstance(node, dict):
                section = ".".join(parts[:depth])
                raise SpecError([f"{source}: {section} is not a section, but {shown(node)}; set it as a whole"])
        node[parts[-1]] = parsed
        place: KeyPath = tuple(parts)
        for known in [p for p in self._positions if p[: len(place)] == place]:
            del self._positions[known]
        self._positions[place] = source

    def __contains__(self, place: KeyPath) -> bool:
        return place in self._positions

    def locate(self, place: KeyPath) -> str:
        """`file:line:column` of the value at `place`, or of the nearest one above it; or the override it is from."""
        while place not in self._positions:
            place = place[:-1]
        return self._positions[place]


def shown(value: Any) -> str:
    """A value of a spec, as JSON but for the commas in large numbers."""
    return truncated(f"{value:,}" if type(value) is int else json.dumps(value))


def truncated(text: str, length: int = 80) -> str:
    """The text, or its beginning and end."""
    return text if len(text) <= length else f"{text[: 2 * length // 3]}...{text[-length // 4 :]}"


def _printable(text: str) -> str:
    """The text in one line, with everything escaped that a terminal would not print but obey."""
    line = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
