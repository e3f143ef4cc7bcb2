"""Command `raycap run`; raycap/pipeline.py lists the exit codes."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from raycap import pipeline
from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.commands.arguments import (
    BudgetOption,
    NotifyCommand,
    OnlyFailed,
    Overrides,
    SetName,
    SpecFile,
    Trials,
    all_overrides,
)
from raycap.commands.interruption import interruptible
from raycap.commands.notify import notify
from raycap.pipeline import EXIT_BAD_SPEC, EXIT_FAILED, EXIT_INTERRUPTED
from raycap.results import SweepRecord
from raycap.spec.document import SpecError
from raycap.storage import Storage
from raycap.terminal.format import wide_console
from raycap.terminal.streams import take_output_error


def run(
    spec: SpecFile,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--dry-run", "--plan", help="Print the plan and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
    only_failed: OnlyFailed = False,
    trials: Trials = None,
    set_name: SetName = None,
    budget: BudgetOption = None,
    notify_cmd: NotifyCommand = None,
) -> None:
    """Run a sweep: train its missing trials, fit the laws, and write the report.

    Finished trials are not trained again: after an interruption, the same command continues.

    Examples:

      raycap run specs/grid.yaml

      raycap run specs/grid.yaml trial.training.length.exposures=20 --set-name quick

      raycap run specs/grid.yaml --trials d10-L2-N1000-s0,d12-L2-N1000-s0 --budget 30m

      raycap run specs/grid.yaml --notify-cmd 'mail -s "$RAYCAP_SWEEP $RAYCAP_STATUS" me@example.org </dev/null'
    """
    environment = dict(os.environ)  # before the variables for Ray and MLflow are added
    changes = all_overrides(overrides, set_name)
    # For --notify-cmd. If the spec cannot be loaded, the command gets the name of the file as the sweep's name.
    identity = {"sweep": set_name or Path(spec).stem, "folder": ""}

    def announce(sweep: SweepRecord, storage: Storage) -> None:
        identity.update(sweep=sweep.spec.name, folder=storage.location(sweep.spec.name))

    if plan:
        pipeline.show_plan(spec, changes, only_failed=only_failed, only=trials, as_json=as_json)
        return

    has_ended = False

    def end(code: int) -> None:
        nonlocal has_ended
        if notify_cmd and not has_ended:
            has_ended = True
            notify(notify_cmd, environment, **identity, code=code)

    with interruptible(at_kill=lambda: end(EXIT_INTERRUPTED)):
        code = EXIT_FAILED
        try:
            # The start of the process on the monotonic clock, so that wall time includes the imports.
            began = time.monotonic() - (time.time() - psutil.Process().create_time())
            code = pipeline.run_spec(
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
        except ImportError:  # printed by raycap/commands/entry.py
            code = EXIT_BAD_SPEC
            raise
        except KeyboardInterrupt:
            print("Interrupted. Finished trials are stored; the same command continues from there.", file=sys.stderr)
            code = EXIT_INTERRUPTED
        finally:
            end(code)
    if lost := take_output_error():
        print(f"standard output could not be written: {lost}. Results are stored nevertheless.", file=sys.stderr)
    raise typer.Exit(code)


def _budget(text: str | None) -> Budget:
    try:
        return Budget.parse(text) if text is not None else UNBOUNDED
    except ValueError as error:
        raise SpecError([f"--budget: {error}"]) from None
