"""Reader for a safe subset of YAML that records the line and column of every value.

The subset is one document of mappings, lists and scalars. Tags, anchors, aliases, merge keys and directives are
refused. Dates, and numbers that are not decimal and finite, are read as text.

The reader consumes the parser's events instead of its object tree. The number of values, their depth and their length
are checked before values are built, so a small hostile file cannot exhaust memory.
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
"""Largest number of characters of a key or value: the longest path that Linux allows."""

KeyPath = tuple[str | int, ...]

# Some of these characters are line breaks in YAML but not in editors, so reported line numbers would be wrong. The
# others are control characters, which could change the state of a terminal, surrogates, non-characters, and characters
# that are invisible or change the direction of text, so that a file or its question would read as something else.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
FRACTION = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class YamlError(ValueError):
    """An error in a YAML text. The message states the rule and the remedy; `line` and `column` count from 1."""

    def __init__(self, rule: str, line: int, column: int) -> None:
        super().__init__(rule)
        self.line, self.column = line, column


@dataclass(frozen=True)
class YamlTree:
    """The value of a YAML text and the position of each of its parts."""

    text: str
    """The text, with line ends as \\n and without byte order mark."""
    value: Any
    """The value of the document, None if it is empty."""
    positions: dict[KeyPath, tuple[int, int]]
    """Line and column of every value, from 1. The position of a value in a mapping is that of its key."""


def read_yaml(data: bytes) -> YamlTree:
    """Read the bytes of a file. Raises YamlError if they are not in the supported subset of YAML."""
    if len(data) > MAX_BYTES:
        raise YamlError(f"a spec must have at most {MAX_BYTES:,} bytes; shorten comments or split the sweep", 1, 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise YamlError(
            f"must be UTF-8 text, got the byte 0x{data[error.start]:02x}; save the file as UTF-8", line, column
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if found := UNPRINTABLE.search(text):
        begin = found.start()
        line, column = text.count("\n", 0, begin) + 1, begin - text.rfind("\n", 0, begin)
        raise YamlError(f"must be printable text, got the character {_code_point(found[0])}; remove it", line, column)
    reader = _Reader(text)
    return YamlTree(text, reader.document(), reader.positions)


class _Reader:
    """Build a value from the parser's events in a single pass."""

    def __init__(self, text: str) -> None:
        self.positions: dict[KeyPath, tuple[int, int]] = {(): (1, 1)}
        self._events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self._at = (1, 1)
        """Position of the current event, for errors."""

    def document(self) -> Any:
        """Return the value of the only document, None if there is none."""
        self._next()
        start = self._next()
        if isinstance(start, StreamEndEvent):
            return None
        assert isinstance(start, DocumentStartEvent)
        if start.version or start.tags:
            self._refuse("directives (%YAML, %TAG) are not supported; remove them")
        value = self._value(self._next(), ())
        self._next()
        if not isinstance(self._next(), StreamEndEvent):
            self._refuse("a spec must be a single document; move the text after --- to another file")
        return value

    def _next(self) -> Event:
        try:
            event = next(self._events)
        except MarkedYAMLError as error:
            if mark := error.problem_mark or error.context_mark:
                self._at = (mark.line + 1, mark.column + 1)
            self._refuse(f"not valid YAML: {error.problem or error.context}")
        except (YAMLError, ValueError, OverflowError) as error:  # ValueError, OverflowError: escapes beyond Unicode
            self._refuse(f"not valid YAML: {error}")
        self._at = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            self._refuse(
                "anchors (&), aliases (*) and merge keys are not supported; repeat the value, or quote it if it is text"
            )
        if tag := getattr(event, "tag", None):
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"tags are not supported, got {_cut(short)}; remove the tag, or quote the value if it is text")
        return event

    def _value(self, event: Event, path: KeyPath) -> Any:
        """Return the value that begins with `event`, consuming all events up to its end."""
        if len(self.positions) > MAX_VALUES:
            self._refuse(f"a spec must have at most {MAX_VALUES:,} values; split the sweep")
        if len(path) > MAX_DEPTH:
            self._refuse(f"must be nested at most {MAX_DEPTH} levels deep; no field of a spec is deeper")
        if isinstance(event, ScalarEvent):
            text = self._text(event)
            return _plain(text) if event.implicit[0] else text
        if isinstance(event, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := self._next(), SequenceEndEvent):
                self.positions[*path, len(items)] = self._at
                items.append(self._value(event, (*path, len(items))))
            return items
        assert isinstance(event, MappingStartEvent)
        fields: dict[str, Any] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self._refuse("a key must be text, not a list or a mapping; quote it")
            key = self._text(event)
            if key in fields:
                self._refuse(f"the key {_cut(key)} occurs twice; remove one")
            self.positions[*path, key] = self._at
            fields[key] = self._value(self._next(), (*path, key))
        return fields

    def _text(self, event: ScalarEvent) -> str:
        text: str = event.value
        if len(text) > MAX_LENGTH:
            self._refuse(f"a key or value must have at most {MAX_LENGTH:,} characters, got {len(text):,}: {_cut(text)}")
        if not text.isprintable():
            bad = next(character for character in text if not character.isprintable())
            self._refuse(f"must be one line of printable text, got the character {_code_point(bad)}; remove it")
        return text

    def _refuse(self, rule: str) -> NoReturn:
        raise YamlError(rule, *self._at) from None


def _plain(text: str) -> Any:
    """Return the value of an unquoted scalar.

    An integral number below 2**53 becomes an int even if it is written with an exponent or a decimal point (`1e6`),
    because specs do not convert float to int. Numbers that overflow a float remain text.
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
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
