"""Trials that failed, and results that cannot be read."""

import re
from collections import defaultdict
from collections.abc import Mapping
from tempfile import gettempdir

from rich.console import Console

from raycap.results import Failure, SweepRecord
from raycap.storage import Storage, failure_path, result_path
from raycap.terminal.format import NAMES_SHOWN


def print_failures(
    sweep: SweepRecord, failures: Mapping[str, Failure], storage: Storage, command: str, console: Console
) -> None:
    """Failed trials, cause first, those alike together. `command` is what the sweep was started with."""
    labels = {trial.trial_id: trial.label for trial in sweep.trials}
    groups: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures.values():
        groups[kind_of(failure.cause)].append(failure)
    console.print(f"\n{len(failures)} of {len(sweep.trials)} trials failed", style="bold red")
    for alike in sorted(groups.values(), key=len, reverse=True):
        first = alike[0]
        count = f"{len(alike)} trials: " if len(alike) > 1 else ""
        named = [f"{labels[failure.trial_id]}{_after(failure)}" for failure in alike[:NAMES_SHOWN]]
        more = f" and {len(alike) - NAMES_SHOWN} more" if len(alike) > NAMES_SHOWN else ""
        console.print(f"  {first.cause}", style="red", soft_wrap=True)
        console.print(f"    {count}{', '.join(named)}{more}", soft_wrap=True)
        where = storage.path(failure_path(first.trial_id))
        console.print(f"    traceback: {where}", soft_wrap=True)
    console.print("To run these alone again:")
    console.print(f"  python -m raycap.sweep {command} --only-failed", soft_wrap=True)


def kind_of(cause: str) -> str:
    """The same for causes that differ only in temporary paths, ids, addresses, numbers and their units."""
    folders = "|".join(re.escape(folder) for folder in {gettempdir(), "/tmp", "/var/tmp", "/var/folders", "/dev/shm"})
    for pattern in (
        rf"(?<![\w.])(?:{folders})/[^\s'\",;)]*",
        r"\b0x[0-9a-fA-F]+\b",
        r"\b(?=[a-f]*[0-9])[0-9a-f]{8,}\b",
        r"[-+]?\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?(?: ?(?:[KMGT]i?)?B(?:ytes)?\b)?",
    ):
        cause = re.sub(pattern, "#", cause)
    return cause


def _after(failure: Failure) -> str:
    return "" if failure.step is None else f" (after step {failure.step:,})"


def print_unreadable(unreadable: Mapping[str, str], storage: Storage, console: Console) -> None:
    """Results that were left out, with their reasons by trial_id."""
    for trial_id, why in unreadable.items():
        where = storage.path(result_path(trial_id))
        console.print(f"{where} cannot be read: {why}.", style="red", soft_wrap=True)
