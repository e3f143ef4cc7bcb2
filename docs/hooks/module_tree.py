"""mkdocs hook: the marker `<!-- tree -->` becomes a list of every module with the first line of its docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "raycap"
LAYERS = [
    "spec",
    "results",
    "storage",
    "facts",
    "tokens",
    "analysis",
    "learner",
    "plan",
    "export",
    "tracking",
    "cluster",
    "terminal",
    "commands",
    "pipeline.py",
    "api.py",
]
"""Order of the tree's top level, lowest layer first; all other names follow in alphabetical order."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page by the tree of modules."""
    return markdown.replace("<!-- tree -->", tree_markdown()) if "<!-- tree -->" in markdown else markdown


def tree_markdown() -> str:
    """The package as an indented tree: each module or folder with the first line of its docstring."""
    entries = list(_tree(PACKAGE, 1))
    width = max(len(name) for name, _ in entries) + 2
    lines = ["raycap/", *(f"{name:{width}}{summary}".rstrip() for name, summary in entries)]
    return "\n".join(["```text", *lines, "```"])


def _tree(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    paths = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    known = {name: index for index, name in enumerate(LAYERS)}
    for path in sorted(paths, key=lambda path: (known.get(path.name, len(known)), path.is_file(), path.name)):
        if path.name != "__init__.py":
            source = path if path.is_file() else path / "__init__.py"
            docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
            yield "  " * depth + path.name + "/" * path.is_dir(), docstring.partition("\n")[0]
            if path.is_dir():
                yield from _tree(path, depth + 1)
