"""The plain part of YAML: one document of mappings, lists, numbers and words, and the place of each value.

Read from the parser's events, so that nothing is built before it is counted, and every value stands where it is used.
Tags, anchors, merge keys and whatever else a file may hold are refused; dates and numbers that are not decimal and finite
are text.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

MAX_BYTES = 2**18
MAX_VALUES = 40_000
MAX_DEPTH = 20
MAX_LENGTH = 4_096
"""Of a key or a value: that of the longest path."""

KeyPath = tuple[str | int, ...]

# YAML counts lines by some of these, editors do not; and no terminal should see the others.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
FRACTION = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class YamlError(ValueError):
    """What of a text is not read: the rule and the way out, and where, from 1."""

    def __init__(self, rule: str, line: int, column: int) -> None:
        super().__init__(rule)
        self.line, self.column = line, column


@dataclass(frozen=True)
class Tree:
    """A text as read; `value` is None where it holds nothing."""

    text: str
    value: Any
    places: dict[KeyPath, tuple[int, int]]
    """Line and column of every value, from 1: of a list's its own, of a mapping's that of its key."""


def read_yaml(data: bytes) -> Tree:
    """Read the bytes of a file. Raises YamlError."""
    if len(data) > MAX_BYTES:
        raise YamlError(f"a spec has at most {MAX_BYTES:,} bytes; leave out what is no spec, or split the sweep", 1, 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise YamlError(
            f"not UTF-8 text, got the byte 0x{data[error.start]:02x}; save it as UTF-8", line, column
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if found := UNPRINTABLE.search(text):
        begin = found.start()
        line, column = text.count("\n", 0, begin) + 1, begin - text.rfind("\n", 0, begin)
        raise YamlError(f"must be printable text, got the character {_code_point(found[0])}; remove it", line, column)
    reader = _Reader(text)
    return Tree(text, reader.document(), reader.places)


class _Reader:
    """Goes through the parser's events once."""

    def __init__(self, text: str) -> None:
        self.places: dict[KeyPath, tuple[int, int]] = {(): (1, 1)}
        self._events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self._at = (1, 1)

    def document(self) -> Any:
        self._next()
        start = self._next()
        if isinstance(start, StreamEndEvent):
            return None
        assert isinstance(start, DocumentStartEvent)
        if start.version or start.tags:
            self._refuse("directives (%YAML, %TAG) are not read; remove them")
        value = self._value(self._next(), ())
        self._next()
        if not isinstance(self._next(), StreamEndEvent):
            self._refuse("a spec is one document; put what follows --- into a file of its own")
        return value

    def _next(self) -> Event:
        try:
            event = next(self._events)
        except MarkedYAMLError as error:
            if mark := error.problem_mark or error.context_mark:
                self._at = (mark.line + 1, mark.column + 1)
            self._refuse(f"not valid YAML: {error.problem or error.context}")
        except (YAMLError, ValueError, OverflowError) as error:  # the last two: escapes beyond Unicode
            self._refuse(f"not valid YAML: {error}")
        self._at = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            self._refuse(
                "anchors (&), aliases (*) and merge keys are not read; write the value out, or quote it if it is text"
            )
        if tag := getattr(event, "tag", None):
            written = tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"tags are not read, got {_cut(written)}; write the plain value, or quote it if it is text")
        return event

    def _value(self, event: Event, place: KeyPath) -> Any:
        """The value that begins with an event; events up to its end are taken."""
        if len(self.places) > MAX_VALUES:
            self._refuse(f"a spec holds at most {MAX_VALUES:,} values; split the sweep")
        if len(place) > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels; no field of a spec is")
        if isinstance(event, ScalarEvent):
            text = self._text(event)
            return _plain(text) if event.implicit[0] else text
        if isinstance(event, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := self._next(), SequenceEndEvent):
                self.places[*place, len(items)] = self._at
                items.append(self._value(event, (*place, len(items))))
            return items
        assert isinstance(event, MappingStartEvent)
        fields: dict[str, Any] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self._refuse("a key must be a name, not a list or a mapping; quote it if it is text")
            key = self._text(event)
            if key in fields:
                self._refuse(f"the key {_cut(key)} is here twice; remove one")
            self.places[*place, key] = self._at
            fields[key] = self._value(self._next(), (*place, key))
        return fields

    def _text(self, event: ScalarEvent) -> str:
        text: str = event.value
        if len(text) > MAX_LENGTH:
            self._refuse(
                f"a key or value has at most {MAX_LENGTH:,} characters, got {len(text):,}: {_cut(text)}; shorten it"
            )
        if not text.isprintable():
            strange = next(character for character in text if not character.isprintable())
            self._refuse(f"must be one line of printable text, got the character {_code_point(strange)}; remove it")
        return text

    def _refuse(self, rule: str) -> NoReturn:
        raise YamlError(rule, *self._at) from None


def _plain(text: str) -> Any:
    """What an unquoted scalar stands for. Whole numbers may have an exponent; what is no finite number stays text."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if FRACTION.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            return text
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return text


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
