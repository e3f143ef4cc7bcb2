"""What the person at the terminal sees while trials run: a live table, or one line per event without a terminal."""

import threading
import time
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from raycap.cluster.analyst import Event
from raycap.results import PlannedTrial

ROWS_SHOWN = 30
POLL_SECONDS = 0.5
STATE_STYLES = {"failed": "bold red", "running": "cyan", "waiting": "dim", "finished": "green"}
"""By state, in the order in which states are shown."""


@dataclass
class _Row:
    planned: PlannedTrial
    state: str = "waiting"
    last: Event | None = None
    began: float = 0.0


class Progress:
    """Follows the trials through the analyst, who hears of everything; `start` and `stop` it around the run."""

    def __init__(self, trials: list[PlannedTrial], num_finished: int, analyst: ActorHandle, console: Console) -> None:
        self._rows = {trial.trial_id: _Row(trial) for trial in trials}
        self._num_finished_before, self._analyst, self._console = num_finished, analyst, console
        self._live = (
            Live(console=console, refresh_per_second=2, get_renderable=self._table) if console.is_terminal else None
        )
        self._num_seen = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raycap-progress", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        if self._live:
            self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Show what is still to be shown, and leave it standing."""
        self._stopping.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def _follow(self) -> None:
        while True:
            last_round = self._stopping.is_set()
            try:
                events: list[Event] = ray.get(self._analyst.events.remote(self._num_seen))
            except ray.exceptions.RayError:  # without an analyst there is nothing to show; the session says why
                return
            self._num_seen += len(events)
            for event in events:
                self._take(event)
            if last_round:
                return
            self._stopping.wait(POLL_SECONDS)

    def _take(self, event: Event) -> None:
        if event.trial_id not in self._rows:
            return
        row = self._rows[event.trial_id]
        match event.what:
            case "started":
                row.state, row.began, said = "running", time.monotonic(), "started"
            case "evaluated":
                row.last = event
                said = (
                    f"{event.exposures:,.1f} exposures, loss {event.loss_bits:.2f} bits, "
                    f"{event.bits_per_param:.2f} bits/param, {event.tokens_per_s:,.0f} tokens/s"
                )
            case _:
                row.state, said = event.what, f"{event.what} after {time.monotonic() - row.began:.0f} s"
        if not self._live:
            self._console.print(f"{event.trial_id} {row.planned.label}: {said}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        done = self._num_finished_before + sum(row.state == "finished" for row in self._rows.values())
        title = f"{done} of {self._num_finished_before + len(self._rows)} trials finished"
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column in ("trial", "state", "exposures", "loss (bits)", "bits/param", "tokens/s"):
            table.add_column(column, justify="left" if column in ("trial", "state") else "right")
        rows = sorted(self._rows.values(), key=lambda row: list(STATE_STYLES).index(row.state))
        for row in rows[:ROWS_SHOWN]:
            last = row.last
            numbers = (
                [
                    f"{last.exposures:,.1f}",
                    f"{last.loss_bits:.2f}",
                    f"{last.bits_per_param:.2f}",
                    f"{last.tokens_per_s:,.0f}",
                ]
                if last
                else []
            )
            table.add_row(row.planned.label, f"[{STATE_STYLES[row.state]}]{row.state}", *numbers)
        if len(rows) > ROWS_SHOWN:
            table.caption = f"and {len(rows) - ROWS_SHOWN} more"
        return table
