"""Status of a sweep from its files: results, failures, checkpoints, the holder of the lock, and progress.json."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from raycap.plan.inventory import InventoryEntry, TrialState, inventory
from raycap.results import CostRecord, SweepRecord
from raycap.storage import Storage
from raycap.storage.claims import Holder, holder_of
from raycap.storage.progress import Event, TrialProgress, read_progress
from raycap.storage.sweep_folder import SweepFolder
from raycap.terminal.format import is_live
from raycap.terminal.progress_table import (
    FAILED,
    FINISHED,
    RUNNING,
    WAITING,
    TrialRow,
    render_progress,
    seconds_left,
    share_done,
    summarize,
)

REFRESH_INTERVAL_S = 2.0
"""Interval at which `follow` reads the files."""


EVENT = TypeAdapter(Event)


@dataclass(frozen=True)
class Status:
    """Status of a sweep at one moment."""

    name: str
    holder: Holder | None
    """Holder of the lock; None if the sweep is not running."""
    rows: list[TrialRow]
    states: Mapping[str, InventoryEntry]
    """Stored states with reasons, by trial_id."""
    at: float
    """Seconds since the epoch."""
    was_killed: bool
    """Whether the last run ended without closing the sweep."""
    answer: str
    """The answer of the last report; "" without one."""
    cost: CostRecord | None = None
    """Cost of all runs; None if the sweep has no prices of machines."""

    @property
    def cost_line(self) -> str:
        """Return the cost of the runs and the money that is left, in one line; "" without prices."""
        if self.cost is None:
            return ""
        left, spent = self.cost.left_usd, f"spent {self.cost.spent_usd:,.2f} USD"
        return spent if left is None else f"{spent} of {self.cost.budget_usd:,.2f}; {left:,.2f} USD left"

    @property
    def runner(self) -> str:
        """The process that runs the sweep, in one line."""
        if self.holder:
            return f"{self.name}: run by {self.holder}"
        if not self.was_killed:
            return f"{self.name}: not running"
        return (
            f"{self.name}: not running; the process of the last run was killed. MLflow may show its runs as "
            "running until the next raycap run, ui or sync"
        )

    def show(self, console: Console) -> None:
        """Print the status, the answer of the last report unless the sweep is running, and reasons of failed trials."""
        console.print(self.runner, soft_wrap=True)
        console.print(render_progress(self.rows, self.at, console))
        if self.cost:
            console.print(self.cost_line, soft_wrap=True)
        if self.answer and not self.holder:
            console.print(self.answer, soft_wrap=True, markup=False)
        for row in self.rows:
            entry = self.states[row.trial.trial_id]
            if row.state not in (FINISHED, RUNNING) and entry.state in (TrialState.FAILED, TrialState.DAMAGED):
                console.print(f"{row.trial.label}: {entry}", soft_wrap=True)

    def json(self) -> str:
        """Return the status as JSON."""
        trials = []
        for row in self.rows:
            progress, trial = row.progress, row.trial
            trials.append(
                {
                    "trial_id": trial.trial_id,
                    "label": trial.label,
                    "state": row.state,
                    "reason": self.states[trial.trial_id].reason,
                    "share_done": row.share_done(self.at),
                    "steps": trial.steps,
                    "seconds_left": row.seconds_left(self.at),
                    "began": progress.began if progress and row.state == RUNNING else None,
                    "evaluation": asdict(progress.last) if progress and progress.last else None,
                }
            )
        status = {
            "sweep": self.name,
            "run_by": self.holder.model_dump() if self.holder else None,
            "was_killed": self.was_killed,
            "at": self.at,
            "share_done": share_done(self.rows, self.at),
            "seconds_left": seconds_left(self.rows, self.at),
            "answer": self.answer,
            "cost": self.cost and self.cost.model_dump() | {"left_usd": self.cost.left_usd},
            "trials": trials,
        }
        return json.dumps(status, indent=1)


def read_status(sweep: SweepRecord, storage: Storage) -> Status:
    """Return the current status of a sweep from its files. Changes nothing."""
    holder = holder_of(storage, sweep.spec.name)
    # A killed run leaves progress.json behind, so the file counts only while the lock is held.
    left_behind = read_progress(storage, sweep.spec.name)
    running = left_behind if holder else {}
    summary = _read_summary(sweep, storage)
    evaluations = _last_evaluations(sweep, summary)
    states = inventory(sweep, storage).states
    shown = {TrialState.FINISHED: FINISHED, TrialState.FAILED: FAILED, TrialState.NEW: WAITING if holder else "new"}
    rows = []
    for trial in sweep.trials:
        entry, progress = states[trial.trial_id], running.get(trial.trial_id)
        state = shown.get(entry.state, str(entry.state))
        if progress and entry.state is not TrialState.FINISHED:
            state = RUNNING
        elif holder and entry.state is TrialState.RESUMABLE:
            state = WAITING
        if entry.state is TrialState.FINISHED and trial.trial_id in evaluations:
            progress = TrialProgress(began=0.0, last=evaluations[trial.trial_id])
        rows.append(TrialRow(trial, state, progress, entry.steps_done / trial.steps))
    was_killed = bool(left_behind) and not holder
    cost = SweepFolder(storage, sweep.spec.name).read_cost()
    return Status(sweep.spec.name, holder, rows, states, time.time(), was_killed, summary.answer, cost)


def _read_summary(sweep: SweepRecord, storage: Storage) -> "_Summary":
    """Return what is needed of summary.json; an empty one if there is none, or one of another version."""
    try:
        return _Summary.model_validate_json(SweepFolder(storage, sweep.spec.name).read(SweepFolder.SUMMARY))
    except (OSError, ValidationError):
        return _Summary(answer="", trials=())


def _last_evaluations(sweep: SweepRecord, summary: "_Summary") -> dict[str, Event]:
    """Return the final evaluations of finished trials from summary.json, by trial_id.

    summary.json is not written after every trial, so recently finished ones may be missing.
    """
    scheme, selection = sweep.spec.analysis.headline
    kinds = {trial.trial_id: trial.spec.questions.kinds[-1] for trial in sweep.trials}
    found = {}
    for entry in summary.trials:
        if entry.state != "finished" or entry.trial_id not in kinds:
            continue
        with suppress(LookupError, ArithmeticError, ValidationError):  # an entry with other readings or kinds
            event = {
                "trial_id": entry.trial_id,
                "what": "evaluated",
                "at": 0.0,
                "step": entry.steps,
                "exposures": entry.exposures,
                "loss_bits": entry.loss_bits[kinds[entry.trial_id]],
                "bits_per_param": entry.bits_per_param[scheme][selection],
                "tokens_per_s": entry.tokens / entry.train_seconds,
            }
            found[entry.trial_id] = EVENT.validate_python(event)
    return found


class _SummaryTrial(BaseModel):
    """The fields of a trial in summary.json that are needed. Trials that have not finished lack the measured ones."""

    trial_id: str
    state: str
    steps: float = 0
    exposures: float = 0.0
    tokens: float = 0
    train_seconds: float = 0.0
    loss_bits: dict[str, float] = {}
    bits_per_param: dict[str, dict[str, float | None]] = {}


class _Summary(BaseModel):
    answer: str
    trials: tuple[_SummaryTrial, ...]


def follow(first: Status, sweep: SweepRecord, storage: Storage, console: Console) -> None:
    """Show the status of a sweep until it is no longer running; without a terminal, print a line at every change."""
    now, printed = first, ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if is_live(console):
                live.update(Group(Text(now.runner), render_progress(now.rows, now.at, console)), refresh=True)
            elif (line := f"{now.runner}; {summarize(now.rows, now.at)}") != printed:
                printed = line
                console.print(line, soft_wrap=True)
            if now.holder is None:
                return
            time.sleep(REFRESH_INTERVAL_S)
            now = read_status(sweep, storage)
