"""python -m raycap.sweep SPEC: the main job, end to end.

    spec -> plan -> trials on Ray -> losses in bits -> capacities -> laws -> report

Exit codes: 0 all trials finished, 1 some failed, 2 the spec or the surroundings cannot run, 130 interrupted.
"""

import json
import shlex
import string
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from raycap.cluster.errors import CannotRunError
from raycap.replicas import replica_groups
from raycap.results import Failure, PlannedTrial, RunRecord, SweepRecord
from raycap.spec.file import SpecError, load_sweep
from raycap.storage import Storage, absolute_uri, checkpoint_steps, failure_path, result_path

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis

EXIT_FAILED, EXIT_BAD_SPEC, EXIT_INTERRUPTED = 1, 2, 130
PLAN_ROWS_SHOWN = 60
POWER_SEED = 0
WIDTH_WITHOUT_TERMINAL = 160


def run(spec: str, overrides: tuple[str, ...], console: Console, began: float) -> int:
    """Load, plan, run what is missing, analyse. `began` is when the command started, in seconds since the epoch.

    Returns the exit code; SpecError passes through.
    """
    from raycap.cluster.session import Job, run_sweep

    sweep, storage = prepare(spec, overrides)
    before = states(sweep, storage)
    missing = [trial for trial in sweep.trials if before[trial.trial_id] != "finished"]
    console.print(plan_table(sweep, before))
    storage.write(f"{sweep.spec.name}/sweep.json", sweep.model_dump_json(indent=1))
    try:
        outcome = run_sweep(Job(sweep, missing, len(sweep.trials) - len(missing), began), console)
    except CannotRunError as error:
        raise SpecError([f"{spec}: {error}"]) from error

    from raycap.analysis.stored import read_stored

    law = outcome.law or report(sweep, storage)
    stored = read_stored(sweep.trials, storage)
    command = shlex.join([spec, *overrides])
    console.print()
    console.print(law, style="bold", highlight=False, markup=False)
    console.print(f"Report: {storage.path(sweep.spec.name)}/report.html", highlight=False, soft_wrap=True)
    console.print(f"Compare the trials: raycap ui {command}", highlight=False, soft_wrap=True, markup=False)
    if stored.failures:
        _digest(sweep, stored.failures, storage, console)
    for trial_id, why in stored.unreadable.items():
        where = storage.path(result_path(trial_id))
        console.print(f"{where} cannot be read: {why}. Delete it to train the trial again.", style="red", markup=False)
    unread, left = len(stored.unreadable), len(sweep.trials) - len(stored.measured) - len(stored.unreadable)
    if left:
        told = "Interrupted" if outcome.interrupted else "Not finished"
        console.print(f"{told}: {left} of {len(sweep.trials)} trials are left. To go on:")
        console.print(f"  python -m raycap.sweep {command}", highlight=False, soft_wrap=True, markup=False)
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_FAILED if left or unread else 0


def prepare(spec: str, overrides: tuple[str, ...]) -> tuple[SweepRecord, Storage]:
    """The planned sweep and its storage. Raises SpecError."""
    from raycap.plan import expand

    loaded = load_sweep(spec, overrides)
    trials = expand(loaded)
    try:
        storage = Storage.at(loaded.spec.storage)
    except ValueError as error:
        raise SpecError([f"{spec}: {error}"]) from error
    # Workers and actors live in other directories and processes: from here on all places are absolute.
    tracking = loaded.spec.tracking.model_copy(update={"uri": absolute_uri(loaded.spec.tracking.uri)})
    place = loaded.spec.storage if "://" in loaded.spec.storage else storage.root
    absolute = loaded.spec.model_copy(update={"storage": place, "tracking": tracking})
    record = SweepRecord(spec=absolute, question=loaded.question, spec_yaml=loaded.text, trials=tuple(trials))
    return record, storage


def states(sweep: SweepRecord, storage: Storage) -> dict[str, str]:
    """finished, failed before, resumable or new, by trial_id."""
    inside = storage.folders("trials")

    def state(trial: PlannedTrial) -> str:
        names = inside.get(trial.trial_id, [])
        if "result.json" in names:
            return "finished"
        if "failure.json" in names:
            return "failed before"
        return "resumable" if checkpoint_steps(names) else "new"

    return {trial.trial_id: state(trial) for trial in sweep.trials}


def report(sweep: SweepRecord, storage: Storage) -> str:
    """Analyse a sweep again from what is stored, write its files, and return the law; no Ray, no MLflow."""
    from raycap.analysis.report import answer, files

    analysis = read_analysis(sweep, storage)
    for name, content in files(analysis).items():
        storage.write(f"{sweep.spec.name}/{name}", content)
    return answer(analysis)


def read_analysis(sweep: SweepRecord, storage: Storage) -> "Analysis":
    """The analysis of what is stored."""
    from raycap.analysis.analyse import analyse
    from raycap.analysis.stored import read_stored

    run_record = RunRecord.model_validate_json(storage.read_text(f"{sweep.spec.name}/run.json"))
    stored = read_stored(sweep.trials, storage)
    return analyse(sweep, run_record, stored.measured, stored.failures, stored.unreadable)


def wide_console() -> Console:
    """Standard output; wide enough for tables where no terminal says how wide it is."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


def plan_table(sweep: SweepRecord, state: dict[str, str]) -> Table:
    """The plan for people."""
    _, selection = sweep.spec.analysis.headline
    table = Table(
        title=f"{sweep.spec.name}: {sweep.question}" if sweep.question else sweep.spec.name,
        title_justify="left",
        box=SIMPLE,
        caption_justify="left",
    )
    right = {"parameters", "non-emb.", "data bits", "bits/param", "tokens", "steps"}
    for column in ("trial", "id", "parameters", "non-emb.", "data bits", "bits/param", "tokens", "steps", "state"):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "state")
    for trial in sweep.trials[:PLAN_ROWS_SHOWN]:
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
            "; ".join([state[trial.trial_id], *(f"[yellow]{warning}[/]" for warning in trial.warnings)]),
        )
    total = sum(trial.tokens for trial in sweep.trials)
    more = f" ({len(sweep.trials) - PLAN_ROWS_SHOWN} more not shown)" if len(sweep.trials) > PLAN_ROWS_SHOWN else ""
    stacks = len(replica_groups(sweep.trials, sweep.spec.execution.replicas, {}))
    stacked = f" in {stacks} stacks" if stacks < len(sweep.trials) else ""
    table.caption = (
        f"{len(sweep.trials)} trials{stacked}{more}, {total:,} tokens; data bits with names as '{selection}'"
    )
    return table


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


def plan_json(sweep: SweepRecord, state: dict[str, str]) -> str:
    """The plan for programs."""
    selections = [str(selection) for selection in sweep.spec.analysis.selections]
    trials: list[dict[str, Any]] = [
        {
            "trial_id": trial.trial_id,
            "label": trial.label,
            "coordinates": trial.coordinates,
            "state": state[trial.trial_id],
            "num_params": trial.parameters.total,
            "num_non_embedding_params": trial.parameters.non_embedding,
            "dataset_bits": trial.dataset_bits,
            "demanded_bits_per_param": {name: trial.demanded_bits_per_param(name) for name in selections},
            "tokens": trial.tokens,
            "tokens_exact": trial.tokens_exact,
            "steps": trial.steps,
            "warnings": list(trial.warnings),
        }
        for trial in sweep.trials
    ]
    about = json.dumps({"sweep": sweep.spec.name, "question": sweep.question})
    # A line for each trial: ten thousand of them indented would be 300,000 lines, and take longer than the plan.
    lines = ",\n".join(map(json.dumps, trials))
    return f'{about[:-1]}, "trials": [\n{lines}\n]}}'


def _digest(sweep: SweepRecord, failures: dict[str, Failure], storage: Storage, console: Console) -> None:
    """Failed trials, cause first, grouped by it."""
    labels = {trial.trial_id: trial.label for trial in sweep.trials}
    by_cause: dict[str, list[str]] = defaultdict(list)
    for failure in failures.values():
        by_cause[failure.cause].append(failure.trial_id)
    console.print(f"\n{len(failures)} of {len(sweep.trials)} trials failed", style="bold red")
    for cause, trial_ids in sorted(by_cause.items(), key=lambda item: -len(item[1])):
        console.print(f"  {cause}", style="red", highlight=False, soft_wrap=True, markup=False)
        console.print(f"    {', '.join(labels[trial_id] for trial_id in trial_ids)}", highlight=False, soft_wrap=True)
        where = storage.path(failure_path(trial_ids[0]))
        console.print(f"    traceback: {where}", highlight=False, soft_wrap=True)


def main(
    spec: Annotated[str, typer.Argument(help="Sweep file, as given or under sweeps/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. trial.training.seed=3.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
) -> None:
    """Run a sweep: train the trials that are missing, then fit the laws and write the report."""
    console = wide_console()
    changes = tuple(overrides or ())
    try:
        if plan:
            sweep, storage = prepare(spec, changes)
            state = states(sweep, storage)
            print(plan_json(sweep, state)) if as_json else console.print(plan_table(sweep, state))
            return
        code = run(spec, changes, console, psutil.Process().create_time())
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_BAD_SPEC) from None
    except KeyboardInterrupt:
        print("Interrupted; what has finished stays, and the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
