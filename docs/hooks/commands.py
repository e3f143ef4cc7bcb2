"""mkdocs hook: the marker `<!-- cli -->` becomes every command, from the Typer application of raycap.cli."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from table_cells import inline

PARAMETER_TYPES = {
    "<str>": "TEXT",
    "<int>": "INTEGER",
    "<float>": "NUMBER",
    "<list[float]>": "NUMBER",
    "<path>": "PATH",
}
EXAMPLE = re.compile(r"(\w+=\S+ )*(raycap|python -m raycap\S*|ray) ")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page by a section per command."""
    return markdown.replace("<!-- cli -->", cli_markdown()) if "<!-- cli -->" in markdown else markdown


def cli_markdown() -> str:
    """Markdown for every command with its usage, arguments, options and help, and the exit codes."""
    from typer.main import get_command

    from raycap.cli import app

    root = get_command(app)
    parts = []
    for words, command in leaf_commands(["raycap"], root):
        parts.append(_command_section(words, command))
    epilog = _plain(root.epilog or "")
    codes = re.findall(r"(\d+) ([^;]+?)(?=;|\.?$)", epilog.partition("Exit codes:")[2].strip())
    table = "\n".join(f"| {code} | {meaning} |" for code, meaning in codes)
    parts.append(f"## Exit codes {{ #exit-codes }}\n\n| code | meaning |\n|---|---|\n{table}")
    return "\n\n".join(parts)


def leaf_commands(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    """The words and the object of every command that has no commands of its own. Hidden commands are left out."""
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            if not hasattr(child, "commands"):
                yield [*words, name], child
            yield from leaf_commands([*words, name], child)


def _command_section(words: list[str], command: Any) -> str:
    """Section of one command: usage, help, epilog and a table of parameters."""
    context = command.make_context(" ".join(words), [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    title = " ".join(words)
    parts = [
        f"## `{title}` {{ #{'-'.join(words[1:])} }}",
        f"```text\n{usage}\n```",
        _paragraphs(_plain(command.help or "")),
    ]
    if command.epilog:
        parts.append(_paragraphs(_plain(command.epilog)))
    rows = [
        _parameter_row(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False)
    ]
    if rows:
        parts.append("| parameter | default | |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(part for part in parts if part)


def _parameter_row(parameter: Any, context: Any) -> str:
    """Table row of an argument or option: name, default, help."""
    name = " ".join((parameter.get_help_record(context) or (parameter.opts[0], ""))[0].split())
    if parameter.param_type_name == "argument":
        name = name.partition(" <")[0]
    for python, word in PARAMETER_TYPES.items():
        name = name.replace(python, word)
    default = parameter.get_default(context, call=False)
    shown = "**required**" if parameter.required else "" if default in (None, False, (), []) else f"`{default}`"
    return f"| `{name.replace('|', chr(92) + '|')}` | {shown} | {inline(_plain(parameter.help or ''))} |"


def _plain(text: str) -> str:
    """Remove rich's markup from a help text."""
    from rich.text import Text

    return Text.from_markup(text).plain


def _paragraphs(text: str) -> str:
    """Help text as Markdown: paragraphs unchanged, consecutive example commands in one code block."""
    blocks: list[str] = []
    commands: list[str] = []

    def flush_commands() -> None:
        if commands:
            blocks.append("```bash\n" + "\n".join(commands) + "\n```")
            commands.clear()

    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.strip() for line in block.replace("\b", "").strip().splitlines()]
        if lines and all(EXAMPLE.match(f"{line} ") for line in lines):
            commands += lines
        else:
            flush_commands()
            blocks.append("\n".join(lines).replace("<", "&lt;"))
    flush_commands()
    return "\n\n".join(blocks)
