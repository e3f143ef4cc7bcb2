"""The table of a sweep's trials while they run, with a bar for the whole of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raycap.results import PlannedTrial
from raycap.storage.progress import TrialProgress
from raycap.terminal.format import duration

ROWS_SHOWN = 30
BAR_WIDTH = 40
TRIAL_WIDTH = 10
NUMBERS = {"done": 4, "exposures": 9, "loss bits": 9, "bits/param": 10, "tokens/s": 8, "left": 11}
"""Columns and their widths: with those of trial and state they fit into 80 characters."""
RUNNING, WAITING, FINISHED, FAILED = "running", "waiting", "finished", "failed"
STATE_STYLES = {
    FAILED: "bold red",
    RUNNING: "cyan",
    "resumable": "yellow",
    WAITING: "dim",
    "new": "dim",
    FINISHED: "green",
}
"""By state, in the order in which states are shown."""


@dataclass(frozen=True)
class TrialRow:
    """A trial as it is now."""

    trial: PlannedTrial
    state: str
    progress: TrialProgress | None = None
    """How far it is or was, as far as that is known."""
    share_saved: float = 0.0
    """Of its steps, as its last checkpoint has it."""

    @property
    def work(self) -> float:
        """What it has to compute, about: parameters times tokens."""
        return float(self.trial.parameters.total) * self.trial.tokens

    def share_done(self, now: float) -> float:
        """Of its steps; `now` is in seconds since the epoch."""
        if self.state == FINISHED:
            return 1.0
        if self.state != RUNNING or self.progress is None:
            return self.share_saved
        return max(self.share_saved, self.progress.share_done(self.trial.steps, now))

    def seconds_left(self, now: float) -> float | None:
        """Until it is done; None where nothing tells, and for trials that do not run."""
        if self.state != RUNNING or self.progress is None:
            return None
        return self.progress.seconds_left(self.trial.steps, now)


def share_done(lines: Iterable[TrialRow], now: float) -> float:
    """Of all that the trials compute."""
    done = [(line.work, line.share_done(now)) for line in lines]
    return sum(work * share for work, share in done) / sum(work for work, _ in done)


def seconds_left(lines: Iterable[TrialRow], now: float) -> float | None:
    """Until all trials that run or wait are done, if as many go on at once as do now; None where nothing tells."""
    timed: list[float] = []
    step_times: list[float] = []
    untimed, num_running = 0.0, 0
    for line in lines:
        if line.state not in (RUNNING, WAITING):
            continue
        num_running += line.state == RUNNING
        seconds, share = line.seconds_left(now), line.share_done(now)
        if seconds is None or line.progress is None or not line.progress.steps_per_s:
            untimed += line.work * (1 - share)
        else:
            timed.append(seconds)
            step_times.append(line.trial.steps / line.progress.steps_per_s / line.work)
    if not timed:
        return None
    step_time = sum(step_times) / len(step_times)
    return max(*timed, (sum(timed) + step_time * untimed) / num_running)


def summarize(lines: Sequence[TrialRow], now: float, num_before: int = 0) -> str:
    """How far a sweep is, in a line; so many more trials of it were finished before."""
    count = {state: sum(line.state == state for line in lines) for state in (RUNNING, FAILED)}
    finished = sum(line.state == FINISHED for line in lines)
    parts = [f"{num_before + finished} of {num_before + len(lines)} trials finished"]
    parts += [f"{num} {state}" for state, num in count.items() if num]
    if (left := seconds_left(lines, now)) is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def render_progress(lines: Sequence[TrialRow], now: float, num_before: int = 0) -> Group:
    """All of it: the trials, those that failed and those that run first, and the bar."""
    table = Table(box=SIMPLE, padding=0)
    table.add_column("trial", overflow="ellipsis", min_width=TRIAL_WIDTH)  # labels give way where a terminal is narrow
    table.add_column("state", no_wrap=True, min_width=9)
    for column, width in NUMBERS.items():
        table.add_column(column, justify="right", no_wrap=True, min_width=width)
    order = list(STATE_STYLES)
    ranked = sorted(lines, key=lambda line: order.index(line.state) if line.state in STATE_STYLES else -1)
    for line in ranked[:ROWS_SHOWN]:
        style = STATE_STYLES.get(line.state, "bold red")
        table.add_row(line.trial.label, Text(line.state, style), *_numbers(line, now))
    if len(ranked) > ROWS_SHOWN:
        table.caption = f"and {len(ranked) - ROWS_SHOWN} more"
    bar = Table.grid(padding=(0, 1))
    share = share_done(lines, now)
    bar.add_row(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH), f"{share:.0%}")
    return Group(table, bar, Text(summarize(lines, now, num_before)))


def _numbers(line: TrialRow, now: float) -> list[str]:
    share, left = line.share_done(now), line.seconds_left(now)
    done = f"{share:.0%}" if share else ""
    last = line.progress.last if line.progress else None
    if last is None:
        return [done, "", "", "", "", ""]
    return [
        done,
        f"{last.exposures:,.1f}",
        f"{last.loss_bits:.2f}",
        f"{last.bits_per_param:.2f}",
        f"{last.tokens_per_s:,.0f}",
        "" if left is None else duration(left),
    ]
