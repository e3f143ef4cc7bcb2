"""Formatting of durations and sizes, and the console for tables."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

NAMES_SHOWN = 10
"""Maximum number of stale trials, or of trials with one cause of failure, that are named; the others are counted."""
WIDTH_WITHOUT_TERMINAL = 160
"""Characters per line if the output is not a terminal."""
MIN_LABEL_WIDTH = 8
"""Characters to which labels of trials are shortened in narrow terminals."""


def wide_console() -> Console:
    """Return a console on standard output that is wide enough for tables even without a terminal.

    Markup is off, because rich would interpret lists and paths in brackets as markup.
    """
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not sys.stdout.isatty():
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


def is_live(console: Console) -> bool:
    """Whether a console can show a table that changes: a terminal that moves its cursor, or a notebook with ipywidgets.

    FORCE_COLOR is ignored.
    """
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def fitted_table(
    build: Callable[[Sequence[str], int], Table],
    columns: Sequence[str],
    droppable: Sequence[str],
    labels: Iterable[str],
    console: Console,
) -> Table:
    """Return a table that is not wider than the console, if that is possible.

    Columns are left out one after the other until the table fits; after that, labels are shortened.

    Args:
        build: Returns the table with some of the columns, in which labels have at most the given number of characters.
        columns: All columns.
        droppable: The columns that may be left out, the least important first.
        labels: The labels of the trials.
        console: Console on which the table will be printed.
    """
    width = max(map(len, labels), default=0)
    for num_dropped in range(len(droppable) + 1):
        table = build([column for column in columns if column not in droppable[:num_dropped]], width)
        excess = table.__rich_measure__(console, console.options).minimum - console.width
        if excess <= 0:
            return table
    return build([column for column in columns if column not in droppable], max(MIN_LABEL_WIDTH, width - excess))


def shortened_label(label: str, width: int) -> str:
    """Return a label with at most `width` characters. Its end, which names the seed, is kept."""
    if len(label) <= width:
        return label
    end = label.rpartition("-")[2][: width // 2]
    return f"{label[: width - len(end) - 2]}…-{end}"


def duration(seconds: float) -> str:
    """Format a duration as in 42 s, 3 min 5 s, 2 h 10 min or 4 d 3 h, rounded to the smaller unit."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def size(num_bytes: float) -> str:
    """Format a number of bytes as in 512 MB or 1.4 GB, with decimal units."""
    power = min(4, int(math.log10(num_bytes) // 3)) if num_bytes >= 1 else 0
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
