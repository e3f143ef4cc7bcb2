"""Progress table of a running sweep: one row per trial, and a progress bar for the whole sweep."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raycap.results import PlannedTrial
from raycap.results.texts import bits_per_param_text
from raycap.storage.progress import TrialProgress
from raycap.terminal.format import duration, fitted_table, shortened_label

ROWS_SHOWN = 30
BAR_WIDTH = 40
NUMBERS = {"done": 4, "exposures": 9, "loss bits": 9, "bits/param": 10, "tokens/s": 8, "left": 11}
"""Numeric columns and their widths."""
DROPPABLE = ["tokens/s", "exposures", "loss bits", "bits/param", "left", "done"]
"""Columns that are left out in narrow terminals, the least important first. The label, the id and the state remain."""
RUNNING, WAITING, FINISHED, FAILED = "running", "waiting", "finished", "failed"
STATE_STYLES = {
    FAILED: "bold red",
    RUNNING: "cyan",
    "resumable": "yellow",
    WAITING: "dim",
    "new": "dim",
    FINISHED: "green",
}
"""Styles by state, in the order in which rows are sorted."""


@dataclass(frozen=True)
class TrialRow:
    """A trial with its current state and progress."""

    trial: PlannedTrial
    state: str
    progress: TrialProgress | None = None
    """Progress of a running trial, or the final evaluation of a finished one; None if unknown."""
    share_saved: float = 0.0
    """Share of its steps at its last checkpoint."""

    @property
    def work(self) -> float:
        """Approximate amount of computation of the whole trial: parameters times tokens."""
        return float(self.trial.parameters.total) * self.trial.tokens

    def share_done(self, now: float) -> float:
        """Return the share of its steps that are done; `now` is in seconds since the epoch."""
        if self.state == FINISHED:
            return 1.0
        if self.state != RUNNING or self.progress is None:
            return self.share_saved
        return max(self.share_saved, self.progress.share_done(self.trial.steps, now))

    def seconds_left(self, now: float) -> float | None:
        """Return the predicted remaining time in seconds; None for trials that do not run or whose speed is unknown."""
        if self.state != RUNNING or self.progress is None:
            return None
        return self.progress.seconds_left(self.trial.steps, now)


def share_done(rows: Iterable[TrialRow], now: float) -> float:
    """Return the share of the total computation of the trials that is done."""
    done = [(row.work, row.share_done(now)) for row in rows]
    return sum(work * share for work, share in done) / sum(work for work, _ in done)


def seconds_left(rows: Iterable[TrialRow], now: float) -> float | None:
    """Return the predicted time until all running and waiting trials are done; None if no speed is known.

    Assumes that the number of trials that run at the same time stays the same.
    """
    timed: list[float] = []
    seconds_per_work: list[float] = []
    untimed_work, num_running = 0.0, 0
    for row in rows:
        if row.state not in (RUNNING, WAITING):
            continue
        num_running += row.state == RUNNING
        seconds, share = row.seconds_left(now), row.share_done(now)
        if seconds is None or row.progress is None or not row.progress.steps_per_s:
            untimed_work += row.work * (1 - share)
        else:
            timed.append(seconds)
            seconds_per_work.append(row.trial.steps / row.progress.steps_per_s / row.work)
    if not timed:
        return None
    # The mean speed of the running trials predicts the others. The sweep lasts at least as long as its longest trial,
    # and at least as long as the total work on the slots that are in use.
    mean = sum(seconds_per_work) / len(seconds_per_work)
    return max(*timed, (sum(timed) + mean * untimed_work) / num_running)


def summarize(rows: Sequence[TrialRow], now: float, num_before: int = 0) -> str:
    """Return the progress of a sweep in one line; `num_before` is the number of finished trials without a row."""
    count = {state: sum(row.state == state for row in rows) for state in (RUNNING, FAILED)}
    finished = sum(row.state == FINISHED for row in rows)
    parts = [f"{num_before + finished} of {num_before + len(rows)} trials finished"]
    parts += [f"{num} {state}" for state, num in count.items() if num]
    if (left := seconds_left(rows, now)) is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def render_progress(rows: Sequence[TrialRow], now: float, console: Console, num_before: int = 0) -> Group:
    """Return the table of trials, failed and running ones first, with the progress bar and the summary line.

    Columns that do not fit on the console are left out.
    """
    order = list(STATE_STYLES)
    ranked = sorted(rows, key=lambda row: order.index(row.state) if row.state in STATE_STYLES else -1)
    shown = ranked[:ROWS_SHOWN]

    def build(columns: Sequence[str], label_width: int) -> Table:
        table = Table(box=SIMPLE, padding=0)
        for column in columns:
            is_number = column in NUMBERS
            min_width = 9 if column == "state" else NUMBERS.get(column)
            table.add_column(column, justify="right" if is_number else "left", no_wrap=True, min_width=min_width)
        for row in shown:
            cells: dict[str, RenderableType] = {
                "trial": shortened_label(row.trial.label, label_width),
                "id": row.trial.trial_id,
                "state": Text(row.state, STATE_STYLES.get(row.state, "bold red")),
            }
            cells |= zip(NUMBERS, _numbers(row, now), strict=True)
            table.add_row(*(cells[column] for column in columns))
        if len(ranked) > ROWS_SHOWN:
            table.caption = f"and {len(ranked) - ROWS_SHOWN} more"
        return table

    labels = (row.trial.label for row in shown)
    table = fitted_table(build, ["trial", "id", "state", *NUMBERS], DROPPABLE, labels, console)
    bar = Table.grid(padding=(0, 1))
    share = share_done(rows, now)
    bar.add_row(ProgressBar(total=1.0, completed=share, width=min(BAR_WIDTH, console.width // 2)), f"{share:.0%}")
    return Group(table, bar, Text(summarize(rows, now, num_before)))


def _numbers(row: TrialRow, now: float) -> list[str]:
    """Return the cells of the numeric columns, in the order of NUMBERS; empty strings for unknown values."""
    share, left = row.share_done(now), row.seconds_left(now)
    done = f"{share:.0%}" if share else ""
    last = row.progress.last if row.progress else None
    if last is None:
        return [done, "", "", "", "", ""]
    return [
        done,
        f"{last.exposures:,.1f}",
        f"{last.loss_bits:.2f}",
        bits_per_param_text(last.bits_per_param, 2),
        f"{last.tokens_per_s:,.0f}",
        "" if left is None else duration(left),
    ]
