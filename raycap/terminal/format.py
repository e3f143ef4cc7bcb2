"""Formatting of durations and sizes, and the console for tables."""

import math
import sys

from rich.console import Console

NAMES_SHOWN = 10
"""Maximum number of stale trials, or of trials with one cause of failure, that are named; the others are counted."""
WIDTH_WITHOUT_TERMINAL = 160
"""Characters per line if the output is not a terminal."""


def wide_console() -> Console:
    """Return a console on standard output that is wide enough for tables even without a terminal.

    Markup is off, because rich would interpret lists and paths in brackets as markup.
    """
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


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
