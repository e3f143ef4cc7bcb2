"""Trials under way: what they did, how far they are, and when they will be done; kept in a file for who looks from outside.

storage/<sweep>/progress.json is written about once a second while a sweep runs, and is gone when it ends in order.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from raycap.results import Record
from raycap.storage.files import Storage

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 10.0
"""At most so often the file is written, in a folder and in an object store."""

MAX_DONE_SHARE = 0.99
"""A trial that is late is not done."""


@dataclass(frozen=True)
class Event:
    """Something a trial did: started, evaluated, finished or failed. Numbers belong to evaluations."""

    trial_id: str
    what: str
    at: float
    """Seconds since the epoch, by the clock of who heard of it."""
    step: int = 0
    exposures: float = 0.0
    loss_bits: float = 0.0
    bits_per_param: float = 0.0
    tokens_per_s: float = 0.0


class TrialProgress(Record):
    """How far a trial under way has come, since it was started last. Times are seconds since the epoch."""

    began: float
    first: Event | None = None
    """Its first evaluation since then."""
    last: Event | None = None

    def after(self, event: Event) -> "TrialProgress":
        """The same after an evaluation."""
        return self.model_copy(update={"first": self.first or event, "last": event})

    @property
    def steps_per_s(self) -> float | None:
        """Steps in a second, between its evaluations as far as there are two; None where nothing tells."""
        if self.first is None or self.last is None:
            return None
        if self.last.at > self.first.at and self.last.step > self.first.step:
            return (self.last.step - self.first.step) / (self.last.at - self.first.at)
        return self.last.step / (self.last.at - self.began) if self.last.at > self.began else None

    def share_done(self, num_steps: int, now: float) -> float:
        """Of its steps, as if it had gone on at the same pace since its last evaluation. Never all of them."""
        if self.last is None:
            return 0.0
        steps = self.last.step + (self.steps_per_s or 0.0) * max(0.0, now - self.last.at)
        return min(steps / num_steps, MAX_DONE_SHARE)

    def seconds_left(self, num_steps: int, now: float) -> float | None:
        """Until its last step; None where nothing tells."""
        if not self.steps_per_s:
            return None
        return (1 - self.share_done(num_steps, now)) * num_steps / self.steps_per_s


class _File(Record):
    """The content of progress.json."""

    trials: dict[str, TrialProgress]
    """Of trials under way, by trial_id."""


def progress_path(sweep_name: str) -> str:
    """Where the progress of a sweep is kept."""
    return f"{sweep_name}/progress.json"


class ProgressFile:
    """Keeps progress.json. What cannot be written is left out: it is only for looking at."""

    def __init__(self, storage: Storage, sweep_name: str) -> None:
        self._storage, self._path = storage, progress_path(sweep_name)
        self._every_s = LOCAL_SECONDS if storage.is_local else REMOTE_SECONDS
        self._trials: dict[str, TrialProgress] = {}
        self._changed, self._written = False, float("-inf")

    def add(self, event: Event) -> None:
        """Something has happened."""
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
        """Write what has changed, unless that was done a moment ago."""
        if self._changed and time.monotonic() >= self._written + self._every_s:
            self._changed, self._written = False, time.monotonic()
            with suppress(OSError):
                self._storage.write(self._path, _File(trials=self._trials).model_dump_json())

    def close(self) -> None:
        """Nothing is under way any more."""
        with suppress(OSError):
            self._storage.delete(self._path)


def read_progress(storage: Storage, sweep_name: str) -> dict[str, TrialProgress]:
    """How far the trials under way of a sweep are, by trial_id; empty where nothing sound says so."""
    try:
        return _File.model_validate_json(storage.read(progress_path(sweep_name))).trials
    except (OSError, ValidationError):
        return {}
