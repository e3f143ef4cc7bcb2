"""Reading of YAML documents with the line and column of every value.

`YamlReader` builds values from the parser's events instead of its object tree, so that the number of values and their
depth are checked before values are built, and a small hostile file cannot exhaust memory. Its subclasses define what a kind
of file may contain: `raycap.spec.yaml_tree` reads specs, `raycap.cluster.cloud.document` reads cluster files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

KeyPath = tuple[str | int, ...]


class YamlError(ValueError):
    """An error in a YAML text. The message states the rule and the remedy; `line` and `column` count from 1."""

    def __init__(self, rule: str, line: int, column: int) -> None:
        super().__init__(rule)
        self.line, self.column = line, column


class YamlReader(ABC):
    """Builds the values of the documents of a text in a single pass.

    A subclass implements the abstract methods, and calls `refuse` for what its files must not contain.
    """

    max_values: int
    """Largest number of values in a document, refused by `too_many_values`."""
    max_depth: int
    """Largest depth of nested lists and mappings, refused by `too_deep`."""

    def __init__(self, text: str) -> None:
        self.positions: dict[KeyPath, tuple[int, int]] = {}
        """Line and column of every value of the current document, from 1. The position of a value in a mapping is that of
        its key; a value that an alias stands for has the position of the alias, and no positions below it."""
        self._events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self.at = (1, 1)
        """Line and column of the current event."""

    def documents(self) -> Iterator[Any]:
        """Yield the value of every document. Raises YamlError if the text is not valid or contains what is refused."""
        self._next()  # the start of the stream
        index = 0
        while isinstance(start := self._next(), DocumentStartEvent):
            self.start_document(start, index)
            first = self._next()
            self.positions = {(): self.at}
            yield self._value(first, ())
            self._next()  # the end of the document
            index += 1

    @abstractmethod
    def start_document(self, event: DocumentStartEvent, index: int) -> None:
        """Prepare for the document with the given index, from 0."""

    @abstractmethod
    def check_node(self, event: NodeEvent) -> None:
        """Refuse a node for its anchor or its tag."""

    @abstractmethod
    def scalar(self, event: ScalarEvent) -> Any:
        """Return the value of a scalar."""

    @abstractmethod
    def key(self, event: ScalarEvent) -> str:
        """Return the key that a scalar stands for."""

    @abstractmethod
    def repeated_key(self, path: KeyPath) -> None:
        """Handle a key that occurs for the second time in its mapping, before its position is replaced."""

    def alias(self, event: AliasEvent) -> Any:
        """Return the value that an alias stands for. By default aliases are refused."""
        self.refuse("aliases (*) are not supported; repeat the value")

    def built(self, event: NodeEvent, value: Any) -> Any:
        """Return the value to use for a list or mapping that is complete."""
        return value

    @abstractmethod
    def too_many_values(self) -> NoReturn:
        """Refuse a document with more than `max_values` values."""

    @abstractmethod
    def too_deep(self) -> NoReturn:
        """Refuse a document that is nested more than `max_depth` levels deep."""

    def refuse(self, rule: str) -> NoReturn:
        """Raise YamlError at the current position."""
        raise YamlError(rule, *self.at) from None

    def _next(self) -> Event:
        try:
            event = next(self._events)
        except MarkedYAMLError as error:
            if mark := error.problem_mark or error.context_mark:
                self.at = (mark.line + 1, mark.column + 1)
            self.refuse(f"not valid YAML: {error.problem or error.context}")
        except (YAMLError, ValueError, OverflowError) as error:  # ValueError, OverflowError: escapes beyond Unicode
            self.refuse(f"not valid YAML: {error}")
        self.at = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, NodeEvent):
            self.check_node(event)
        return event

    def _value(self, event: Event, path: KeyPath) -> Any:
        """Return the value that begins with `event`, consuming all events up to its end."""
        if len(self.positions) > self.max_values:
            self.too_many_values()
        if len(path) > self.max_depth:
            self.too_deep()
        if isinstance(event, AliasEvent):
            return self.alias(event)
        if isinstance(event, ScalarEvent):
            return self.scalar(event)
        start = event
        if isinstance(start, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := self._next(), SequenceEndEvent):
                self.positions[*path, len(items)] = self.at
                items.append(self._value(event, (*path, len(items))))
            return self.built(start, items)
        assert isinstance(start, MappingStartEvent)
        fields: dict[str, Any] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self.refuse("a key must be text, not a list or a mapping; quote it")
            key = self.key(event)
            if key in fields:
                self.repeated_key((*path, key))
            self.positions[*path, key] = self.at
            fields[key] = self._value(self._next(), (*path, key))
        return self.built(start, fields)
