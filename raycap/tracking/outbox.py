"""Queue of operations for MLflow, which are delivered in order and kept in a file while MLflow is unavailable.

Operations are idempotent and delivery is at-least-once. An operation whose response was lost, or that a killed process left
in the file, is delivered again. An operation that MLflow rejects is recorded in `refused` and skipped, so that it does not
block later ones. Writes of the file are atomic. If the process is killed, operations that are not yet in the file are lost;
results of trials are stored separately, and all points that a run lacks are logged when the sweep is opened again.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from raycap.errors import TrackingError
from raycap.results import Count, describe_invalid
from raycap.storage import Storage

MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
"""Delay before the first retry, which doubles with each further failure, and its maximum."""
SAVE_INTERVAL_S = 1.0
"""Minimum time between two writes of the file while operations are being delivered or retried."""


@dataclass(frozen=True)
class Operation:
    """A call of a recipient's method: its name and JSON-serializable arguments."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]
    time_ms: Count
    """Time of the event in ms since the epoch. It is the same at every delivery, which makes metric points idempotent."""
    arguments: dict[str, Any]

    @property
    def trial_id(self) -> str | None:
        """The trial that the operation concerns; None if it concerns the sweep."""
        found = self.arguments.get("trial_id")
        return found if isinstance(found, str) else None


OPERATIONS = TypeAdapter(list[Operation])
"""Content of the file."""


class Recipient(Protocol):
    """The receiver of operations, such as a Tracker."""

    def deliver(self, operation: Operation) -> None:
        """Perform an operation.

        Raises TrackingError if the recipient is unavailable, and any other exception if it rejects the operation.
        """

    def clear_cache(self) -> None:
        """Discard cached state, which may differ from that of the server after a failure."""


class Outbox:
    """A queue of operations, and the thread that delivers them. Only `close` blocks.

    While the recipient is unavailable, pending operations are saved in a file of the storage. The next outbox with the
    same path starts with the operations in that file.

    `_changed` guards `_pending` and the counters. The first pending operation may be in delivery: only the delivery thread
    removes it, and every change of the queue keeps it at index 0.
    """

    def __init__(self, storage: Storage, path: str, recipient: Recipient, known: Container[str]) -> None:
        """Read pending operations from the file and start the delivery thread.

        `known` contains the ids of trials that the recipient knows. Operations of other trials, which an edit of the spec
        has removed from the sweep, stay in the file and are delivered if a later edit adds the trial again.
        """
        self._storage, self._path, self._recipient, self._known = storage, path, recipient, known
        self.delivery_error: str | None = None
        """Error of the last delivery; None if it succeeded."""
        self.refused: list[str] = []
        """Descriptions of operations that the recipient rejected, with the errors. No other operation is dropped."""
        self.read_error: str | None = None
        """Error of reading the file; None if it was read."""
        self.write_error: str | None = None
        """Error of the last write of the file; None if it succeeded."""
        self._changed = threading.Condition()
        self._pending: deque[Operation] = deque()
        self._unknown: list[Operation] = []
        self._version, self._num_delivered, self._closed = 0, 0, False
        self._saving = threading.Lock()
        self._saved_version, self._saved_at = 0, 0.0
        self._has_file = self._read()
        self._wake = threading.Event()
        threading.Thread(target=self._deliver_all, name="raycap-outbox", daemon=True).start()

    def add(self, name: str, time_ms: int | None = None, **arguments: Any) -> None:
        """Append an operation. `time_ms` is the time of its event, by default now."""
        new = Operation(name, time.time_ns() // 1_000_000 if time_ms is None else time_ms, arguments)
        with self._changed:
            self._pending.append(new)
            self._version += 1
            self._changed.notify_all()

    def close(self, timeout_s: float, stall_timeout_s: float) -> int:
        """Wait until all operations are delivered, save the rest and stop the delivery thread.

        Waits at most `timeout_s` in total and at most `stall_timeout_s` for each operation. Returns the number of
        operations that are left.
        """
        deadline = time.monotonic() + timeout_s
        self._wake.set()  # ends a backoff, so that delivery is retried at once
        with self._changed:
            while self._pending:
                before = self._num_delivered
                left_s = min(stall_timeout_s, deadline - time.monotonic())
                if not self._changed.wait_for(lambda: self._num_delivered > before, left_s):  # noqa: B023
                    break
            self._closed = True
            self._changed.notify_all()
        self._wake.set()  # ends a backoff, so that the thread sees that the outbox is closed
        self._save()
        return len(self._pending)

    def _deliver_all(self) -> None:
        """Run the delivery thread: deliver operations in order, each until it succeeds or is rejected."""
        backoff_s = MIN_BACKOFF_S
        while operation := self._next():
            try:
                self._deliver(operation)
            except TrackingError as error:
                self.delivery_error = str(error)
                self._recipient.clear_cache()
                was_woken = self._back_off(backoff_s)
                backoff_s = MIN_BACKOFF_S if was_woken else min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            self.delivery_error, backoff_s = None, MIN_BACKOFF_S
            with self._changed:
                self._pending.popleft()
                self._version += 1
                self._num_delivered += 1
                self._changed.notify_all()
            # Without a file there is nothing to update. After a crash before the update, deliveries are repeated.
            if self._has_file and (not self._pending or time.monotonic() > self._saved_at + SAVE_INTERVAL_S):
                self._save()

    def _next(self) -> Operation | None:
        """Wait for a pending operation and return the first, or None once the outbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            return None if self._closed else self._pending[0]

    def _deliver(self, operation: Operation) -> None:
        """Deliver an operation. If it is rejected twice, record it in `refused`.

        A rejection may be due to outdated cached state, such as the id of a run that was deleted, so the second attempt is
        made without it.
        """
        try:
            self._recipient.deliver(operation)
        except TrackingError:
            raise
        except Exception:
            self._recipient.clear_cache()
            try:
                self._recipient.deliver(operation)
            except TrackingError:
                raise
            except Exception as error:  # of any type: one rejected operation must not block all later ones
                refusal = f"{operation.name} of {operation.trial_id or 'the sweep'}: {type(error).__name__}: {error}"
                self.refused.append(refusal.splitlines()[0])

    def _back_off(self, seconds: float) -> bool:
        """Wait before a retry and save new operations meanwhile. Returns whether `close` ended the wait early."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0 and not self._wake.is_set():
            self._save()
            self._wake.wait(min(left_s, SAVE_INTERVAL_S))
        was_woken = self._wake.is_set()
        self._wake.clear()
        return was_woken

    def _read(self) -> bool:
        """Add the operations in the file to the queue. Returns whether there is a readable file."""
        try:
            if not self._storage.exists(self._path):
                return False
            stored = OPERATIONS.validate_json(self._storage.read(self._path))
        except (OSError, ValidationError) as error:
            reason = describe_invalid(error) if isinstance(error, ValidationError) else error
            kept = f"it is kept as {self._path}.damaged, and stored results are logged again"
            self.read_error = f"{self._path} cannot be read: {reason}; {kept}"
            with suppress(OSError):
                self._storage.set_aside(self._path)
            return False
        # Operations of the sweep itself are dropped: the process that opens the outbox adds newer ones.
        for operation in stored:
            if operation.trial_id:
                (self._pending if operation.trial_id in self._known else self._unknown).append(operation)
        return True

    def _save(self) -> None:
        """Write the pending operations to the file, or delete it if there are none."""
        with self._saving:
            with self._changed:
                if self._version == self._saved_version:
                    return
                self._pending = deque(_without_superseded(self._pending))
                pending, version = [*self._unknown, *self._pending], self._version
            # The file is written without `_changed`, so that `add` never waits for the storage.
            try:
                if pending:
                    self._storage.write(self._path, json.dumps([vars(operation) for operation in pending]))
                elif self._has_file:
                    self._storage.delete(self._path)
                self._has_file, self._saved_version, self.write_error = bool(pending), version, None
            except OSError as error:
                self.write_error = f"{self._path} cannot be written: {error}; make the storage writable"
            self._saved_at = time.monotonic()


def _without_superseded(pending: Iterable[Operation]) -> list[Operation]:
    """Remove operations that a later one makes unnecessary, so that the queue stays short while MLflow is unavailable.

    These are evaluations of a trial before its `finish_trial`, which logs all evaluations that the run lacks, and all
    `log_sweep` operations but the last. The first operation is kept because it may be in delivery.
    """
    operations, kept = list(pending), list[Operation]()
    superseded: set[tuple[str, str | None]] = set()
    for operation in reversed(operations[1:]):
        if (operation.name, operation.trial_id) in superseded:
            continue
        kept.append(operation)
        if operation.name == "log_sweep":
            superseded.add(("log_sweep", None))
        if operation.name == "finish_trial":
            superseded.add(("log_evaluation", operation.trial_id))
    return [*operations[:1], *reversed(kept)]
