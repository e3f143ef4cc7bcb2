"""Printing of failed trials, grouped by cause, and of results that cannot be read."""

import re
from collections import defaultdict
from collections.abc import Mapping
from tempfile import gettempdir

from rich.console import Console

from raycap.results import Failure, SweepRecord
from raycap.storage import Storage, failure_path, result_path
from raycap.terminal.format import NAMES_SHOWN


def print_failures(
    sweep: SweepRecord, failures: Mapping[str, Failure], storage: Storage, again: str, console: Console
) -> None:
    """Print failed trials in groups with the same cause, the largest group first.

    `again` is the command or call that runs only the failed trials again.
    """
    labels = {trial.trial_id: trial.label for trial in sweep.trials}
    groups: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures.values():
        groups[normalize_cause(failure.cause)].append(failure)
    console.print(f"\n{len(failures)} of {len(sweep.trials)} trials failed", style="bold red")
    for group in sorted(groups.values(), key=len, reverse=True):
        first = group[0]
        count = f"{len(group)} trials: " if len(group) > 1 else ""
        named = [f"{labels[failure.trial_id]}{_after(failure)}" for failure in group[:NAMES_SHOWN]]
        more = f" and {len(group) - NAMES_SHOWN} more" if len(group) > NAMES_SHOWN else ""
        console.print(f"  {first.cause}", style="red", soft_wrap=True)
        console.print(f"    {count}{', '.join(named)}{more}", soft_wrap=True)
        path = storage.location(failure_path(first.trial_id))
        console.print(f"    traceback: {path}", soft_wrap=True)
    console.print("To run only the failed trials again:")
    console.print(f"  {again}", soft_wrap=True)


def normalize_cause(cause: str) -> str:
    """Return a key that is equal for causes that differ only in temporary paths, ids, addresses, numbers and units."""
    folders = "|".join(re.escape(folder) for folder in {gettempdir(), "/tmp", "/var/tmp", "/var/folders", "/dev/shm"})
    for pattern in (
        rf"(?<![\w.])(?:{folders})/[^\s'\",;)]*",  # temporary paths
        r"\b0x[0-9a-fA-F]+\b",  # addresses of objects
        r"\b(?=[a-f]*[0-9])[0-9a-f]{8,}\b",  # hexadecimal ids; the lookahead requires a digit, so that words stay
        r"[-+]?\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?(?: ?(?:[KMGT]i?)?B(?:ytes)?\b)?",  # numbers, with units of memory
    ):
        cause = re.sub(pattern, "#", cause)
    return cause


def _after(failure: Failure) -> str:
    return "" if failure.step is None else f" (after step {failure.step:,})"


def print_unreadable(unreadable: Mapping[str, str], storage: Storage, console: Console) -> None:
    """Print the results that were left out of an analysis. `unreadable` has the reasons by trial_id."""
    for trial_id, reason in unreadable.items():
        path = storage.location(result_path(trial_id))
        console.print(f"{path} cannot be read: {reason}.", style="red", soft_wrap=True)
    if unreadable:
        console.print("To train these trials again, move their files away and run the sweep.", soft_wrap=True)
