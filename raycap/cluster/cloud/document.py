"""Reader of cluster files as YAML with the line of every value, and faults, which name a line and a field."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, NodeEvent, ScalarEvent

from raycap.spec.document import SpecError, truncated
from raycap.spec.yaml_reader import KeyPath, YamlError, YamlReader

MARK = "FILL"
"""Marks lines of templates whose values the user must decide."""
MAX_VALUES = 50_000
"""Largest number of values in a document."""
MAX_DEPTH = 100
MERGE_KEY = "<<"
PLACEHOLDERS = re.compile(r"ami-0{17}|\bmy-(?:project|bucket|registry|shared-folder)\b|images/IMAGE$|^MACHINE-\d$")
"""Values of templates that cannot work unchanged."""
COMMENT = re.compile(r"\s*#(?!SBATCH\b)")
"""Beginning of a line that is a comment. Slurm reads its directives from lines that are comments in the shell."""


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
    reader = _ClusterReader(text)
    documents: list[ClusterDocument] = []
    faults: list[Fault] = []
    try:
        for tree in reader.documents():
            lines = {path: line for path, (line, _) in reader.positions.items()}
            faults += [
                Fault(
                    f"{file}:{line}", field_name(path), f"is a duplicate of the key in line {first}; remove one of them"
                )
                for path, first, line in reader.repeated_keys
            ]
            if tree is not None:
                documents.append(ClusterDocument(file, tree, lines))
    except YamlError as error:
        raise SpecError([f"{file}:{error.line}: {error}"]) from None
    if not documents or not all(isinstance(document.tree, dict) for document in documents):
        raise SpecError([f"{file}:1: must describe a cluster as a mapping; `raycap cluster template aws` prints one"])
    return documents, faults


class _ClusterReader(YamlReader):
    """Reads documents as Ray and Kubernetes do: YAML 1.1 with anchors and merge keys. All keys are texts, as in JSON, to
    which Kubernetes converts its files."""

    max_values, max_depth = MAX_VALUES, MAX_DEPTH

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated_keys: list[tuple[KeyPath, int, int]] = []
        """Duplicate keys of the current document: path, line of the first occurrence and line of the last."""
        self._anchors: dict[str, tuple[Any, int]] = {}
        """Values of anchors that are complete, and the number of values that each of them holds."""
        self._num_aliased = 0
        self._scalars = yaml.SafeLoader("")

    def start_document(self, event: DocumentStartEvent, index: int) -> None:
        """Forget the anchors of the document before."""
        self.repeated_keys, self._anchors, self._num_aliased = [], {}, 0

    def check_node(self, event: NodeEvent) -> None:
        """Accept anchors and tags."""

    def scalar(self, event: ScalarEvent) -> Any:
        """Return a number, truth value, date, null or text by the rules of YAML 1.1, or as its tag says."""
        tag = event.tag or self._scalars.resolve(yaml.ScalarNode, event.value, event.implicit)
        try:
            value = self._scalars.construct_object(yaml.ScalarNode(tag, event.value))
        except (yaml.YAMLError, ValueError) as error:
            self.refuse(f"not valid YAML: {getattr(error, 'problem', None) or error}; correct it")
        return self.built(event, value)

    def key(self, event: ScalarEvent) -> str:
        """Return the text of a key."""
        text: str = event.value
        return text

    def repeated_key(self, path: KeyPath) -> None:
        """Keep a duplicate key as a fault."""
        self.repeated_keys.append((path, self.positions[path][0], self.at[0]))

    def built(self, event: NodeEvent, value: Any) -> Any:
        """Merge the mappings of a merge key (<<), and keep the value if it has an anchor."""
        if isinstance(value, dict) and MERGE_KEY in value:
            merged = value.pop(MERGE_KEY)
            mappings = merged if isinstance(merged, list) else [merged]
            if not all(isinstance(mapping, dict) for mapping in mappings):
                self.refuse("not valid YAML: the merge key << must have a mapping or a list of mappings; correct it")
            value = {key: one for mapping in (*reversed(mappings), value) for key, one in mapping.items()}
        if event.anchor:
            self._anchors[event.anchor] = value, _num_values(value)
        return value

    def alias(self, event: AliasEvent) -> Any:
        """Return the value of an anchor above. Aliases of aliases can multiply a few lines without bound."""
        if event.anchor not in self._anchors:
            self.refuse(f"the alias *{event.anchor} has no complete value above it; correct it")
        value, num_values = self._anchors[event.anchor]
        self._num_aliased += num_values
        if self._num_aliased > MAX_VALUES:
            self.refuse(f"has more than {MAX_VALUES:,} values; remove the aliases")
        return value

    def too_many_values(self) -> NoReturn:
        """Refuse a document with too many values."""
        self.refuse(f"has more than {MAX_VALUES:,} values; split the file")

    def too_deep(self) -> NoReturn:
        """Refuse a document that is nested too deeply."""
        self.refuse(f"must be nested at most {MAX_DEPTH} levels deep")


def _num_values(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_num_values, parts))


def undecided(text: str, documents: list[ClusterDocument]) -> Iterator[Fault]:
    """Yield a fault for each line that is marked FILL, and for each other placeholder of a template that is left."""
    reported: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not re.search(rf"\b{MARK}\b", line) or COMMENT.match(line):
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
