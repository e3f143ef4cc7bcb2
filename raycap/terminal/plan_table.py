"""The plan of a sweep, for people and for programs, and its power."""

import json
import string
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycap.plan.estimate import SWEEP_SECONDS, Estimate
from raycap.plan.inventory import Inventory
from raycap.plan.stacks import replica_groups
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec.file import SpecError
from raycap.terminal.format import NAMES_SHOWN, duration, size, wide_console

PLAN_ROWS_SHOWN = 60
POWER_SEED = 0


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
        for line in format_estimate(expected):
            console.print(line, soft_wrap=True)
    if not found.stale:
        return
    console.print(f"{len(found.stale)} stale: trials of earlier runs that the spec asks for no longer. They are kept.")
    for trial in found.stale[:NAMES_SHOWN]:
        line = f"  {trial.label}  {trial.trial_id}  {'finished' if trial.finished else 'not finished'}"
        console.print(line, soft_wrap=True)
    if len(found.stale) > NAMES_SHOWN:
        console.print(f"  and {len(found.stale) - NAMES_SHOWN} more")


def format_estimate(expected: Estimate) -> list[str]:
    """What a run would take, in lines for people."""
    if not expected.trials and not expected.unknown:
        return ["Nothing is left to train."]
    at_once = f"{expected.slots} at once" if expected.slots > 1 else "one after the other"
    parts = [f"about {duration(expected.seconds)}, {at_once}"]
    if expected.gpu_hours:
        parts.append(f"{expected.gpu_hours:.3g} GPU hours")
    if expected.dollars is not None:
        parts.append(f"${expected.dollars:,.2f}")
    parts.append(f"up to {size(expected.worker_bytes)} a worker")
    known = "; ".join(f"{num} trials by {source}" for source, num in expected.sources.items())
    lines = [f"Estimate: {', '.join(parts)}."]
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
                [Text(str(found.states[trial.trial_id])), *(Text(warning, "yellow") for warning in trial.warnings)]
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
            "state": found.states[trial.trial_id].state,
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
    record: dict[str, Any] = {"sweep": sweep.spec.name, "question": sweep.question, "stale": stale}
    if expected:
        totals = ("slots", "seconds", "gpu_hours", "dollars", "worker_bytes", "sources", "unknown")
        record["estimate"] = {name: getattr(expected, name) for name in totals}
    about = json.dumps(record)
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
    from raycap.analysis.selection import MIN_CELLS

    console = wide_console()
    powers = []
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
        powers.append(power)
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
            f"usable trials are neither exhausted nor ignorant; fewer than {MIN_CELLS} cells of them compare nothing; "
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
            for power in powers
        ]
        print(json.dumps(entries, indent=2))
