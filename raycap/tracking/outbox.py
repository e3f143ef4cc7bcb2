"""What is to be told to MLflow, in order, until it has been told; on disk while MLflow is out of reach.

Whatever is told may be told again without harm. So an operation whose answer was lost, or that a process left behind when
it was killed, is simply delivered once more.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from raycap.errors import TrackingError
from raycap.storage import Storage

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""How long the courier waits after a failure; twice as long after each more."""
SAVED_EVERY_S = 1.0


@dataclass(frozen=True)
class Operation:
    """One thing to tell: a method of the recipient and its arguments, which are JSON."""

    name: str
    time_ms: int
    """When it happened, since the epoch. It stays the same however often the operation is delivered."""
    arguments: dict[str, Any]

    @property
    def trial_id(self) -> str | None:
        """The trial it is about; None if it is about the sweep."""
        return self.arguments.get("trial_id")


class Recipient(Protocol):
    """Whom operations are delivered to."""

    def deliver(self, operation: Operation) -> None:
        """Raises TrackingError if nobody is there, and anything else if the operation is refused."""

    def forget(self) -> None:
        """Forget what it knows of the other side, which may have changed."""


class Outbox:
    """Operations that wait, and the courier, a thread that alone speaks to the recipient. All methods return at once but
    `close`.

    While nobody is there, what waits is saved in a file of the storage; the next outbox at the same path begins with it.
    """

    def __init__(self, storage: Storage, path: str, recipient: Recipient, known: Container[str]) -> None:
        """`known` are the ids of trials that the recipient knows. What the file has of others, which an edit of the spec has
        left out, stays there for the day it is edited back.
        """
        self._storage, self._path, self._recipient, self._known = storage, path, recipient, known
        self.trouble: str | None = None
        """Why the last delivery failed; None if it did not."""
        self.refused: list[str] = []
        """What was refused, and why; nothing else is lost."""
        self.unread: str | None = None
        """Why the file could not be read."""
        self.unsaved: str | None = None
        """Why the file could not be written the last time."""
        self._changed = threading.Condition()
        self._pending: deque[Operation] = deque()
        self._of_others: list[Operation] = []
        self._version, self._num_delivered, self._closed = 0, 0, False
        self._saving = threading.Lock()
        self._saved_version, self._saved_at = 0, 0.0
        self._on_disk = self._read()
        self._hurry = threading.Event()
        threading.Thread(target=self._deliver_all, name="raycap-courier", daemon=True).start()

    def add(self, name: str, time_ms: int | None = None, **arguments: Any) -> None:
        """Have something told after all that waits already; it happened now if no time is given."""
        new = Operation(name, time.time_ns() // 1_000_000 if time_ms is None else time_ms, arguments)
        with self._changed:
            self._pending.append(new)
            self._version += 1
            self._changed.notify_all()

    def close(self, patience_s: float, stall_s: float) -> int:
        """Wait until all is delivered, but no longer than `patience_s`, nor than `stall_s` for one operation; then save what
        is left, and say how many those are. The courier stops.
        """
        deadline = time.monotonic() + patience_s
        self._hurry.set()
        with self._changed:
            while self._pending:
                before = self._num_delivered
                left_s = min(stall_s, deadline - time.monotonic())
                if not self._changed.wait_for(lambda: self._num_delivered > before, left_s):  # noqa: B023
                    break
            self._closed = True
            self._changed.notify_all()
        self._hurry.set()
        self._save()
        return len(self._pending)

    def _deliver_all(self) -> None:
        pause_s = FIRST_PAUSE_S
        while operation := self._next():
            try:
                self._deliver(operation)
            except TrackingError as error:
                self.trouble = str(error)
                self._recipient.forget()
                pause_s = FIRST_PAUSE_S if self._rest(pause_s) else min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            self.trouble, pause_s = None, FIRST_PAUSE_S
            with self._changed:
                self._pending.popleft()
                self._version += 1
                self._num_delivered += 1
                self._changed.notify_all()
            if self._on_disk and (not self._pending or time.monotonic() > self._saved_at + SAVED_EVERY_S):
                self._save()

    def _next(self) -> Operation | None:
        """The operation whose turn it is, once there is one; None when the outbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            return None if self._closed else self._pending[0]

    def _deliver(self, operation: Operation) -> None:
        """Have an operation done, or refused twice: the second time with nothing remembered that may be wrong by now."""
        try:
            self._recipient.deliver(operation)
        except TrackingError:
            raise
        except Exception:
            self._recipient.forget()
            try:
                self._recipient.deliver(operation)
            except TrackingError:
                raise
            except Exception as error:  # whatever it is, what comes after must not wait for ever
                told = f"{operation.name} of {operation.trial_id or 'the sweep'}: {type(error).__name__}: {error}"
                self.refused.append(told.splitlines()[0])

    def _rest(self, seconds: float) -> bool:
        """Wait before the next try, and keep the file up to date meanwhile. Whether somebody is in a hurry."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0 and not self._hurry.is_set():
            self._save()
            self._hurry.wait(min(left_s, SAVED_EVERY_S))
        hurried = self._hurry.is_set()
        self._hurry.clear()
        return hurried

    def _read(self) -> bool:
        """Begin with what is in the file. Whether there is one."""
        try:
            if not self._storage.exists(self._path):
                return False
            found = [Operation(**fields) for fields in json.loads(self._storage.read(self._path))]
        except (OSError, TypeError, ValueError) as error:
            self.unread = f"{self._path} cannot be read: {error}"
            with suppress(OSError):
                self._storage.set_aside(self._path)
            return False
        # What was said of the sweep as a whole is outdated: whoever opens this outbox says it anew.
        for operation in found:
            if operation.trial_id:
                (self._pending if operation.trial_id in self._known else self._of_others).append(operation)
        return True

    def _save(self) -> None:
        """Bring the file up to date; there is none where nothing waits."""
        with self._saving:
            with self._changed:
                if self._version == self._saved_version:
                    return
                self._pending = deque(_still_needed(self._pending))
                pending, version = [*self._of_others, *self._pending], self._version
            try:
                if pending:
                    self._storage.write(self._path, json.dumps([vars(operation) for operation in pending]))
                elif self._on_disk:
                    self._storage.delete(self._path)
                self._on_disk, self._saved_version, self.unsaved = bool(pending), version, None
            except OSError as error:
                self.unsaved = f"{self._path} cannot be written: {error}"
            self._saved_at = time.monotonic()


def _still_needed(pending: Iterable[Operation]) -> list[Operation]:
    """All but the evaluations of trials whose result, which holds them, waits too, and all but the last word on the sweep.

    The first one stays: it may be on its way.
    """
    operations, kept = list(pending), list[Operation]()
    outdated: set[tuple[str, str | None]] = set()
    for operation in reversed(operations[1:]):
        if (operation.name, operation.trial_id) in outdated:
            continue
        kept.append(operation)
        if operation.name == "log_sweep":
            outdated.add(("log_sweep", None))
        if operation.name == "finish_trial":
            outdated.add(("log_evaluation", operation.trial_id))
    return [*operations[:1], *reversed(kept)]
