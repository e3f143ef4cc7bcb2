"""Durations and sizes as people read them, and the console that tables are printed to."""

import math
import sys

from rich.console import Console

NAMES_SHOWN = 10
"""Stale trials, and trials that failed alike, that are named; the others are counted."""
WIDTH_WITHOUT_TERMINAL = 160


def wide_console() -> Console:
    """Standard output; wide enough for tables where no terminal says how wide it is. Text is printed as it is: there are
    lists in it, and paths, that would pass for rich's markup.
    """
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


def duration(seconds: float) -> str:
    """Such as 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h; rounded to the second of the two units."""
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
    """Such as 512 MB or 1.4 GB, of 1000 each."""
    power = min(4, int(math.log10(num_bytes) // 3)) if num_bytes >= 1 else 0
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
