"""The contents of a spec file merged with overrides, with the position of every value; and formatting for errors."""

import difflib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from raycap.spec.uris import without_password
from raycap.spec.yaml_reader import KeyPath, YamlError
from raycap.spec.yaml_tree import MAX_DEPTH, YamlTree, read_yaml

MAX_DIGITS = 7
"""Numbers of entries have fewer digits."""


class SpecError(ValueError):
    """A spec cannot be run. `problems` holds one line per fault, with its position, the rule and the remedy.

    The lines are escaped and truncated, and passwords in URIs are hidden, so they are safe to print even if they quote
    hostile input.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = [truncated(_printable(without_password(problem)), 1_000) for problem in problems]
        super().__init__("\n".join(self.problems))


class Override(NamedTuple):
    """One override of a value in the document."""

    path: KeyPath
    text: str
    """The value as it was written."""
    value: Any


class SpecDocument:
    """The contents of a spec as nested dicts and lists, with the position of every value in the file or an override.

    Contents without positions, which do not come from a file, have their source as the position of every value.
    """

    def __init__(self, source: str, contents: YamlTree) -> None:
        self.tree: dict[str, Any] = contents.value
        self.text = contents.text
        self._positions: dict[KeyPath, str] = {(): source}
        self._positions |= {path: f"{source}:{line}:{column}" for path, (line, column) in contents.positions.items()}
        self.overrides: list[Override] = []

    def override(self, text: str) -> None:
        """Apply one override of the form key=value. Raises SpecError if it is malformed.

        In `grid.a.b=[1, 2]` and `points.0.a.b=[1, 2]`, `a.b` is a single key, the name of an axis, and 0 is the number of an
        entry.
        """
        key, equals, value = text.partition("=")
        source = f"override {truncated(text)!r}"
        parts = key.split(".")
        if not equals or not all(parts) or not key.isprintable() or len(parts) > MAX_DEPTH:
            raise SpecError([f"{source}: must have the form key=value, such as trial.training.batch_size=64"])
        try:
            parsed = read_yaml(value.encode("utf-8", "surrogatepass")).value
        except YamlError as error:
            raise SpecError([f"{source}: {error}"]) from None
        path = _document_path(parts)
        if path[0] == "grid" and len(path) > 1:
            parsed = parsed if isinstance(parsed, list) else [parsed]
        node: Any = self.tree
        for depth, part in enumerate(path[:-1], 1):
            if isinstance(node, dict) and part not in node:
                node[part] = {}
                self._positions[path[:depth]] = source
            node = node[part]
            section = ".".join(map(str, path[:depth]))
            entry = path[depth]
            if isinstance(entry, int):
                if not isinstance(node, list) or entry >= len(node):
                    got = f"{len(node)} entries" if isinstance(node, list) else format_value(node)
                    raise SpecError(
                        [f"{source}: {section} must have an entry {entry}, got {got}; set {section} itself"]
                    )
            elif not isinstance(node, dict):
                raise SpecError(
                    [f"{source}: {section} must be a section, got {format_value(node)}; set {section} itself"]
                )
        node[path[-1]] = parsed
        for replaced in [p for p in self._positions if p[: len(path)] == path]:
            del self._positions[replaced]
        self._positions[path] = source
        self.overrides.append(Override(path, value, parsed))

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._positions

    def locate(self, path: KeyPath) -> str:
        """Return the position of the value at `path` or of its nearest existing ancestor.

        It has the form `file:line:column`, or names the override that set the value.
        """
        while path not in self._positions:
            path = path[:-1]
        return self._positions[path]


def _document_path(parts: list[str]) -> KeyPath:
    """Return the path of an override in the document by the parts of its key."""
    if parts[0] == "grid" and len(parts) > 1:
        return ("grid", ".".join(parts[1:]))
    if parts[0] in ("points", "exclude") and len(parts) > 1 and parts[1].isdecimal() and len(parts[1]) < MAX_DIGITS:
        return (parts[0], int(parts[1]), *([".".join(parts[2:])] if len(parts) > 2 else []))
    return tuple(parts)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the known name closest to `name`, or an empty text if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def format_value(value: Any) -> str:
    """Format a value as JSON, integers with thousands separators, truncated to 80 characters."""
    return truncated(f"{value:,}" if type(value) is int else json.dumps(value))


def truncated(text: str, length: int = 80) -> str:
    """Return the text, shortened in the middle if it has more than `length` characters."""
    return text if len(text) <= length else f"{text[: 2 * length // 3]}...{text[-length // 4 :]}"


def _printable(text: str) -> str:
    """Return the text in one line with control characters escaped."""
    line = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
