"""The documentation agrees with the code: commands, specs, paths, links, the file tree and the table of reliability."""

import ast
import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from raycap.cli import app
from raycap.spec.file import load_sweep
from tests.support.docs_hooks import load_hook

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]
    if "figures" not in path.relative_to(ROOT).parts
)
SHELL_LANGUAGES = {"bash", "sh", "shell", "console"}
INSTANT = {"plan", "init", "cluster template", "texts"}
"""Commands that finish within seconds and need no earlier run. The tests run them; others are only parsed."""
SLOW_OPTIONS = {"--estimate", "--power"}
"""Options that make a command of `INSTANT` take longer; a command with one of them is only parsed."""
TRACKED_FOLDERS = {"raycap", "tests", "docs", "sweeps"}
MAX_README_LINES = 150
CLI = typer.main.get_command(app)
page_parameter = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command shown in a page: its words, and the output shown below it (console blocks only)."""

    words: tuple[str, ...]
    output: str = ""


def relative(page: Path) -> str:
    """Path of a file from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """The inline code of a page, without backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def split_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell line, without environment assignments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words:
                yield tuple(words)
            words = []
        elif set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)


def commands(page: Path) -> Iterator[Command]:
    """Every command of the shell blocks of a page, in order."""
    for block in blocks(page):
        if block.language not in SHELL_LANGUAGES:
            continue
        text = block.text.replace("\\\n", " ")
        if block.language != "console":
            for line in text.splitlines():
                for words in split_commands(line):
                    yield Command(words)
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            for words in split_commands(line):
                yield Command(words, output)


def raycap_arguments(words: tuple[str, ...]) -> list[str] | None:
    """The arguments that a command passes to `raycap`; None if it runs another program."""
    if "--" in words:  # the command after `--` is the one that `ray job submit` runs
        words = words[words.index("--") + 1 :]
    if not words:
        return None
    program = Path(words[0]).name
    if program == "raycap":
        return list(words[1:])
    if program.startswith("python") and words[1:3] == ("-m", "raycap.sweep"):
        return ["run", *words[3:]]
    return None


def subcommands(command: Any) -> dict[str, Any]:
    """The commands of a group by name. Duck-typed, because typer contains its own copy of click's classes."""
    return getattr(command, "commands", {})


def parse(arguments: list[str]) -> str:
    """Parse arguments with the command that they select; returns its full name. Raises the errors of the command line."""
    command, names = CLI, []
    while subcommands(command) and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in subcommands(command):
            raise ValueError(f"raycap has no command {' '.join([*names, arguments[0]])}")
        names.append(arguments[0])
        command, arguments = subcommands(command)[arguments[0]], arguments[1:]
    if "--help" not in arguments:
        command.make_context(" ".join(names), list(arguments))
    return " ".join(names)


@cache
def recipes() -> frozenset[str]:
    """Names of the recipes in the justfile."""
    return frozenset(re.findall(r"^(\w[\w-]*)[^\n:=]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))


@page_parameter
def test_commands_in_shell_blocks_parse(page: Path) -> None:
    for command in commands(page):
        if command.words[0] == "just":
            assert command.words[1:2] == () or command.words[1].startswith("-") or command.words[1] in recipes()
        arguments = raycap_arguments(command.words)
        if arguments is None:
            continue
        try:
            parse(arguments)
        except Exception as error:
            reason = error.format_message() if hasattr(error, "format_message") else error
            pytest.fail(f"{relative(page)}: {shlex.join(command.words)}: {reason}")


@page_parameter
def test_commands_in_the_text_exist(page: Path) -> None:
    """Commands, options and recipes exist that a page names as inline code: `raycap COMMAND --option`, `just RECIPE`."""
    for span in code_spans(page):
        words = span.replace("[", " ").replace("]", " ").replace("\\|", " ").replace("|", " ").split()
        if words[:1] == ["just"] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in recipes(), f"{relative(page)}: {span}"
        if words[:1] != ["raycap"] or len(words) < 2:
            continue
        command = CLI
        for word in words[1:]:
            if word.startswith("--"):
                known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
                assert word in known, f"{relative(page)}: {span}: no option {word}"
            elif word == "COMMAND":
                break
            elif subcommands(command):
                assert word in subcommands(command), f"{relative(page)}: {span}: no command {word}"
                command = subcommands(command)[word]


@page_parameter
def test_instant_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need no earlier run succeed, or print the errors that the page shows below them.

    They run in a folder that has the sweeps and the cluster file of the repository and the specs that the page shows.
    """
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for text in whole_specs(page):
        (tmp_path / f"{yaml.safe_load(text)['name']}.yaml").write_text(text)
    for command in commands(page):
        arguments = raycap_arguments(command.words)
        if arguments is None or SLOW_OPTIONS & set(arguments):
            continue
        name = parse(arguments)
        is_instant = name in INSTANT or {"--help", "--dry-run", "--plan"} & set(arguments)
        if not is_instant:
            continue
        extra = ["--force"] if name == "init" else []
        run = CliRunner().invoke(app, arguments + extra)
        problems = getattr(run.exception, "problems", None)
        shown = f"{relative(page)}: {shlex.join(command.words)}: {problems or run.output or run.exception}"
        if problems:
            assert command.output.strip() == "\n".join(problems), shown
        else:
            assert run.exit_code == 0, shown


def whole_specs(page: Path) -> list[str]:
    """YAML blocks that are complete sweep files."""
    found = []
    for block in blocks(page):
        if block.language == "yaml":
            tree = yaml.safe_load(block.text)
            if isinstance(tree, dict) and {"name", "trial"} <= tree.keys():
                found.append(block.text)
    return found


@page_parameter
def test_specs_load(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in whole_specs(page):
        name = yaml.safe_load(text)["name"]
        (tmp_path / f"{name}.yaml").write_text(text)
        assert load_sweep(f"{name}.yaml").points
        shipped = ROOT / "sweeps" / "specs" / f"{name}.yaml"
        if shipped.exists() and f"`{relative(shipped)}`" in prose(page):
            assert text == shipped.read_text(), f"{relative(page)} shows another {relative(shipped)}"


def mentioned_paths(page: Path) -> Iterator[str]:
    """Paths of the repository that a page names as inline code or passes to a command."""
    in_folder = re.compile(rf"(?:{'|'.join(sorted(TRACKED_FOLDERS))})/[\w./*-]*")
    at_root = re.compile(r"(?:[A-Z]+\.(?:md|cff)|LICENSE|justfile|pyproject\.toml|cluster\.yaml|mkdocs\.yml)")
    for span in code_spans(page):
        path = span.split("::")[0].removesuffix("/")
        if in_folder.fullmatch(path) or at_root.fullmatch(path) or path.startswith(".ci/"):
            yield path
    for command in commands(page):
        for word in command.words:
            if word.startswith("specs/"):
                yield f"sweeps/{word}"


@page_parameter
def test_paths_exist(page: Path) -> None:
    missing = [path for path in mentioned_paths(page) if "NAME" not in path and not any(ROOT.glob(path))]
    assert missing == [], relative(page)


def slug(heading: str) -> str:
    """The anchor that python-markdown and GitHub generate for a heading."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
    text = unicodedata.normalize("NFKD", text).lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip())


def anchors(page: Path) -> set[str]:
    """All anchors of a page: of headings, and explicit ids."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        explicit = re.search(r"\{ *#([\w-]+)[^}]*\}\s*$", heading)
        found.add(explicit[1] if explicit else slug(heading))
    return found | set(re.findall(r"""(?:id|name)=["']([\w-]+)["']""", page.read_text()))


@page_parameter
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{relative(page)}: {target}"
        if page.is_relative_to(DOCS):
            assert file.is_relative_to(DOCS), f"{relative(page)}: {target} is not part of the manual"
        if anchor:
            assert anchor in anchors(file), f"{relative(page)}: {target}: no such heading"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def where_run(path: Path, test: str) -> str:
    """ "CI" or "by hand" by the markers of a test; "CI and by hand" if only some of its parameters are slow."""
    tree = ast.parse(path.read_text())
    of_module = [ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and names(n) == ["pytestmark"]]
    (function,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == test]
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    if "pytest.mark.slow" in decorators or any("mark.slow" in mark for mark in of_module):
        return "by hand"
    return "CI and by hand" if any("mark.slow" in decorator for decorator in decorators) else "CI"


def names(assignment: ast.Assign) -> list[str]:
    """The plain variables that an assignment sets."""
    return [target.id for target in assignment.targets if isinstance(target, ast.Name)]


def listed_files(tree: str) -> list[str]:
    """Full paths of the files in a tree that indents by two spaces per level and ends folders with a slash."""
    files, folders = [], []
    for line in tree.splitlines():
        if not line or line.startswith("`"):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.removesuffix("/"))
        else:
            files.append("/".join([*folders, name]))
    return files


def test_every_module_is_in_the_tree_of_the_architecture() -> None:
    assert "<!-- tree -->" in (DOCS / "architecture.md").read_text()
    listed = listed_files(load_hook("module_tree").tree_markdown())
    modules = [p for p in (ROOT / "raycap").rglob("*.py") if p.name != "__init__.py"]
    assert sorted(listed) == sorted(map(relative, modules))


def test_modules_have_a_summary_for_the_tree() -> None:
    for path in (ROOT / "raycap").rglob("*.py"):
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        assert summary, f"{relative(path)} has no docstring"


def test_the_table_of_reliability_agrees_with_the_tests() -> None:
    text = (DOCS / "reliability.md").read_text()
    rows = re.findall(r"^\|.*\| `([\w/]+\.py)::(\w+)` \| ([\w ]+) \|$", text, re.MULTILINE)
    first_table = text[: text.index("## Lock and storage")]
    table = [line for line in first_table.splitlines() if line.startswith("| ")]
    assert len(rows) == len(table) - 1 > 20, "every row ends in `tests/FILE.py::TEST` and where it runs"
    for file, test, runs in rows:
        assert (ROOT / file).is_file(), f"no {file}"
        assert f"def {test}(" in (ROOT / file).read_text(), f"no {file}::{test}"
        assert runs == where_run(ROOT / file, test), f"{file}::{test}"


def test_tests_named_on_any_page_exist() -> None:
    for page in PAGES:
        for file, test in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {test}(" in (ROOT / file).read_text(), f"{relative(page)}: {file}::{test}"
