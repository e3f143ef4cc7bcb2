"""What the person at the terminal sees while trials run: a live table, or one line per event without a terminal."""

import time
from dataclasses import dataclass
from typing import Any

import ray.tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from raycap.results import PlannedTrial
from raycap.spec import TrialSpec

ROWS_SHOWN = 30
STATE_STYLES = {"waiting": "dim", "running": "cyan", "finished": "green", "failed": "bold red"}


@dataclass
class _Row:
    planned: PlannedTrial
    state: str = "waiting"
    exposures: float = 0.0
    loss_bits: str = ""
    tokens_per_s: float = 0.0
    began: float = 0.0


class Progress(ray.tune.Callback):
    """Follows trials through Ray Tune's events; `start` and `stop` it around the run."""

    def __init__(self, trials: list[PlannedTrial], num_finished: int, console: Console) -> None:
        self._rows = {trial.trial_id: _Row(trial) for trial in trials}
        self._num_finished_before, self._console = num_finished, console
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._table) if console.is_terminal else None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune stores its callbacks, but a terminal cannot be stored, and no sweep is restored from there."""
        return {}

    def start(self) -> None:
        """Show the table."""
        if self._live:
            self._live.start()

    def stop(self) -> None:
        """Leave the table as it last was."""
        if self._live:
            self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state, row.began = "running", time.monotonic()
        self._say(row, "started")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "exposures" not in result:
            return
        row = self._row(trial)
        row.exposures, row.tokens_per_s = result["exposures"], result["tokens_per_s"]
        row.loss_bits = " / ".join(f"{bits:.2f}" for bits in result["loss_bits"].values())
        self._say(row, f"{row.exposures:,.0f} exposures, loss {row.loss_bits} bits, {row.tokens_per_s:,.0f} tokens/s")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state = "finished"
        self._say(row, f"finished after {time.monotonic() - row.began:.0f} s")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state = "failed"
        self._say(row, "failed")

    def _row(self, trial: Any) -> _Row:
        return self._rows[TrialSpec.model_validate_json(trial.config["spec"]).trial_id]

    def _say(self, row: _Row, what: str) -> None:
        if not self._live:
            self._console.print(f"{row.planned.trial_id} {row.planned.label}: {what}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        done = self._num_finished_before + sum(row.state == "finished" for row in self._rows.values())
        table = Table(title=f"{done} of {self._num_finished_before + len(self._rows)} trials finished", title_justify="left")
        for column in ("trial", "state", "exposures", "loss (bits)", "tokens/s"):
            table.add_column(column, justify="left" if column in ("trial", "state") else "right")
        order = ["failed", "running", "waiting", "finished"]
        rows = sorted(self._rows.values(), key=lambda row: order.index(row.state))
        for row in rows[:ROWS_SHOWN]:
            numbers = [f"{row.exposures:,.0f}", row.loss_bits, f"{row.tokens_per_s:,.0f}"] if row.loss_bits else []
            table.add_row(row.planned.label, f"[{STATE_STYLES[row.state]}]{row.state}", *numbers)
        if len(rows) > ROWS_SHOWN:
            table.caption = f"and {len(rows) - ROWS_SHOWN} more"
        return table
