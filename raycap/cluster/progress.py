"""What the person at the terminal sees while trials run: a live table, or one line per event without a terminal."""

import threading
import time
from dataclasses import replace

import ray
from ray.actor import ActorHandle
from rich.console import Console, Group
from rich.live import Live

from raycap.results import PlannedTrial
from raycap.storage.progress import Event, TrialProgress
from raycap.terminal.progress_table import RUNNING, WAITING, TrialRow, render_progress

POLL_INTERVAL_S = 0.5


class Progress:
    """Follows the trials through the analyst, who hears of everything; `start` and `stop` it around the run."""

    def __init__(self, trials: list[PlannedTrial], num_finished: int, analyst: ActorHandle, console: Console) -> None:
        """The trials that this run trains, and how many were finished before."""
        self._lines = {trial.trial_id: TrialRow(trial, WAITING) for trial in trials}
        self._num_finished_before, self._analyst, self._console = num_finished, analyst, console
        self._live = (
            Live(console=console, refresh_per_second=2, get_renderable=self._board) if console.is_terminal else None
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
            self._stopping.wait(POLL_INTERVAL_S)

    def _take(self, event: Event) -> None:
        line = self._lines.get(event.trial_id)
        if line is None:
            return
        progress = line.progress or TrialProgress(began=event.at)
        match event.what:
            case "started":
                line, said = replace(line, state=RUNNING, progress=TrialProgress(began=event.at)), "started"
            case "evaluated":
                line = replace(line, progress=progress.after(event))
                said = (
                    f"{event.exposures:,.1f} exposures, loss {event.loss_bits:.2f} bits, "
                    f"{event.bits_per_param:.2f} bits/param, {event.tokens_per_s:,.0f} tokens/s"
                )
            case _:
                line = replace(line, state=event.what)
                said = f"{event.what} after {max(0.0, event.at - progress.began):.0f} s"
        self._lines[event.trial_id] = line
        if not self._live:
            self._console.print(f"{event.trial_id} {line.trial.label}: {said}", soft_wrap=True)

    def _board(self) -> Group:
        return render_progress(list(self._lines.values()), time.time(), self._num_finished_before)
