"""How far a sweep is, as its files tell: results, failures, checkpoints, who holds the lock, and progress.json."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from raycap.plan.inventory import InventoryEntry, TrialState, inventory
from raycap.results import SweepRecord
from raycap.storage import Storage
from raycap.storage.lock import Holder, holder_of
from raycap.storage.progress import Event, TrialProgress, read_progress
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


@dataclass(frozen=True)
class Status:
    """A sweep at one moment."""

    name: str
    holder: Holder | None
    """Who runs it; None where nobody does."""
    lines: list[TrialRow]
    states: Mapping[str, InventoryEntry]
    """By trial_id, with reasons."""
    at: float
    """Seconds since the epoch."""

    @property
    def who(self) -> str:
        """Who runs it, in a line."""
        return f"{self.name}: run by {self.holder}" if self.holder else f"{self.name}: nobody runs it"

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(self.who, soft_wrap=True)
        console.print(render_progress(self.lines, self.at))
        for line in self.lines:
            state = self.states[line.trial.trial_id]
            if line.state not in (FINISHED, RUNNING) and state.state in (TrialState.FAILED, TrialState.DAMAGED):
                console.print(f"{line.trial.label}: {state}", soft_wrap=True)

    def json(self) -> str:
        """For programs."""
        trials = []
        for line in self.lines:
            progress, trial = line.progress, line.trial
            trials.append(
                {
                    "trial_id": trial.trial_id,
                    "label": trial.label,
                    "state": line.state,
                    "reason": self.states[trial.trial_id].reason,
                    "share_done": line.share_done(self.at),
                    "steps": trial.steps,
                    "seconds_left": line.seconds_left(self.at),
                    "began": progress.began if progress and line.state == RUNNING else None,
                    "evaluation": asdict(progress.last) if progress and progress.last else None,
                }
            )
        about = {
            "sweep": self.name,
            "run_by": asdict(self.holder) if self.holder else None,
            "at": self.at,
            "share_done": share_done(self.lines, self.at),
            "seconds_left": seconds_left(self.lines, self.at),
            "trials": trials,
        }
        return json.dumps(about, indent=1)


def read_status(sweep: SweepRecord, storage: Storage) -> Status:
    """The state of a sweep now. Nothing is changed."""
    holder = holder_of(storage, sweep.spec.name)
    under_way = read_progress(storage, sweep.spec.name) if holder else {}
    measured = _last_analysis(sweep, storage)
    states = inventory(sweep, storage).states
    lines = []
    for trial in sweep.trials:
        state, progress = states[trial.trial_id], under_way.get(trial.trial_id)
        words = {TrialState.FINISHED: FINISHED, TrialState.FAILED: FAILED, TrialState.NEW: WAITING if holder else "new"}
        word = words.get(state.state, str(state.state))
        if progress and state.state is not TrialState.FINISHED:
            word = RUNNING
        elif holder and state.state is TrialState.RESUMABLE:
            word = WAITING
        if state.state is TrialState.FINISHED and trial.trial_id in measured:
            progress = TrialProgress(began=0.0, last=measured[trial.trial_id])
        lines.append(TrialRow(trial, word, progress, state.steps_done / trial.steps))
    return Status(sweep.spec.name, holder, lines, states, time.time())


def _last_analysis(sweep: SweepRecord, storage: Storage) -> dict[str, Event]:
    """What finished trials came to, by trial_id, as far as summary.json tells: it is not written after every trial."""
    scheme, selection = sweep.spec.analysis.headline
    kinds = {trial.trial_id: trial.spec.questions.kinds[-1] for trial in sweep.trials}
    try:
        entries = json.loads(storage.read(f"{sweep.spec.name}/summary.json"))["trials"]
        return {
            entry["trial_id"]: Event(
                entry["trial_id"],
                "evaluated",
                0.0,
                entry["steps"],
                exposures=entry["exposures"],
                loss_bits=entry["loss_bits"][kinds[entry["trial_id"]]],
                bits_per_param=entry["bits_per_param"][scheme][selection],
                tokens_per_s=entry["tokens"] / entry["train_seconds"],
            )
            for entry in entries
            if entry["state"] == "finished" and entry["trial_id"] in kinds
        }
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):  # none yet, or one of other readings
        return {}


def follow(first: Status, sweep: SweepRecord, storage: Storage, console: Console) -> None:
    """Show a sweep as long as somebody runs it; without a terminal a line whenever it has changed."""
    now, said = first, ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(Group(Text(now.who), render_progress(now.lines, now.at)), refresh=True)
            elif (line := f"{now.who}; {summarize(now.lines, now.at)}") != said:
                said = line
                console.print(line, soft_wrap=True)
            if now.holder is None:
                return
            time.sleep(REFRESH_INTERVAL_S)
            now = read_status(sweep, storage)
