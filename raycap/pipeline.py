"""Steps of a sweep from its spec to its report, as functions.

    spec -> plan -> trials on Ray -> losses in bits -> capacities -> laws -> report

Exit codes: 0 all trials finished, 1 some failed or are not finished or MLflow lacks records, 2 the spec is invalid, the
environment cannot run it, or Ray died during the run, 3 the budget is spent, 130 interrupted.
"""

import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from rich.console import Console

from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.cluster.session import Ending, Job, Outcome, run_sweep
from raycap.errors import CannotRunError, TrackingError
from raycap.plan.estimate import Estimate
from raycap.plan.inventory import Inventory, TrialState, inventory, prepare_folder
from raycap.plan.lookup import lookup_trials
from raycap.plan.stacks import stacks_to_train
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import InspectedModels, ModelAnalysis
from raycap.spec.document import SpecError
from raycap.spec.file import LoadedSweep, load_sweep
from raycap.spec.locations import DEFAULT_TRACKING_URI, LocationError, environment_tracking_uri
from raycap.spec.uris import without_password
from raycap.storage import Storage, result_path
from raycap.storage.lock import LockedError, locked, refuse_others
from raycap.storage.retries import advice
from raycap.storage.sweep_folder import NotASweepError, SweepFolder
from raycap.terminal.failures import print_failures, print_unreadable
from raycap.terminal.format import wide_console
from raycap.terminal.plan_table import plan_json, print_plan

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis
    from raycap.analysis.inspected import Inspected
    from raycap.cluster.inspections import Inspections

EXIT_FAILED, EXIT_BAD_SPEC, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 2, 3, 130
EXIT_CODES = {
    Ending.INTERRUPTED: EXIT_INTERRUPTED,
    Ending.BUDGET: EXIT_BUDGET,
    Ending.RAY_DIED: EXIT_BAD_SPEC,
    Ending.LOST: EXIT_FAILED,
}
"""Exit codes of runs that ended before all trials finished or failed."""
UNFINISHED_REASONS = {
    Ending.INTERRUPTED: "Interrupted",
    Ending.BUDGET: "The budget is spent",
    Ending.RAY_DIED: "Ray has died",
}


@dataclass(frozen=True)
class Invocation:
    """The call that runs a sweep, as messages name it."""

    source: str
    """Source of the spec, at the beginning of errors."""
    again: str
    """Command or call that continues the run."""
    again_failed: str
    """Command or call that runs only the failed trials again."""

    @classmethod
    def of_command(cls, spec: str, overrides: Sequence[str], only: str | None = None) -> "Invocation":
        """Return the invocation of `python -m raycap.sweep`, with `only` as the option `--trials`."""
        options = ["--trials", only] if only is not None else []
        again = shlex.join(["python", "-m", "raycap.sweep", spec, *overrides, *options])
        return cls(spec, again, f"{again} --only-failed")


def run_spec(
    spec: str,
    overrides: tuple[str, ...],
    console: Console,
    began: float,
    *,
    only_failed: bool = False,
    only: str | None = None,
    budget: Budget = UNBOUNDED,
    cpu_only: bool = False,
    announce: Callable[[SweepRecord, Storage], None] = lambda sweep, storage: None,
) -> int:
    """Load and plan a sweep file, and run it: see `run_planned`.

    `overrides` are changes to the spec, as key=value. `announce` is called with the planned sweep before anything is
    written.
    """
    sweep, storage = prepare(spec, overrides)
    announce(sweep, storage)
    invocation = Invocation.of_command(spec, overrides, only)
    return run_planned(
        sweep, storage, invocation, console, began, only_failed=only_failed, only=only, budget=budget, cpu_only=cpu_only
    )


def run_planned(
    sweep: SweepRecord,
    storage: Storage,
    invocation: Invocation,
    console: Console,
    began: float,
    *,
    only_failed: bool = False,
    only: str | None = None,
    budget: Budget = UNBOUNDED,
    cpu_only: bool = False,
) -> int:
    """Run the missing trials of a planned sweep, and analyse it.

    Args:
        sweep: The planned sweep.
        storage: Its storage.
        invocation: The call that messages name.
        console: Console for the plan, the progress and the results.
        began: Time at which the command started, by time.monotonic().
        only_failed: Run only trials whose last run failed.
        only: Run only the trials that this comma-separated list of ids and labels names.
        budget: Limit of time, GPU hours or money.
        cpu_only: Train on the CPU even where the spec reserves GPUs, to check the placement of trials without GPUs.

    Returns:
        The exit code.

    Raises:
        SpecError: The sweep is locked, or the environment cannot run it.
    """
    refuse_pool(sweep, "trains nothing")
    name, execution, source = sweep.spec.name, sweep.spec.execution, invocation.source
    selected = sweep.trials if only is None else lookup_trials(sweep.trials, only)
    if math.isfinite(budget.gpu_seconds) and not execution.gpus_per_worker:
        raise SpecError(["--budget: trials of this sweep use no GPU; give a time instead, as in --budget 2h"])
    if math.isfinite(budget.usd) and not execution.prices:
        raise SpecError(["--budget: a sum of money needs execution.prices, dollars per hour by type of machine"])
    with ExitStack() as stack:
        with _storage_errors(source, storage.location(name)):
            lease = stack.enter_context(locked(storage, name, console.print))
            found = inventory(sweep, storage)
        missing = found.to_run(selected, only_failed=only_failed)
        print_plan(sweep, missing if only_failed else selected, found, console)
        with _storage_errors(source, storage.location(name)):
            prepare_folder(sweep, found, storage)
            refuse_others(name, {trial.trial_id for trial in missing}, storage, console.print)
        num_finished = sum(found.states[trial.trial_id].state is TrialState.FINISHED for trial in selected)
        stacks = stacks_to_train(missing, sweep.trials, found.states, execution.replicas)
        job = Job(sweep, missing, stacks, num_finished, began, lease, budget, cpu_only)
        try:
            outcome = run_sweep(job, console)
        except CannotRunError as error:
            raise SpecError([f"{source}: {error}"]) from error
        is_inspected = _inspect(outcome, sweep, selected, storage, console)
        code = _print_outcome(outcome, sweep, selected, storage, invocation, console)
        return code or (0 if is_inspected else EXIT_FAILED)


def _inspect(
    outcome: Outcome, sweep: SweepRecord, selected: Sequence[PlannedTrial], storage: Storage, console: Console
) -> bool:
    """Run the analyses of the section `inspect` on the finished trials, unless the run has ended before all trials.

    Returns whether there are results for all finished trials.
    """
    inspect = sweep.spec.inspect
    if not inspect.analyses or outcome.ending is not Ending.OVER:
        return True
    from raycap.analysis.composition import store_compositions
    from raycap.cluster.inspections import Inspections, inspect_trials
    from raycap.learner.analyses import analyses_of

    finished = [trial for trial in selected if storage.exists(result_path(trial.trial_id))]
    inspections = Inspections(analyses_of(sweep.spec, inspect.analyses), inspect.models is InspectedModels.ALL)
    console.print(f"\nAnalyses of stored models: {', '.join(inspect.analyses)}")
    try:
        done = inspect_trials(sweep, finished, storage, inspections, console)
    except CannotRunError as error:
        console.print(str(error), style="red", soft_wrap=True)
        return False
    if ModelAnalysis.LOSSES in inspect.analyses:
        for problem in store_compositions(storage, [trial.trial_id for trial in done]):
            console.print(problem, style="red", soft_wrap=True)
    log_inspected(sweep, done, storage, console)
    return len(done) == len(finished)


@contextmanager
def _storage_errors(source: str, folder: str) -> Iterator[None]:
    """Convert errors of the storage and of the lock to SpecError."""
    try:
        yield
    except LockedError as error:
        raise SpecError([f"{source}: {error}"]) from None
    except OSError as error:
        raise SpecError([f"{source}: storage {folder} cannot be used: {error}; {advice(error)}"]) from error


def _print_outcome(
    outcome: Outcome,
    sweep: SweepRecord,
    selected: Sequence[PlannedTrial],
    storage: Storage,
    invocation: Invocation,
    console: Console,
) -> int:
    """Print the outcome of a run and return the exit code."""
    from raycap.analysis.answer import answer
    from raycap.analysis.stored import read_stored

    folder = SweepFolder(storage, sweep.spec.name)
    console.print()
    storage_problem = " ".join(outcome.problems) if outcome.ending is Ending.LOST else ""
    try:
        stored = None if storage_problem else read_stored(sweep.trials, storage)
    except OSError as error:
        stored, storage_problem = None, f"storage {folder.location} cannot be read: {error}; {advice(error)}"
    if stored is None:
        console.print(storage_problem, style="yellow", soft_wrap=True)
        console.print("Stored results and checkpoints are kept. To continue:")
        console.print(f"  {invocation.again}", soft_wrap=True)
        return EXIT_CODES.get(outcome.ending, EXIT_FAILED)
    if outcome.ending is not Ending.INTERRUPTED:  # after Ctrl-C, end quickly: drawing figures takes seconds
        has_new_results = bool(sweep.spec.inspect.analyses)  # since the run has written the report
        law = answer(write_report(sweep, storage)) if has_new_results or not outcome.law else outcome.law
        console.print(law, style="bold")
        console.print(f"Report: {storage.location(folder.path(SweepFolder.REPORT))}", soft_wrap=True)
        console.print(f"Compare the trials: raycap ui {shlex.quote(folder.location)}", soft_wrap=True)
    if stored.failures:
        print_failures(sweep, stored.failures, storage, invocation.again_failed, console)
    print_unreadable(stored.unreadable, storage, console)
    for problem in outcome.problems:
        console.print(problem, style="yellow", soft_wrap=True)
    selected_ids = {trial.trial_id for trial in selected}
    num_unreadable = len(selected_ids & stored.unreadable.keys())
    num_left = len(selected_ids - stored.measured.keys()) - num_unreadable
    if num_left:
        reason = UNFINISHED_REASONS.get(outcome.ending, "Not finished")
        console.print(f"{reason}: {num_left} of {len(selected)} trials are left. To continue:")
        console.print(f"  {invocation.again}", soft_wrap=True)
    if outcome.ending is Ending.INTERRUPTED:
        console.print(f"Report on the finished trials: raycap report {shlex.quote(folder.location)}", soft_wrap=True)
    is_complete = not num_left and not num_unreadable and outcome.is_logged
    return EXIT_CODES.get(outcome.ending, 0 if is_complete else EXIT_FAILED)


def prepare(spec: str, overrides: tuple[str, ...]) -> tuple[SweepRecord, Storage]:
    """Load and plan a sweep file; returns its record and its storage. Raises SpecError."""
    return plan_loaded(load_sweep(spec, overrides), spec)


def plan_loaded(loaded: LoadedSweep, source: str) -> tuple[SweepRecord, Storage]:
    """Plan a sweep; returns its record and its storage. Raises SpecError, which names the source of the spec.

    The trials of a pool are those of its sweeps.
    """
    from raycap.plan.expand import expand

    if loaded.spec.pool:
        from raycap.plan.pool import pooled_trials  # imports pandas and scipy, which take two seconds

        trials = pooled_trials(loaded.spec)
    else:
        trials = expand(loaded)
    try:
        storage = Storage.at(loaded.spec.storage)
    except ValueError as error:
        raise SpecError([f"{source}: {error}"]) from error
    try:
        uri = loaded.spec.tracking.uri or environment_tracking_uri() or DEFAULT_TRACKING_URI
    except LocationError as error:
        raise SpecError([f"{error}; or set tracking.uri in {source}"]) from None
    tracking = loaded.spec.tracking.model_copy(update={"uri": uri})
    record = SweepRecord(
        spec=loaded.spec.model_copy(update={"tracking": tracking}),
        question=loaded.question,
        spec_yaml=without_password(loaded.text),
        trials=tuple(trials),
        working_directory=os.getcwd(),
    )
    if record.spec.pool:
        from raycap.plan.pool import check_roles

        check_roles(record)
    return record, storage


def refuse_pool(sweep: SweepRecord, reason: str) -> None:
    """Raise SpecError if a sweep is a pool, to which an action does not apply for a reason such as "trains nothing"."""
    if sweep.spec.pool:
        sweeps = ", ".join(sweep.spec.pool.sweeps)
        raise SpecError([f"{sweep.spec.name}: a pool {reason}; use raycap report, or one of its sweeps: {sweeps}"])


def write_report(sweep: SweepRecord, storage: Storage, *, paper: bool = False) -> "Analysis":
    """Analyse a sweep from its stored results and write its report, without Ray and MLflow. Raises SpecError.

    With `paper`, the figures are also written as PDFs. Results of a pool are first copied to its storage.
    """
    from raycap.analysis.report import files, paper_files
    from raycap.plan.pool import write_pool

    if sweep.spec.pool:
        write_pool(sweep, storage)
    analysis = read_analysis(sweep, storage)
    folder = SweepFolder(storage, sweep.spec.name)
    for name, content in chain(files(analysis), paper_files(analysis) if paper else ()):
        folder.write(name, content)
    return analysis


def read_analysis(sweep: SweepRecord, storage: Storage) -> "Analysis":
    """Analyse a sweep from its stored results, without Ray and MLflow. Raises SpecError if the sweep has not run."""
    from raycap.analysis.stored import analyse_stored

    try:
        return analyse_stored(sweep, storage)
    except NotASweepError as error:
        raise SpecError([str(error)]) from None


def inspect_models(
    sweep: SweepRecord, storage: Storage, inspections: "Inspections", console: Console, *, only: str | None = None
) -> tuple[list[PlannedTrial], int]:
    """Analyse the stored models of the finished trials of a sweep on Ray, without training.

    Ray is not started if every result is stored already.

    Args:
        sweep: The sweep.
        storage: Its storage.
        inspections: The analyses.
        console: Console for the progress and the problems.
        only: Analyse only the trials that this comma-separated list of ids and labels names.

    Returns:
        The trials of which all results are stored now, and the exit code.

    Raises:
        SpecError: Ray cannot be used.
    """
    from raycap.cluster.inspections import inspect_trials

    refuse_pool(sweep, "has no models")
    selected = sweep.trials if only is None else lookup_trials(sweep.trials, only)
    finished = [trial for trial in selected if storage.exists(result_path(trial.trial_id))]
    try:
        done = inspect_trials(sweep, finished, storage, inspections, console)
    except CannotRunError as error:
        raise SpecError([str(error)]) from error
    if left := len(selected) - len(finished):
        console.print(f"{left} of {len(selected)} trials are not finished; run the sweep to train them", soft_wrap=True)
    return done, EXIT_FAILED if len(done) < len(selected) else 0


def log_inspected(
    sweep: SweepRecord, trials: Sequence[PlannedTrial], storage: Storage, console: Console
) -> "Inspected":
    """Log the stored results of analyses of the models of some trials to MLflow, and return them."""
    from raycap.analysis.inspected import Inspected
    from raycap.tracking.environment import configure_mlflow

    inspected = Inspected.read(trials, storage)
    configure_mlflow()
    from raycap.tracking.readings import log_models

    try:
        if metrics := inspected.metrics(sweep):
            log_models(sweep, metrics)
    except TrackingError as error:
        console.print(f"The results are stored but not logged to MLflow: {error}", soft_wrap=True)
    return inspected


def show_plan(
    spec: str,
    overrides: tuple[str, ...],
    *,
    only_failed: bool = False,
    only: str | None = None,
    as_json: bool = False,
    estimate: Callable[[SweepRecord, Storage, list[PlannedTrial], Inventory], Estimate] | None = None,
) -> None:
    """Print the plan of a run, with its estimated cost if `estimate` is given. Raises SpecError."""
    sweep, storage = prepare(spec, overrides)
    found = inventory(sweep, storage)
    selected: Sequence[PlannedTrial] = sweep.trials if only is None else lookup_trials(sweep.trials, only)
    trials = found.to_run(selected, only_failed=True) if only_failed else selected
    expected = estimate(sweep, storage, found.to_run(trials), found) if estimate else None
    if as_json:
        print(plan_json(sweep, trials, found, expected))
    else:
        print_plan(sweep, trials, found, wide_console(), expected)
