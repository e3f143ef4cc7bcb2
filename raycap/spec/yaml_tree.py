"""Reader for a safe subset of YAML that records the line and column of every value.

The subset is one document of mappings, lists and scalars. Tags, anchors, aliases, merge keys and directives are
refused. Dates, and numbers that are not decimal and finite, are read as text.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from ruamel.yaml.events import AliasEvent, DocumentStartEvent, NodeEvent, ScalarEvent

from raycap.spec.yaml_reader import KeyPath, YamlError, YamlReader

MAX_BYTES = 2**18
MAX_VALUES = 40_000
MAX_DEPTH = 20
MAX_LENGTH = 4_096
"""Largest number of characters of a key or value: the longest path that Linux allows."""

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
    reader = _SpecReader(text)
    value = next(documents := reader.documents(), None)
    next(documents, None)  # refuses a second document
    return YamlTree(text, value, {**reader.positions, (): (1, 1)})


class _SpecReader(YamlReader):
    """Reads one document of mappings, lists and scalars, without anchors, tags and directives."""

    max_values, max_depth = MAX_VALUES, MAX_DEPTH

    def start_document(self, event: DocumentStartEvent, index: int) -> None:
        """Refuse a second document and directives."""
        if index:
            self.refuse("a spec must be a single document; move the text after --- to another file")
        if event.version or event.tags:
            self.refuse("directives (%YAML, %TAG) are not supported; remove them")

    def check_node(self, event: NodeEvent) -> None:
        """Refuse anchors, aliases and tags."""
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            self.refuse(
                "anchors (&), aliases (*) and merge keys are not supported; repeat the value, or quote it if it is text"
            )
        if tag := getattr(event, "tag", None):
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self.refuse(f"tags are not supported, got {_cut(short)}; remove the tag, or quote the value if it is text")

    def scalar(self, event: ScalarEvent) -> Any:
        """Return a number, true, false, null or a text."""
        text = self.key(event)
        return _plain(text) if event.implicit[0] else text

    def key(self, event: ScalarEvent) -> str:
        """Return the text of a scalar. Refuses long texts and texts of several lines."""
        text: str = event.value
        if len(text) > MAX_LENGTH:
            self.refuse(f"a key or value must have at most {MAX_LENGTH:,} characters, got {len(text):,}: {_cut(text)}")
        if not text.isprintable():
            bad = next(character for character in text if not character.isprintable())
            self.refuse(f"must be one line of printable text, got the character {_code_point(bad)}; remove it")
        return text

    def repeated_key(self, path: KeyPath) -> NoReturn:
        """Refuse a repeated key."""
        self.refuse(f"the key {_cut(str(path[-1]))} occurs twice; remove one")

    def too_many_values(self) -> NoReturn:
        """Refuse a spec with too many values."""
        self.refuse(f"a spec must have at most {MAX_VALUES:,} values; split the sweep")

    def too_deep(self) -> NoReturn:
        """Refuse a spec that is nested too deeply."""
        self.refuse(f"must be nested at most {MAX_DEPTH} levels deep; no field of a spec is deeper")


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
