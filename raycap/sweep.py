"""python -m raycap.sweep SPEC: the main job, end to end.

    spec -> plan -> trials on Ray -> losses in bits -> capacities -> laws -> report

Exit codes: 0 all trials finished, 1 some failed, 2 the spec or the surroundings cannot run, 3 the budget is spent,
130 interrupted.
"""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer
from pydantic import ValidationError
from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.cluster.session import Ending, Job, Outcome, run_sweep
from raycap.commands.notify import notify
from raycap.errors import CannotRunError
from raycap.plan.estimate import Estimate
from raycap.plan.inventory import Inventory, What, inventory, make_way
from raycap.plan.lookup import chosen
from raycap.results import PlannedTrial, RunRecord, SweepRecord
from raycap.spec.file import SpecError, load_sweep
from raycap.storage import Storage, absolute_uri
from raycap.storage.lock import LockedError, locked, refuse_others
from raycap.terminal.failures import print_failures, print_unreadable
from raycap.terminal.format import wide_console
from raycap.terminal.plan_table import plan_json, print_plan

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis


def spec_files() -> list[str]:
    """Sweep files near here, for the shell to complete."""
    return sorted(
        str(path) for pattern in ("*.yaml", "*/*.yaml", "sweeps/specs/*.yaml") for path in Path().glob(pattern)
    )


SpecFile = Annotated[
    str, typer.Argument(metavar="SPEC", help="Sweep file, as given or under sweeps/.", autocompletion=spec_files)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as trial.training.seed=3.")
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Only trials whose last run failed.")]
Trials = Annotated[
    str | None,
    typer.Option("--trials", metavar="ID,ID", help="Only these: ids or labels, or as much of them as is unique."),
]
SetName = Annotated[
    str | None, typer.Option("--set-name", metavar="NAME", help="Call the sweep, and its folder, something else.")
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", help="Stop after so much time, or so many GPU hours: 30m, 2h, 1d, 20gpuh.")
]
NotifyCommand = Annotated[
    str | None,
    typer.Option(
        "--notify-cmd",
        metavar="CMD",
        help="Shell command to run at the end, however it comes; it is told RAYCAP_SWEEP, RAYCAP_STATUS (finished, "
        "failed, refused, budget, interrupted), RAYCAP_FOLDER and RAYCAP_EXIT_CODE.",
    ),
]

EXIT_FAILED, EXIT_BAD_SPEC, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 2, 3, 130


def run(
    spec: str,
    overrides: tuple[str, ...],
    console: Console,
    began: float,
    *,
    only_failed: bool = False,
    only: str | None = None,
    budget: Budget = UNBOUNDED,
    announce: Callable[[SweepRecord, Storage], None] = lambda sweep, storage: None,
) -> int:
    """Load, plan, run what is missing, analyse. `began` is when the command started, by time.monotonic().

    `only_failed` runs only trials whose last run failed, `only` those that such a list names. `announce` is called with
    the planned sweep before anything is written. Returns the exit code; SpecError passes through.
    """
    sweep, storage = prepare(spec, overrides)
    announce(sweep, storage)
    name, execution = sweep.spec.name, sweep.spec.execution
    asked = sweep.trials if only is None else chosen(sweep.trials, only)
    if math.isfinite(budget.gpu_seconds) and not execution.gpus_per_worker:
        raise SpecError(["--budget: trials of this sweep take no GPU; bound its time instead, as in --budget 2h"])
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(storage, name))
            found = inventory(sweep, storage)
            missing = found.to_run(asked, only_failed=only_failed)
            print_plan(sweep, missing if only_failed else asked, found, console)
            make_way(sweep, found, storage)
            refuse_others(name, {trial.trial_id for trial in missing}, storage)
        except LockedError as error:
            raise SpecError([f"{spec}: {error}"]) from None
        except OSError as error:
            raise SpecError([f"{spec}: storage {storage.path(name)} cannot be written: {error}"]) from error
        num_finished = sum(state.what is What.FINISHED for state in found.states.values())
        job = Job(sweep, missing, num_finished, began, budget)
        try:
            outcome = run_sweep(job, console)
        except CannotRunError as error:
            raise SpecError([f"{spec}: {error}"]) from error
        again = shlex.join(["--trials", only] if only is not None else [])
        return _tell(outcome, sweep, asked, storage, shlex.join([spec, *overrides]), again, console)


def _tell(
    outcome: Outcome,
    sweep: SweepRecord,
    asked: Sequence[PlannedTrial],
    storage: Storage,
    command: str,
    again: str,
    console: Console,
) -> int:
    """Say what came of a run of the trials that were asked for, and return the exit code. `command` is what the sweep was
    started with, `again` the options that choose these trials.
    """
    from raycap.analysis.report import answer
    from raycap.analysis.stored import read_stored

    folder = storage.path(sweep.spec.name)
    console.print()
    if outcome.ending is not Ending.INTERRUPTED:  # who presses Ctrl-C does not wait for figures
        law = outcome.law or answer(report(sweep, storage))
        console.print(law, style="bold")
        console.print(f"Report: {folder}/report.html", soft_wrap=True)
        console.print(f"Compare the trials: raycap ui {command}", soft_wrap=True)
    stored = read_stored(sweep.trials, storage)
    going_on = f"{command} {again}".rstrip()
    if stored.failures:
        print_failures(sweep, stored.failures, storage, going_on, console)
    print_unreadable(stored.unreadable, storage, console)
    for problem in outcome.problems:
        console.print(problem, style="yellow", soft_wrap=True)
    asked_ids = {trial.trial_id for trial in asked}
    unread, left = (len(ids) for ids in (asked_ids & stored.unreadable.keys(), asked_ids - stored.measured.keys()))
    left -= unread
    if left:
        told = {Ending.INTERRUPTED: "Interrupted", Ending.BUDGET: "The budget is spent"}.get(
            outcome.ending, "Not finished"
        )
        console.print(f"{told}: {left} of {len(asked)} trials are left. To go on:")
        console.print(f"  python -m raycap.sweep {going_on}", soft_wrap=True)
    if outcome.ending is Ending.INTERRUPTED:
        console.print(f"Figures of what there is: raycap report {folder}", soft_wrap=True)
    codes = {Ending.INTERRUPTED: EXIT_INTERRUPTED, Ending.BUDGET: EXIT_BUDGET}
    return codes.get(outcome.ending, EXIT_FAILED if left or unread else 0)


def prepare(spec: str, overrides: tuple[str, ...]) -> tuple[SweepRecord, Storage]:
    """The planned sweep and its storage. Raises SpecError."""
    from raycap.plan.expand import expand

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


def show_plan(
    spec: str,
    overrides: tuple[str, ...],
    *,
    only_failed: bool = False,
    only: str | None = None,
    as_json: bool = False,
    estimate: Callable[[SweepRecord, Storage, list[PlannedTrial], Inventory], Estimate] | None = None,
) -> None:
    """Print what a run would do, with what it would take if somebody estimates it. Raises SpecError."""
    sweep, storage = prepare(spec, overrides)
    found = inventory(sweep, storage)
    asked: Sequence[PlannedTrial] = sweep.trials if only is None else chosen(sweep.trials, only)
    trials = found.to_run(asked, only_failed=True) if only_failed else asked
    expected = estimate(sweep, storage, found.to_run(trials), found) if estimate else None
    if as_json:
        print(plan_json(sweep, trials, found, expected))
    else:
        print_plan(sweep, trials, found, wide_console(), expected)


def changed(overrides: list[str] | None, set_name: str | None) -> tuple[str, ...]:
    """All changes to a spec that a command line asks for."""
    renamed = [] if set_name is None else [f"name={json.dumps(set_name)}"]
    return (*(overrides or ()), *renamed)


def main(
    spec: SpecFile,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--dry-run", "--plan", help="Show what would run, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print it as JSON.")] = False,
    only_failed: OnlyFailed = False,
    trials: Trials = None,
    set_name: SetName = None,
    budget: BudgetOption = None,
    notify_cmd: NotifyCommand = None,
) -> None:
    """Run a sweep: train the trials that are missing, then fit the laws and write the report.

    What has finished is never trained again: the same command goes on after any interruption.

    Examples:

      raycap run specs/grid.yaml

      raycap run specs/grid.yaml trial.training.length.exposures=20 --set-name quick

      raycap run specs/grid.yaml --trials d10-L2-N1000-s0,d12-L2-N1000-s0 --budget 30m

      raycap run specs/grid.yaml --notify-cmd 'mail -s "$RAYCAP_SWEEP $RAYCAP_STATUS" me@example.org </dev/null'
    """
    changes = changed(overrides, set_name)
    about = {"sweep": set_name or Path(spec).stem, "folder": ""}

    def announce(sweep: SweepRecord, storage: Storage) -> None:
        about.update(sweep=sweep.spec.name, folder=storage.path(sweep.spec.name))

    code = EXIT_FAILED
    try:
        if plan:
            show_plan(spec, changes, only_failed=only_failed, only=trials, as_json=as_json)
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.monotonic() - (time.time() - psutil.Process().create_time())
        code = run(
            spec,
            changes,
            wide_console(),
            began,
            only_failed=only_failed,
            only=trials,
            budget=_budget(budget),
            announce=announce,
        )
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        code = EXIT_BAD_SPEC
    except OSError as error:
        print(f"{spec}: {error}", file=sys.stderr)
        code = EXIT_BAD_SPEC
    except KeyboardInterrupt:
        print("Interrupted; what has finished stays, and the same command goes on from there.", file=sys.stderr)
        code = EXIT_INTERRUPTED
    finally:
        if notify_cmd and not plan:
            notify(notify_cmd, **about, code=code)
    raise typer.Exit(code)


def _budget(text: str | None) -> Budget:
    try:
        return Budget.parse(text) if text is not None else UNBOUNDED
    except ValueError as error:
        raise SpecError([f"--budget: {error}"]) from None


if __name__ == "__main__":
    typer.run(main)
