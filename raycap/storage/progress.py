"""Progress of running trials and their remaining time, written to progress.json for `raycap status`.

storage/<sweep>/progress.json is written about once a second while a sweep runs, and deleted when the run ends regularly.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationError

from raycap.results import Count, Record
from raycap.storage.files import Storage
from raycap.storage.sweep_folder import SweepFolder

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 10.0
"""Shortest intervals between two writes of the file, to a folder and to an object store."""

MAX_DONE_SHARE = 0.99
"""Largest extrapolated share: a trial that is slower than predicted is not shown as done."""


MAX_NUMBER = 1e15
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Quantity = Annotated[float, Field(ge=0, le=MAX_NUMBER)]


@dataclass(frozen=True)
class Event:
    """An event of a trial: started, evaluated, finished or failed. Only evaluations have numbers."""

    trial_id: str
    what: str
    at: Quantity
    """Seconds since the epoch, by the clock of the receiving process."""
    step: Count = 0
    exposures: Quantity = 0.0
    loss_bits: Number = 0.0
    bits_per_param: Number = 0.0
    tokens_per_s: Quantity = 0.0


class TrialProgress(Record):
    """Progress of a running trial since its last start. Times are seconds since the epoch."""

    began: Quantity
    first: Event | None = None
    """First evaluation since the start."""
    last: Event | None = None
    """Last evaluation since the start."""

    def after(self, event: Event) -> "TrialProgress":
        """Return the progress after a further evaluation."""
        return self.model_copy(update={"first": self.first or event, "last": event})

    @property
    def steps_per_s(self) -> float | None:
        """Steps per second between the first and the last evaluation; None before the first evaluation.

        With one evaluation only, it is measured from the start of the trial, which includes loading and compilation.
        """
        if self.first is None or self.last is None:
            return None
        if self.last.at > self.first.at and self.last.step > self.first.step:
            return (self.last.step - self.first.step) / (self.last.at - self.first.at)
        return self.last.step / (self.last.at - self.began) if self.last.at > self.began else None

    def share_done(self, num_steps: int, now: float) -> float:
        """Return the share of its steps that are done, extrapolated from the last evaluation; at most MAX_DONE_SHARE."""
        if self.last is None:
            return 0.0
        steps = self.last.step + (self.steps_per_s or 0.0) * max(0.0, now - self.last.at)
        return min(steps / num_steps, MAX_DONE_SHARE)

    def seconds_left(self, num_steps: int, now: float) -> float | None:
        """Return the predicted time until the last step, in seconds; None if the speed is unknown."""
        if not self.steps_per_s:
            return None
        return (1 - self.share_done(num_steps, now)) * num_steps / self.steps_per_s


class _File(Record):
    """The content of progress.json."""

    trials: dict[str, TrialProgress]
    """Progress of running trials, by trial_id."""


class ProgressFile:
    """Writer of progress.json. Write errors are ignored, because the file is for display only."""

    def __init__(self, storage: Storage, sweep_name: str) -> None:
        self._storage, self._path = storage, SweepFolder(storage, sweep_name).path(SweepFolder.PROGRESS)
        self._every_s = LOCAL_SECONDS if storage.is_local else REMOTE_SECONDS
        self._trials: dict[str, TrialProgress] = {}
        self._changed, self._written = False, float("-inf")

    def add(self, event: Event) -> None:
        """Apply an event to the progress of its trial."""
        progress = self._trials.get(event.trial_id)
        if event.what == "started":
            self._trials[event.trial_id] = TrialProgress(began=event.at)
        elif event.what == "evaluated" and progress:
            self._trials[event.trial_id] = progress.after(event)
        else:
            self._trials.pop(event.trial_id, None)
        self._changed = True
        self.flush()

    def flush(self) -> None:
        """Write the file if something has changed and the shortest interval has passed."""
        if self._changed and time.monotonic() >= self._written + self._every_s:
            self._changed, self._written = False, time.monotonic()
            with suppress(OSError):
                self._storage.write(self._path, _File(trials=self._trials).model_dump_json())

    def close(self) -> None:
        """Delete the file, because no trial is running any more."""
        with suppress(OSError):
            self._storage.delete(self._path)


def read_progress(storage: Storage, sweep_name: str) -> dict[str, TrialProgress]:
    """Return the progress of the running trials of a sweep, by trial_id; empty if there is no valid file."""
    try:
        return _File.model_validate_json(SweepFolder(storage, sweep_name).read(SweepFolder.PROGRESS)).trials
    except (OSError, ValidationError):
        return {}
