"""Plan and simulated power of a sweep, as tables and as JSON."""

import json
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from raycap.analysis.axes import axes_of, describe_axes, format_value
from raycap.plan.estimate import SWEEP_SECONDS, Estimate, model_bytes
from raycap.plan.inventory import Inventory, InventoryEntry
from raycap.plan.sizes import MAX_EMBEDDING_SHARE, embedding_share, parameter_counts, suggested_names, training_flops
from raycap.plan.stacks import resume_step, stacks_to_train
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import BpeTokenizer, ProfilesByCount, ResolvedModel
from raycap.spec.document import SpecError
from raycap.spec.locations import TRACKING_VARIABLE, without_credentials
from raycap.spec.points import products
from raycap.spec.uris import join_uri
from raycap.terminal.code_lengths import format_prices, prices_field
from raycap.terminal.format import NAMES_SHOWN, duration, fitted_table, shortened_label, size, wide_console
from raycap.terminal.stored_models import describe_analyses, describe_stored_models

if TYPE_CHECKING:
    from raycap.analysis.power import Power

PLAN_ROWS_SHOWN = 60
DROPPABLE = ["non-emb.", "FLOPs", "tokens", "steps", "memory", "data bits", "parameters", "time", "demanded bits/param"]
"""Columns that are left out in narrow terminals, the least important first. The label, the id and the state remain."""
VALUES_SHOWN = 12
"""Largest number of values of a field, or of entries of points, that are listed below the table."""
SMALL_VOCABULARY = BpeTokenizer.model_fields["vocab_size"].default
"""Size of the BPE vocabulary that is suggested if embeddings are most of the parameters."""
STATE_WIDTH = 12
"""Least width of the column of states, which are longer if a trial has warnings."""
POWER_SEED = 0
"""Seed of the simulated sweeps."""


def print_plan(
    sweep: SweepRecord,
    trials: Sequence[PlannedTrial],
    found: Inventory,
    console: Console,
    expected: Estimate | None = None,
) -> None:
    """Print the plan of some trials, the estimated cost if there is one, and the stale trials of the sweep."""
    console.print(plan_table(sweep, trials, found, console, expected))
    lines = (
        *describe_points(sweep),
        *describe_axes(axes_of(sweep)),
        *describe_solved(trials),
        *describe_embeddings(trials),
        *format_prices(trials),
        *describe_stored_models(sweep, trials),
        *describe_analyses(sweep),
        *format_locations(sweep),
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    if expected:
        for line in format_estimate(expected):
            console.print(line, soft_wrap=True)
    if not found.stale:
        return
    console.print(
        f"{len(found.stale)} stale: trials of earlier runs that are no longer in the spec. Their files are kept."
    )
    for trial in found.stale[:NAMES_SHOWN]:
        line = f"  {trial.label}  {trial.trial_id}  {'finished' if trial.finished else 'not finished'}"
        console.print(line, soft_wrap=True)
    if len(found.stale) > NAMES_SHOWN:
        console.print(f"  and {len(found.stale) - NAMES_SHOWN} more")


def describe_points(sweep: SweepRecord) -> list[str]:
    """Return a line of text with the numbers of points, if the sweep is more than a grid."""
    if not sweep.spec.points and not sweep.spec.exclude:
        return []
    numbers = [product.num_points for product in products(sweep.spec.grid, sweep.spec.points)]
    parts = " + ".join(map(str, numbers[:VALUES_SHOWN])) + (" + ..." if len(numbers) > VALUES_SHOWN else "")
    total = f" = {sum(numbers):,}" if len(numbers) > 1 else ""
    left = len(sweep.trials)
    less = f", of which {left:,} are different trials and not excluded" if left < sum(numbers) else ""
    return [f"Points: {parts}{total}{less}"]


def describe_solved(trials: Sequence[PlannedTrial]) -> list[str]:
    """Return a line of text per field that the plan computed, with its values in the order of the trials."""
    values: dict[str, dict[str, None]] = {}
    for trial in trials:
        for path, value in trial.solved.items():
            values.setdefault(path, {})[format_value(value)] = None
    shown = {path: [*texts][:VALUES_SHOWN] + ["..."] * (len(texts) > VALUES_SHOWN) for path, texts in values.items()}
    return [f"Computed: {path} = {' | '.join(texts)}" for path, texts in shown.items()]


def describe_embeddings(trials: Sequence[PlannedTrial]) -> list[str]:
    """Return a line of text with a remedy if embeddings are most of the parameters of some trials."""
    found = [trial for trial in trials if embedding_share(trial.parameters) > MAX_EMBEDDING_SHARE]
    if not found:
        return []
    largest = max(found, key=lambda trial: embedding_share(trial.parameters))
    assert isinstance(largest.spec.model, ResolvedModel)
    share, model, num = embedding_share(largest.parameters), largest.spec.model, len(found)
    remedies = []
    if isinstance(largest.spec.tokenizer, BpeTokenizer):
        remedies.append("a smaller tokenizer.vocab_size")
    elif isinstance(largest.spec.profiles, ProfilesByCount):
        names = suggested_names(max(trial.populations[0].num_profiles for trial in found))
        remedies.append(f"profiles.names: {{first: {names.first}, middle: {names.middle}, last: {names.last}}}")
    if embedding_share(parameter_counts(model, SMALL_VOCABULARY)) <= MAX_EMBEDDING_SHARE:
        remedies.append(f"tokenizer: {{kind: bpe, vocab_size: {SMALL_VOCABULARY}}}")
    remedy = f". For models that consist mostly of blocks, set {', or '.join(remedies)}" if remedies else ""
    return [
        f"Embeddings: up to {100 * share:.1f} % of the parameters, in {num} trials, are embeddings of a vocabulary of "
        f"{largest.parameters.embedding // model.hidden_size:,} tokens{remedy}."
    ]


def format_locations(sweep: SweepRecord) -> list[str]:
    """Return lines of text with the locations of the sweep's results and of MLflow."""
    lines = [
        f"Results: {join_uri(sweep.storage, sweep.spec.name)}",
        f"MLflow: {sweep.tracking_uri}, experiment {sweep.spec.tracking.experiment}",
    ]
    from_environment = os.environ.get(TRACKING_VARIABLE)
    if from_environment and without_credentials(from_environment).rstrip("/") not in (
        sweep.tracking_uri,
        sweep.spec.tracking.uri,
    ):
        ignored = f"{TRACKING_VARIABLE}={without_credentials(from_environment)}"
        lines.append(f"  {ignored} is not used: tracking.uri overrides it.")
    return lines


def format_estimate(expected: Estimate) -> list[str]:
    """Return the estimated cost of a run as lines of text."""
    if not expected.trials and not expected.unknown:
        return ["All trials are finished."]
    at_once = f"{expected.slots} at once" if expected.slots > 1 else "one after the other"
    parts = [f"about {duration(expected.seconds)}, {at_once}"]
    if expected.gpu_hours:
        parts.append(f"{expected.gpu_hours:.3g} GPU hours")
    if expected.dollars is not None:
        parts.append(f"${expected.dollars:,.2f}")
    parts.append(f"up to {size(expected.worker_bytes)} per worker")
    sources = "; ".join(f"{num} trials from {source}" for source, num in expected.sources.items())
    lines = [f"Estimate: {', '.join(parts)}."]
    if sources:
        lines.append(f"  Step times: {sources}. Start and end of the sweep take {duration(SWEEP_SECONDS)} of it.")
    if expected.unknown:
        lines.append(f"  Not included: {expected.unknown} trials whose step time is unknown.")
    return lines


def plan_table(
    sweep: SweepRecord,
    trials: Sequence[PlannedTrial],
    found: Inventory,
    console: Console,
    expected: Estimate | None = None,
) -> Table:
    """Return a table with sizes, bits and states of trials, and their estimated cost if there is one.

    Columns that do not fit on the console are left out.
    """
    shown = trials[:PLAN_ROWS_SHOWN]
    stacks = stacks_to_train(found.to_run(trials), sweep.trials, found.states, sweep.spec.execution.replicas)
    starts = {trial.trial_id: resume_step(stack, found.states) for stack in stacks for trial in stack}
    cells = {trial.trial_id: _plan_cells(sweep, trial, found, starts, expected) for trial in shown}

    def build(columns: Sequence[str], label_width: int) -> Table:
        table = Table(
            title=f"{sweep.spec.name}: {sweep.question}" if sweep.question else sweep.spec.name,
            title_justify="left",
            box=SIMPLE,
            caption_justify="left",
        )
        for column in columns:
            justify: JustifyMethod = "right" if column in DROPPABLE else "left"
            is_state = column == "state"
            table.add_column(column, justify=justify, no_wrap=not is_state, min_width=STATE_WIDTH if is_state else None)
        for trial in shown:
            row = cells[trial.trial_id] | {"trial": shortened_label(trial.label, label_width)}
            table.add_row(*(row[column] for column in columns))
        total = sum(trial.tokens for trial in trials)
        more = f" ({len(trials) - PLAN_ROWS_SHOWN} more not shown)" if len(trials) > PLAN_ROWS_SHOWN else ""
        num_left = len(found.to_run(trials))  # `starts` has the finished trials that train along, too
        num_along = sum(map(len, stacks)) - num_left
        left = "" if num_left == len(trials) else f", {num_left} left"
        along = f" with {num_along} finished trials, whose results stay as they are" if num_along else ""
        stacked = f"{left} in {len(stacks)} stacks{along}" if any(len(stack) > 1 for stack in stacks) else ""
        left_out = [column for column in all_columns if column not in columns]
        narrow = f"; a wider terminal also shows {', '.join(left_out)}" if left_out else ""
        table.caption = (
            f"{len(trials)} trials{stacked}{more}, {total:,} tokens; data bits with names as '{selection}'{narrow}"
        )
        return table

    _, selection = sweep.spec.analysis.headline
    estimates = ["FLOPs", "time", "memory"] if expected else []
    all_columns = [
        "trial",
        "id",
        "parameters",
        "non-emb.",
        "data bits",
        "demanded bits/param",
        "tokens",
        "steps",
        *estimates,
        "state",
    ]
    return fitted_table(build, all_columns, DROPPABLE, (trial.label for trial in shown), console)


def _state(entry: InventoryEntry, trial: PlannedTrial, starts: Mapping[str, int]) -> str:
    """Return the state of a trial; `starts` has the step from which each trial to train resumes with its stack."""
    start = starts.get(trial.trial_id, entry.steps_done)
    if start == entry.steps_done:
        return str(entry)
    return f"{entry}, trains with its stack from " + (f"{100 * start // trial.steps} %" if start else "the start")


def _plan_cells(
    sweep: SweepRecord, trial: PlannedTrial, found: Inventory, starts: Mapping[str, int], expected: Estimate | None
) -> dict[str, RenderableType]:
    """Return the cells of a trial by column, except that of its label; `starts`: see `_state`."""
    _, selection = sweep.spec.analysis.headline
    approximately = "" if trial.tokens_exact else "~"
    estimate = expected.trials.get(trial.trial_id) if expected else None
    return {
        "id": trial.trial_id,
        "parameters": f"{trial.parameters.total:,}",
        "non-emb.": f"{trial.parameters.non_embedding:,}",
        "data bits": f"{trial.dataset_bits[selection]:,.0f}",
        "demanded bits/param": f"{trial.demanded_bits_per_param(selection):.2f}",
        "tokens": f"{approximately}{trial.tokens:,}",
        "FLOPs": f"{training_flops(trial):.2g}",
        "steps": f"{trial.steps:,}",
        "time": duration(estimate.seconds) if estimate else "-",
        "memory": size(estimate.worker_bytes) if estimate else "-",
        "state": Text("; ").join(
            [
                Text(_state(found.states[trial.trial_id], trial, starts)),
                *(Text(warning, "yellow") for warning in trial.warnings),
            ]
        ),
    }


def plan_entries(
    sweep: SweepRecord, trials: Sequence[PlannedTrial], found: Inventory, expected: Estimate | None = None
) -> list[dict[str, Any]]:
    """Return the plan of some trials as an entry of plain values for each, with `estimate` if there is one."""
    selections = [str(selection) for selection in sweep.spec.analysis.selections]
    stacks = stacks_to_train(found.to_run(trials), sweep.trials, found.states, sweep.spec.execution.replicas)
    stack_of = {trial.trial_id: [member.trial_id for member in stack] for stack in stacks for trial in stack}
    return [
        {
            "trial_id": trial.trial_id,
            "label": trial.label,
            "coordinates": trial.coordinates,
            "solved": trial.solved,
            "state": found.states[trial.trial_id].state,
            "reason": found.states[trial.trial_id].reason,
            "num_params": trial.parameters.total,
            "num_non_embedding_params": trial.parameters.non_embedding,
            "num_active_params": trial.parameters.active,
            "dataset_bits": trial.dataset_bits,
            "demanded_bits_per_param": {name: trial.demanded_bits_per_param(name) for name in selections},
            "tokens": trial.tokens,
            "tokens_exact": trial.tokens_exact,
            "training_flops": training_flops(trial),
            "steps": trial.steps,
            "stack": stack_of.get(trial.trial_id, []),
            "warnings": list(trial.warnings),
        }
        | prices_field(trial)
        | _estimate_field(expected, trial)
        for trial in trials
    ]


def plan_json(
    sweep: SweepRecord, trials: Sequence[PlannedTrial], found: Inventory, expected: Estimate | None = None
) -> str:
    """Return the plan of some trials as JSON, with `estimate` if there is one."""
    entries = plan_entries(sweep, trials, found, expected)
    stale = [asdict(trial) for trial in found.stale]
    record: dict[str, Any] = {
        "sweep": sweep.spec.name,
        "question": sweep.question,
        "folder": join_uri(sweep.storage, sweep.spec.name),
        "tracking_uri": sweep.tracking_uri,
        "experiment": sweep.spec.tracking.experiment,
        "model_bytes": model_bytes(trials, sweep.spec.execution),
        "analyses": list(sweep.spec.inspect.analyses),
        "axes": [{"path": axis.path, "values": axis.values, "role": axis.role} for axis in axes_of(sweep)],
        "stale": stale,
    }
    if expected:
        totals = ("slots", "seconds", "gpu_hours", "dollars", "worker_bytes", "sources", "unknown")
        record["estimate"] = {name: getattr(expected, name) for name in totals}
    head = json.dumps(record)
    # One line per trial: json.dumps with indent is pure Python, and for ten thousand trials slower than the plan.
    lines = ",\n".join(map(json.dumps, entries))
    return f'{head[:-1]}, "trials": [\n{lines}\n]}}'


def _estimate_field(expected: Estimate | None, trial: PlannedTrial) -> dict[str, Any]:
    """Return the `estimate` of a trial as a dict; empty if there is no estimate."""
    if expected is None:
        return {}
    estimate = expected.trials.get(trial.trial_id)
    return {"estimate": asdict(estimate) if estimate else None}


def print_power(
    sweep: SweepRecord, noises: tuple[float, ...], bits_per_param: float, num_sweeps: int, *, as_json: bool
) -> None:
    """Print how often simulated sweeps decide for the true reading, for each reading and noise.

    Raises SpecError if all readings agree on this sweep, so that there is nothing to decide.
    """
    import numpy as np

    from raycap.analysis.power import simulate

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
                [
                    f"{sweep.spec.name}: analysis: all readings give the same bits for these data; there is no choice. "
                    "Leave out --power, or add schemes or selections under which the bits differ"
                ]
            )
        powers.append(power)
        if not as_json:
            console.print(_power_table(power, len(sweep.trials), bits_per_param))
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


def _power_table(power: "Power", num_trials: int, bits_per_param: float) -> Table:
    """Return a table with a row for each true reading: how often each reading scores best, and how often one is decided."""
    from raycap.analysis.selection import MIN_CELLS

    table = Table(
        title=f"{100 * power.noise:g} % noise, {power.num_sweeps} simulated sweeps of {num_trials} trials per true reading: "
        "how often each reading scores best",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    table.add_column("true reading", no_wrap=True)
    letters = string.ascii_uppercase[: len(power.readings)]
    for letter in letters:
        table.add_column(letter, justify="right", no_wrap=True)
    for column in ("decided for", "against", "usable"):
        table.add_column(column, justify="right")
    for row, (letter, reading) in enumerate(zip(letters, power.readings, strict=True)):
        shares = [*power.picked[row], power.decided[row], power.misled[row], power.usable[row]]
        table.add_row(f"{letter}: {reading}", *(f"{100 * share:.0f} %" for share in shares))
    table.caption = (
        f"Usable trials are neither exhausted nor ignorant; with fewer than {MIN_CELLS} usable cells, readings are not "
        f"compared. Models are assumed to store {bits_per_param:g} bits/param."
    )
    return table
