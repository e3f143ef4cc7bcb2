"""Reader of cluster files as YAML with the line of every value, and faults, which name a line and a field."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from raycap.spec.document import SpecError, truncated
from raycap.spec.yaml_tree import KeyPath

MARK = "FILL"
"""Marks lines of templates whose values the user must decide."""
MAX_VALUES = 50_000
"""Largest number of values in a document. Aliases of aliases can multiply a few lines without bound."""
PLACEHOLDERS = re.compile(r"ami-0{17}|\bmy-(?:project|bucket|registry)\b|images/IMAGE$")
"""Values of templates that cannot work unchanged."""


@dataclass(frozen=True)
class Fault:
    """A fault in a file: its line (`file:line`), the field, and a rule with the value got and the correction."""

    where: str
    field: str
    rule: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.rule) if part)


@dataclass(frozen=True)
class ClusterDocument:
    """A YAML document of a file, with the line of every value."""

    file: str
    tree: Any
    lines: dict[KeyPath, int]
    """Line of every value, counted from 1; for a value of a mapping, the line of its key."""

    def value_at(self, *path: str | int) -> Any:
        """Return the value at a path of keys and indices, or None if there is none."""
        return value_at(self.tree, *path)

    def line(self, path: KeyPath) -> int:
        """Return the line of a value, or that of its nearest parent if the value is missing."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def fault(self, path: KeyPath, rule: str) -> Fault:
        """Return a fault of the value at a path."""
        return Fault(f"{self.file}:{self.line(path)}", field_name(path), rule)


def value_at(tree: Any, *path: str | int) -> Any:
    """Return the value at a path of keys and indices in nested dicts and lists, or None if there is none."""
    for part in path:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return None
    return tree


def field_name(path: KeyPath) -> str:
    """Format a path: available_node_types.head.resources, setup_commands[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read_documents(file: str, text: str) -> tuple[list[ClusterDocument], list[Fault]]:
    """Return the documents of a file, and faults for duplicate keys, of which YAML keeps only the last.

    Raises SpecError if the text is not valid YAML, or if a document is not a mapping.
    """
    documents, faults = [], []
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            lines: dict[KeyPath, int] = {(): node.start_mark.line + 1}
            faults += list(_number(node, (), lines, file))
            documents.append(ClusterDocument(file, _with_text_keys(loader.construct_document(node)), lines))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError([f"{file}:{line}: not valid YAML: {error.problem}; correct it"]) from None
    except RecursionError:
        raise SpecError(
            [f"{file}:1: has values that contain themselves, or is nested too deeply; remove them"]
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{file}:1: not valid YAML: {error}; correct it"]) from None
    documents = [document for document in documents if document.tree is not None]
    if not documents or not all(isinstance(document.tree, dict) for document in documents):
        raise SpecError([f"{file}:1: must describe a cluster as a mapping; `raycap cluster template aws` prints one"])
    return documents, faults


def _number(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: str) -> Iterator[Fault]:
    """Add the lines of all values below a node to `lines`, and yield faults for duplicate keys."""
    if len(lines) > MAX_VALUES:
        raise SpecError([f"{file}:{node.start_mark.line + 1}: has more than {MAX_VALUES:,} values; remove the aliases"])
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            yield from _number(item, (*path, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            if below in lines:
                rule = f"is a duplicate of the key in line {lines[below]}; remove one of them"
                yield Fault(f"{file}:{key.start_mark.line + 1}", field_name(below), rule)
            lines[below] = key.start_mark.line + 1
            yield from _number(value, below, lines, file)


def _with_text_keys(value: Any) -> Any:
    """Return a value with all keys of mappings as texts, as in JSON, to which Kubernetes converts its files."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(one) for key, one in value.items()}
    return [_with_text_keys(one) for one in value] if isinstance(value, list) else value


def undecided(text: str, documents: list[ClusterDocument]) -> Iterator[Fault]:
    """Yield a fault for each line that is marked FILL, and for each other placeholder of a template that is left."""
    reported: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not re.search(rf"\b{MARK}\b", line) or line.lstrip().startswith("#"):
            continue
        document = next(d for d in reversed(documents) if d.lines[()] <= number or d is documents[0])
        paths = [path for path in document.lines if path and document.lines[path] == number]
        # Several values may begin on a line: report the outermost, and a key rather than an item of a list.
        path = min(paths, key=lambda path: (isinstance(path[-1], int), len(path)), default=())
        got = document.value_at(*path) if paths else line.strip()
        reported.add(str(got))
        rule = f"is still marked {MARK}, got {truncated(str(got))}; set the value and remove the mark"
        yield Fault(f"{document.file}:{number}", field_name(path), rule)
    for document in documents:
        for path in document.lines:
            got = document.value_at(*path)
            if isinstance(got, str) and (placeholder := PLACEHOLDERS.search(got)) and got not in reported:
                reported.add(got)
                yield document.fault(
                    path,
                    f"must not be the template's placeholder {placeholder[0]}, got {truncated(got)}; set your own value",
                )
