"""Display of the progress of running trials: a live table on a terminal, one line per event otherwise."""

import threading
import time
from dataclasses import replace
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console, Group
from rich.live import Live

from raycap.results import PlannedTrial
from raycap.results.texts import bits_per_param_text
from raycap.storage.progress import Event, TrialProgress
from raycap.terminal.format import is_live
from raycap.terminal.progress_table import RUNNING, WAITING, TrialRow, render_progress

EVENT_POLL_INTERVAL_S = 0.5


class ProgressDisplay:
    """Polls the analyst for events and displays them; call `start` before the trials run and `stop` after."""

    def __init__(
        self, trials: list[PlannedTrial], num_finished: int, analyst: ActorHandle[Any], console: Console
    ) -> None:
        """`trials` are those that this run trains; `num_finished` is the number that finished in earlier runs."""
        self._lines = {trial.trial_id: TrialRow(trial, WAITING) for trial in trials}
        self._num_finished_before, self._analyst, self._console = num_finished, analyst, console
        self._live = (
            Live(console=console, refresh_per_second=2, get_renderable=self._table) if is_live(console) else None
        )
        self._analyst_id, self._num_seen = "", 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raycap-progress", daemon=True)

    def start(self) -> None:
        """Start the display and its polling thread."""
        if self._live:
            self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Show the remaining events and stop. The last state stays on the terminal."""
        self._stopping.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def _follow(self) -> None:
        while True:
            last_round = self._stopping.is_set()  # read before the events, so that none is missed
            analyst_id: str
            events: list[Event]
            try:
                analyst_id, events = ray.get(self._analyst.events.remote(self._analyst_id, self._num_seen))
            except ray.exceptions.RayError:  # the analyst is dead; the session reports the cause
                return
            if analyst_id != self._analyst_id:  # it was restarted, without its earlier events
                self._analyst_id, self._num_seen = analyst_id, 0
            self._num_seen += len(events)
            for event in events:
                self._show(event)
            if last_round:
                return
            self._stopping.wait(EVENT_POLL_INTERVAL_S)

    def _show(self, event: Event) -> None:
        line = self._lines.get(event.trial_id)
        if line is None:
            return
        progress = line.progress or TrialProgress(began=event.at)
        match event.what:
            case "started":
                line, message = replace(line, state=RUNNING, progress=TrialProgress(began=event.at)), "started"
            case "evaluated":
                line = replace(line, progress=progress.after(event))
                message = (
                    f"{event.exposures:,.1f} exposures, loss {event.loss_bits:.2f} bits, "
                    f"{bits_per_param_text(event.bits_per_param, 2)} bits/param, {event.tokens_per_s:,.0f} tokens/s"
                )
            case _:
                line = replace(line, state=event.what)
                message = f"{event.what} after {max(0.0, event.at - progress.began):.0f} s"
        self._lines[event.trial_id] = line
        if not self._live:
            self._console.print(f"{event.trial_id} {line.trial.label}: {message}", soft_wrap=True)

    def _table(self) -> Group:
        return render_progress(list(self._lines.values()), time.time(), self._console, self._num_finished_before)
