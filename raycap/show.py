"""What the main job and its plan print: the plan, for people and for programs, its power, and what failed."""

import json
import re
import string
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from tempfile import gettempdir
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycap.plan.estimate import SWEEP_SECONDS, Estimate
from raycap.plan.inventory import Inventory
from raycap.plan.stacks import replica_groups
from raycap.results import Failure, PlannedTrial, SweepRecord
from raycap.spec.file import SpecError
from raycap.storage import Storage, failure_path, result_path
from raycap.words import duration, size

PLAN_ROWS_SHOWN = 60
NAMES_SHOWN = 10
"""Stale trials, and trials that failed alike, that are named; the others are counted."""
POWER_SEED = 0
WIDTH_WITHOUT_TERMINAL = 160


def wide_console() -> Console:
    """Standard output; wide enough for tables where no terminal says how wide it is. Text is printed as it is: there are
    lists in it, and paths, that would pass for rich's markup.
    """
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


def print_plan(
    sweep: SweepRecord,
    trials: Sequence[PlannedTrial],
    found: Inventory,
    console: Console,
    expected: Estimate | None = None,
) -> None:
    """The plan of some trials for people, what they would take where that was estimated, and what is left of those that
    the spec asks for no longer.
    """
    console.print(plan_table(sweep, trials, found, expected))
    if expected:
        for line in told_estimate(expected):
            console.print(line, soft_wrap=True)
    if not found.stale:
        return
    console.print(f"{len(found.stale)} stale: trials of earlier runs that the spec asks for no longer. They are kept.")
    for trial in found.stale[:NAMES_SHOWN]:
        told = f"  {trial.label}  {trial.trial_id}  {'finished' if trial.finished else 'not finished'}"
        console.print(told, soft_wrap=True)
    if len(found.stale) > NAMES_SHOWN:
        console.print(f"  and {len(found.stale) - NAMES_SHOWN} more")


def told_estimate(expected: Estimate) -> list[str]:
    """What a run would take, in lines for people."""
    if not expected.trials and not expected.unknown:
        return ["Nothing is left to train."]
    at_once = f"{expected.slots} at once" if expected.slots > 1 else "one after the other"
    told = [f"about {duration(expected.seconds)}, {at_once}"]
    if expected.gpu_hours:
        told.append(f"{expected.gpu_hours:.3g} GPU hours")
    if expected.dollars is not None:
        told.append(f"${expected.dollars:,.2f}")
    told.append(f"up to {size(expected.worker_bytes)} a worker")
    known = "; ".join(f"{num} trials by {source}" for source, num in expected.sources.items())
    lines = [f"Estimate: {', '.join(told)}."]
    if known:
        lines.append(f"  From {known}; {duration(SWEEP_SECONDS)} are the start and the end of the sweep.")
    if expected.unknown:
        lines.append(f"  {expected.unknown} trials are left out: nothing says how long their steps take.")
    return lines


def plan_table(
    sweep: SweepRecord, trials: Sequence[PlannedTrial], found: Inventory, expected: Estimate | None = None
) -> Table:
    """Sizes, bits and state of trials, and what they would take where that was estimated."""
    _, selection = sweep.spec.analysis.headline
    table = Table(
        title=f"{sweep.spec.name}: {sweep.question}" if sweep.question else sweep.spec.name,
        title_justify="left",
        box=SIMPLE,
        caption_justify="left",
    )
    right = {"parameters", "non-emb.", "data bits", "bits/param", "tokens", "steps", "time", "memory"}
    columns = ["trial", "id", "parameters", "non-emb.", "data bits", "bits/param", "tokens", "steps"]
    for column in (*columns, *(("time", "memory") if expected else ()), "state"):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "state")
    for trial in trials[:PLAN_ROWS_SHOWN]:
        about = "" if trial.tokens_exact else "~"
        table.add_row(
            trial.label,
            trial.trial_id,
            f"{trial.parameters.total:,}",
            f"{trial.parameters.non_embedding:,}",
            f"{trial.dataset_bits[selection]:,.0f}",
            f"{trial.demanded_bits_per_param(selection):.2f}",
            f"{about}{trial.tokens:,}",
            f"{trial.steps:,}",
            *_taken(expected, trial),
            Text("; ").join(
                [Text(str(found.states[trial.trial_id])), *(Text(told, "yellow") for told in trial.warnings)]
            ),
        )
    total = sum(trial.tokens for trial in trials)
    more = f" ({len(trials) - PLAN_ROWS_SHOWN} more not shown)" if len(trials) > PLAN_ROWS_SHOWN else ""
    stacks = len(replica_groups(trials, sweep.spec.execution.replicas, {}))
    stacked = f" in {stacks} stacks" if stacks < len(trials) else ""
    table.caption = f"{len(trials)} trials{stacked}{more}, {total:,} tokens; data bits with names as '{selection}'"
    return table


def _taken(expected: Estimate | None, trial: PlannedTrial) -> list[str]:
    """The cells of what a trial would take; none where nothing was estimated."""
    if expected is None:
        return []
    mine = expected.trials.get(trial.trial_id)
    return [duration(mine.seconds), size(mine.worker_bytes)] if mine else ["-", "-"]


def plan_json(
    sweep: SweepRecord, trials: Sequence[PlannedTrial], found: Inventory, expected: Estimate | None = None
) -> str:
    """The plan of some trials for programs; `estimate` is there where one was made."""
    selections = [str(selection) for selection in sweep.spec.analysis.selections]
    entries: list[dict[str, Any]] = [
        {
            "trial_id": trial.trial_id,
            "label": trial.label,
            "coordinates": trial.coordinates,
            "state": found.states[trial.trial_id].what,
            "reason": found.states[trial.trial_id].reason,
            "num_params": trial.parameters.total,
            "num_non_embedding_params": trial.parameters.non_embedding,
            "dataset_bits": trial.dataset_bits,
            "demanded_bits_per_param": {name: trial.demanded_bits_per_param(name) for name in selections},
            "tokens": trial.tokens,
            "tokens_exact": trial.tokens_exact,
            "steps": trial.steps,
            "warnings": list(trial.warnings),
        }
        | _taken_json(expected, trial)
        for trial in trials
    ]
    stale = [asdict(trial) for trial in found.stale]
    told: dict[str, Any] = {"sweep": sweep.spec.name, "question": sweep.question, "stale": stale}
    if expected:
        totals = ("slots", "seconds", "gpu_hours", "dollars", "worker_bytes", "sources", "unknown")
        told["estimate"] = {name: getattr(expected, name) for name in totals}
    about = json.dumps(told)
    # A line for each trial: ten thousand of them indented would be 300,000 lines, and take longer than the plan.
    lines = ",\n".join(map(json.dumps, entries))
    return f'{about[:-1]}, "trials": [\n{lines}\n]}}'


def _taken_json(expected: Estimate | None, trial: PlannedTrial) -> dict[str, Any]:
    if expected is None:
        return {}
    mine = expected.trials.get(trial.trial_id)
    return {"estimate": asdict(mine) if mine else None}


def print_power(
    sweep: SweepRecord, noises: tuple[float, ...], bits_per_param: float, num_sweeps: int, *, as_json: bool
) -> None:
    """Print how often each reading would be told from the others, if it were true. Raises SpecError where none could."""
    import numpy as np

    from raycap.analysis.power import simulate
    from raycap.analysis.selection import FEWEST_CELLS

    console = wide_console()
    told = []
    for noise in noises:
        power = simulate(
            sweep.trials,
            sweep.spec.analysis,
            noise=noise,
            bits_per_param=bits_per_param,
            num_sweeps=num_sweeps,
            rng=np.random.default_rng(POWER_SEED),
        )
        if len(power.readings) < 2:
            raise SpecError(
                [f"{sweep.spec.name}: analysis: all readings say the same of this data; there is no choice"]
            )
        told.append(power)
        if as_json:
            continue
        table = Table(
            title=f"{100 * noise:g} % noise, {num_sweeps} simulated sweeps of {len(sweep.trials)} trials for each truth",
            title_justify="left",
            caption_justify="left",
            box=SIMPLE,
        )
        table.add_column("if this is true, the best score has", no_wrap=True)
        letters = string.ascii_uppercase[: len(power.readings)]
        for letter in letters:
            table.add_column(letter, justify="right", no_wrap=True)
        for column in ("decided for", "against", "usable"):
            table.add_column(column, justify="right")
        for row, (letter, reading) in enumerate(zip(letters, power.readings, strict=True)):
            shares = [*power.picked[row], power.decided[row], power.misled[row], power.usable[row]]
            table.add_row(f"{letter}: {reading}", *(f"{100 * share:.0f} %" for share in shares))
        table.caption = (
            f"usable trials are neither exhausted nor ignorant; fewer than {FEWEST_CELLS} cells of them compare nothing; "
            f"models are taken to store {bits_per_param:g} bits/param"
        )
        console.print(table)
    if as_json:
        entries = [
            {
                "noise": power.noise,
                "num_sweeps": power.num_sweeps,
                "readings": [str(reading) for reading in power.readings],
                "picked": power.picked.tolist(),
                "decided": power.decided.tolist(),
                "misled": power.misled.tolist(),
                "usable": power.usable.tolist(),
            }
            for power in told
        ]
        print(json.dumps(entries, indent=2))


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
