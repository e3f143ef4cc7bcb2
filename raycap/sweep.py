"""python -m raycap.sweep SPEC: the main job, end to end.

    spec -> plan -> trials on Ray -> losses in bits -> capacities -> laws -> report

Exit codes: 0 all trials finished, 1 some failed, 2 the spec or the surroundings cannot run, 3 the budget is spent,
130 interrupted.
"""

import math
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import psutil
import typer
from pydantic import ValidationError
from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.cluster.errors import CannotRunError
from raycap.cluster.session import Ending, Job
from raycap.lock import LockedError, locked, refuse_others
from raycap.results import RunRecord, SweepRecord
from raycap.show import plan_json, print_failures, print_plan, print_unreadable, wide_console
from raycap.spec.file import SpecError, load_sweep
from raycap.states import What, inventory, make_way
from raycap.storage import Storage, absolute_uri

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis

OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Only trials whose last run failed.")]

BudgetOption = Annotated[
    str | None, typer.Option("--budget", help="Stop after so much time, or so many GPU hours: 30m, 2h, 1d, 20gpuh.")
]

EXIT_FAILED, EXIT_BAD_SPEC, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 2, 3, 130


def run(
    spec: str,
    overrides: tuple[str, ...],
    console: Console,
    began: float,
    *,
    only_failed: bool = False,
    budget: Budget = UNBOUNDED,
) -> int:
    """Load, plan, run what is missing, analyse. `began` is when the command started, by time.monotonic().

    `only_failed` runs only trials whose last run failed. Returns the exit code; SpecError passes through.
    """
    sweep, storage = prepare(spec, overrides)
    name, execution = sweep.spec.name, sweep.spec.execution
    if math.isfinite(budget.gpu_seconds) and not execution.gpus_per_worker:
        raise SpecError(["--budget: trials of this sweep take no GPU; bound its time instead, as in --budget 2h"])
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(storage, name))
            found = inventory(sweep, storage)
            missing = found.to_run(sweep.trials, only_failed=only_failed)
            print_plan(sweep, missing if only_failed else sweep.trials, found, console)
            make_way(sweep, found, storage)
            refuse_others(name, {trial.trial_id for trial in missing}, storage)
        except LockedError as error:
            raise SpecError([f"{spec}: {error}"]) from None
        except OSError as error:
            raise SpecError([f"{spec}: storage {storage.path(name)} cannot be written: {error}"]) from error
        num_finished = sum(state.what is What.FINISHED for state in found.states.values())
        return _run_missing(spec, overrides, storage, Job(sweep, missing, num_finished, began, budget), console)


def _run_missing(spec: str, overrides: tuple[str, ...], storage: Storage, job: Job, console: Console) -> int:
    from raycap.cluster.session import run_sweep

    sweep = job.sweep
    try:
        outcome = run_sweep(job, console)
    except CannotRunError as error:
        raise SpecError([f"{spec}: {error}"]) from error

    from raycap.analysis.report import answer
    from raycap.analysis.stored import read_stored

    command = shlex.join([spec, *overrides])
    folder = storage.path(sweep.spec.name)
    console.print()
    if outcome.ending is not Ending.INTERRUPTED:  # who presses Ctrl-C does not wait for figures
        law = outcome.law or answer(report(sweep, storage))
        console.print(law, style="bold", highlight=False, markup=False)
        console.print(f"Report: {folder}/report.html", highlight=False, soft_wrap=True)
        console.print(f"Compare the trials: raycap ui {command}", highlight=False, soft_wrap=True, markup=False)
    stored = read_stored(sweep.trials, storage)
    if stored.failures:
        print_failures(sweep, stored.failures, storage, command, console)
    print_unreadable(stored.unreadable, storage, console)
    for problem in outcome.problems:
        console.print(problem, style="yellow", highlight=False, soft_wrap=True, markup=False)
    unread, left = len(stored.unreadable), len(sweep.trials) - len(stored.measured) - len(stored.unreadable)
    if left:
        told = {Ending.INTERRUPTED: "Interrupted", Ending.BUDGET: "The budget is spent"}.get(
            outcome.ending, "Not finished"
        )
        console.print(f"{told}: {left} of {len(sweep.trials)} trials are left. To go on:")
        console.print(f"  python -m raycap.sweep {command}", highlight=False, soft_wrap=True, markup=False)
    if outcome.ending is Ending.INTERRUPTED:
        console.print(
            f"Figures of what there is: raycap report {folder}", highlight=False, soft_wrap=True, markup=False
        )
    codes = {Ending.INTERRUPTED: EXIT_INTERRUPTED, Ending.BUDGET: EXIT_BUDGET}
    return codes.get(outcome.ending, EXIT_FAILED if left or unread else 0)


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


def report(sweep: SweepRecord, storage: Storage) -> "Analysis":
    """Analyse a sweep again from what is stored, and write its files; no Ray, no MLflow. Raises SpecError."""
    from raycap.analysis.report import files

    analysis = read_analysis(sweep, storage)
    for name, content in files(analysis).items():
        storage.write(f"{sweep.spec.name}/{name}", content)
    return analysis


def read_analysis(sweep: SweepRecord, storage: Storage) -> "Analysis":
    """The analysis of what is stored. Raises SpecError where nothing says how the last run went."""
    from raycap.analysis.analyse import analyse
    from raycap.analysis.stored import read_stored

    path = f"{sweep.spec.name}/run.json"
    try:
        run_record = RunRecord.model_validate_json(storage.read(path))
    except ValidationError:
        raise SpecError([f"{storage.path(path)} cannot be read; run the sweep's spec once more"]) from None
    stored = read_stored(sweep.trials, storage)
    return analyse(sweep, run_record, stored.measured, stored.failures, stored.unreadable)


def main(
    spec: Annotated[str, typer.Argument(help="Sweep file, as given or under sweeps/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. trial.training.seed=3.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
    only_failed: OnlyFailed = False,
    budget: BudgetOption = None,
) -> None:
    """Run a sweep: train the trials that are missing, then fit the laws and write the report."""
    console = wide_console()
    changes = tuple(overrides or ())
    try:
        if plan:
            sweep, storage = prepare(spec, changes)
            found = inventory(sweep, storage)
            trials = found.to_run(sweep.trials, only_failed=True) if only_failed else sweep.trials
            print(plan_json(sweep, trials, found)) if as_json else print_plan(sweep, trials, found, console)
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.monotonic() - (time.time() - psutil.Process().create_time())
        code = run(spec, changes, console, began, only_failed=only_failed, budget=_budget(budget))
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_BAD_SPEC) from None
    except KeyboardInterrupt:
        print("Interrupted; what has finished stays, and the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(code)


def _budget(text: str | None) -> Budget:
    try:
        return Budget.parse(text) if text is not None else UNBOUNDED
    except ValueError as error:
        raise SpecError([f"--budget: {error}"]) from None


if __name__ == "__main__":
    typer.run(main)
