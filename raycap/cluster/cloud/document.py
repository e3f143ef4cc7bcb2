"""A cluster's file as Ray and Kubernetes read it, with the line of every value; and faults, which name that line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from raycap.spec.document import SpecError, truncated
from raycap.spec.yaml_tree import KeyPath

MARK = "FILL"
"""What templates write beside a value that a person must decide."""
PLACEHOLDERS = re.compile(r"ami-0{17}|\bmy-(?:project|bucket|registry)\b|images/IMAGE$")
"""What stands there until somebody has."""


@dataclass(frozen=True)
class Fault:
    """What is wrong: where (`file:line`), with which field, and the rule, the value got and the way out."""

    where: str
    field: str
    rule: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.rule) if part)


@dataclass(frozen=True)
class ClusterDocument:
    """One YAML document of a file."""

    file: str
    tree: Any
    lines: dict[KeyPath, int]
    """Line of every value, from 1: of a mapping's values that of the key."""

    def find_document(self, *place: str | int) -> Any:
        """The value at a place; None where there is nothing of that form."""
        return find_document(self.tree, *place)

    def line(self, place: KeyPath) -> int:
        """The line of a value, or of the nearest one above it that is there."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def fault(self, place: KeyPath, rule: str) -> Fault:
        """A fault of the value at a place."""
        return Fault(f"{self.file}:{self.line(place)}", field_name(place), rule)


def find_document(tree: Any, *place: str | int) -> Any:
    """The value at a place below a tree; None where there is nothing of that form."""
    for part in place:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return None
    return tree


def field_name(place: KeyPath) -> str:
    """A place in words: available_node_types.head.resources, setup_commands[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def read_documents(file: str, text: str) -> tuple[list[ClusterDocument], list[Fault]]:
    """The documents of a file, and keys that stand twice, of which YAML silently takes the last.

    Raises SpecError where it is no YAML, or holds none.
    """
    documents, faults = [], []
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            lines: dict[KeyPath, int] = {(): node.start_mark.line + 1}
            faults += list(_number(node, (), lines, file))
            documents.append(ClusterDocument(file, loader.construct_document(node), lines))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError([f"{file}:{line}: not YAML: {error.problem}; correct it"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{file}:1: not YAML: {error}; correct it"]) from None
    documents = [document for document in documents if document.tree is not None]
    if not documents or not all(isinstance(document.tree, dict) for document in documents):
        raise SpecError([f"{file}:1: must describe a cluster as a mapping; `raycap cluster template aws` prints one"])
    return documents, faults


def _number(node: yaml.Node, place: KeyPath, lines: dict[KeyPath, int], file: str) -> Iterator[Fault]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*place, index] = item.start_mark.line + 1
            yield from _number(item, (*place, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*place, str(key.value))
            if below in lines:
                rule = f"stands twice, first in line {lines[below]}; remove one"
                yield Fault(f"{file}:{key.start_mark.line + 1}", field_name(below), rule)
            lines[below] = key.start_mark.line + 1
            yield from _number(value, below, lines, file)


def undecided(text: str, documents: list[ClusterDocument]) -> Iterator[Fault]:
    """Values that are still marked FILL, or still those of the template; one that stands in several places, once."""
    reported: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not re.search(rf"\b{MARK}\b", line) or line.lstrip().startswith("#"):
            continue
        document = next(d for d in reversed(documents) if d.lines[()] <= number or d is documents[0])
        places = [place for place in document.lines if place and document.lines[place] == number]
        place = min(places, key=lambda place: (isinstance(place[-1], int), len(place)), default=())
        got = document.find_document(*place) if places else line.strip()
        reported.add(str(got))
        rule = f"is still marked {MARK}, got {truncated(str(got))}; decide, and take the mark away"
        yield Fault(f"{document.file}:{number}", field_name(place), rule)
    for document in documents:
        for place in document.lines:
            got = document.find_document(*place)
            if isinstance(got, str) and (placeholder := PLACEHOLDERS.search(got)) and got not in reported:
                reported.add(got)
                yield document.fault(
                    place, f"is still the template's {placeholder[0]}, got {truncated(got)}; put your own"
                )
