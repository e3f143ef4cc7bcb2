"""The analyst, a Ray actor that collects results while trials run, refits the laws, redraws figures and logs to MLflow.

The files it writes are the output of `raycap.analysis` for the stored results, so `raycap report` writes the same files
without Ray. Calls from trials never block on MLflow, because records go through an outbox with a delivery thread, nor on
figures, which are drawn in another thread. The session imports this module before it does anything else; modules that only
the actor needs are therefore imported inside its methods.
"""

import math
import shlex
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from raycap.errors import LeaseLostError, TrackingError
from raycap.results import Evaluation, Failure, RunRecord, SweepRecord, TrialResult
from raycap.storage import Storage, failure_path, result_path
from raycap.storage.lock import LeaseId, guarded
from raycap.storage.progress import Event, ProgressFile
from raycap.storage.retries import advice
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis
    from raycap.tracking.outbox import Operation
    from raycap.tracking.tracker import Tracker

DRAWING_SHARE = 0.03
"""Maximum share of the time that is spent on redrawing figures while trials run."""
DELIVERY_TIMEOUT_S, INTERRUPTED_DELIVERY_TIMEOUT_S = 10.0, 2.0
"""Time that the end of a sweep, and of an interrupted sweep, waits for MLflow."""
STALL_TIMEOUT_S = 20.0
"""Time that the end of a sweep and `sync` wait for the delivery of one record."""

MAX_RESTARTS = 5
"""Number of times that the analyst's process is restarted. After that, the session closes the sweep without it."""


@dataclass(frozen=True)
class Delivery:
    """State of the records for MLflow at the end of a sweep."""

    num_points: int
    """Number of metric points logged."""
    undelivered: int
    """Number of operations left in the outbox."""
    problems: tuple[str, ...]
    """Messages for the user: what could not be delivered, written or read, and what to do. One line each."""


class Analyst:
    """Collects, analyses and logs the results of one sweep.

    It is a Ray actor (`AnalystActor`) while trials run, and a plain object where no trial has to run.
    """

    def __init__(self, sweep_json: str, lease: LeaseId | None = None) -> None:
        """Load MLflow, which takes seconds; call `open` before any other method.

        Once `lease`, the lock of the sweep, is lost, nothing is written to the storage any more, and nothing to MLflow
        either if another process has taken over the lock.
        """
        from raycap.tracking.environment import configure_mlflow

        configure_mlflow()
        from raycap.tracking import tracker

        self._tracking = tracker
        self._sweep = SweepRecord.model_validate_json(sweep_json)
        self._planned = {trial.trial_id: trial for trial in self._sweep.trials}
        self._storage = guarded(Storage.at(self._sweep.storage), lease)
        self._folder = SweepFolder(self._storage, self._sweep.spec.name)
        self._began, self._slots = time.monotonic(), 1
        self._next_drawing, self._drawing = 0.0, threading.Thread()
        self._id = uuid.uuid4().hex
        self._events: list[Event] = []
        self._progress = ProgressFile(self._storage, self._sweep.spec.name)
        self._undelivered, self._unwritten = 0, ""

    def open(self, slots: int) -> None:
        """Read the results and failures of earlier runs, and find or create MLflow's experiment and runs.

        `slots` is the number of trials that run at once. Records of earlier runs that MLflow lacks are delivered in the
        background. This is not part of the constructor, because Ray does not report the cause when a constructor raises.

        Raises:
            TrackingError: MLflow cannot be used.
        """
        from raycap.analysis.stored import read_stored
        from raycap.tracking.outbox import Outbox

        self._slots = slots
        self._progress.close()  # remove the file that a killed run left behind
        self._stored = read_stored(self._sweep.trials, self._storage)
        self._tracker = self._tracking.Tracker(self._sweep, self._stored.measured)
        known = {trial_id: self._tracker.status(trial_id) for trial_id in self._planned}
        recipient = _WhileLeased(self._tracker, self._storage)
        self._outbox = Outbox(self._storage, self._folder.path(SweepFolder.OUTBOX), recipient, self._planned)
        if not self._folder.exists(SweepFolder.RUN):  # `raycap report` needs it, even after a crash
            self._write(SweepFolder.RUN, self._run_so_far().model_dump_json())
        for trial_id in self._stored.measured:
            if known[trial_id] != "FINISHED":
                self._outbox.add("finish_trial", self._written_ms(result_path(trial_id)), trial_id=trial_id)
        for trial_id, failure in self._stored.failures.items():
            if known[trial_id] != "FAILED":
                when_ms = self._written_ms(failure_path(trial_id))
                self._outbox.add("fail_trial", when_ms, trial_id=trial_id, cause=failure.cause)

    def start_trial(self, trial_id: str, afresh: bool) -> None:
        """Record that the workers of a trial run; `afresh` if it has no checkpoint to resume from."""
        self._outbox.add("start_trial", trial_id=trial_id, afresh=afresh)
        self._stored.failures.pop(trial_id, None)
        self._add_event(Event(trial_id, "started", time.time()))

    def events(self, of: str, since: int) -> tuple[str, list[Event]]:
        """Return the events after the first `since` ones, and an id of this object.

        `of` is the id that the caller has received before; if it differs, Ray has restarted the analyst, which then returns
        all its events.
        """
        self._progress.flush()  # callers poll this method, so progress.json is written regularly
        return self._id, self._events[since if of == self._id else 0 :]

    def record_evaluation(self, trial_id: str, evaluation_json: str) -> None:
        """Log the losses and capacities of one evaluation of a trial."""
        from raycap.analysis.measurements import Curve, Losses
        from raycap.tracking.metrics import trial_metrics

        evaluation = Evaluation.model_validate_json(evaluation_json)
        planned = self._planned[trial_id]
        losses = Losses.of(planned.spec, planned.populations, [evaluation])
        (metrics,) = trial_metrics(planned, self._sweep.spec.analysis, Curve.of([evaluation]), losses)
        self._outbox.add("log_evaluation", trial_id=trial_id, step=evaluation.step, metrics=metrics)
        bits, speed = metrics["capacity/bits_per_param"], metrics["train/tokens_per_s"]
        loss = metrics[f"loss/{losses.kinds[-1]}_bits"]
        step, exposures = evaluation.step, evaluation.exposures
        self._add_event(Event(trial_id, "evaluated", time.time(), step, exposures, loss, bits, speed))

    def record_result(self, result_json: str) -> None:
        """Log that a trial finished; its result is already stored."""
        from raycap.analysis.measurements import Measured

        measured = Measured.of(TrialResult.model_validate_json(result_json))
        self._stored.measured[measured.trial_id] = measured
        when_ms = self._written_ms(result_path(measured.trial_id))
        self._outbox.add("finish_trial", when_ms, trial_id=measured.trial_id)
        self._add_event(Event(measured.trial_id, "finished", time.time()))

    def refresh(self) -> None:
        """Refit the laws and redraw the report in a background thread.

        Does nothing while a drawing is in progress or took place recently (see `DRAWING_SHARE`), or once every trial has
        ended, because `conclude` then draws the report.
        """
        stored = self._stored
        all_ended = len(stored.measured) + len(stored.failures) + len(stored.unreadable) == len(self._planned)
        if all_ended or self._drawing.is_alive() or time.monotonic() < self._next_drawing:
            return

        def draw(run: RunRecord) -> None:
            began = time.monotonic()
            self._publish(run)
            self._next_drawing = time.monotonic() + (time.monotonic() - began) / DRAWING_SHARE

        self._drawing = threading.Thread(target=draw, args=[self._run_so_far()], name="raycap-drawing", daemon=True)
        self._drawing.start()

    def _run_so_far(self) -> RunRecord:
        return RunRecord(wall_seconds=time.monotonic() - self._began, slots=self._slots)

    def record_failure(self, failure_json: str) -> None:
        """Log the failure of a trial."""
        failure = Failure.model_validate_json(failure_json)
        self._stored.failures[failure.trial_id] = failure
        self._outbox.add("fail_trial", trial_id=failure.trial_id, cause=failure.cause)
        self._add_event(Event(failure.trial_id, "failed", time.time()))

    def conclude(self, run_json: str, status: str, timeout_s: float = DELIVERY_TIMEOUT_S) -> str:
        """Write all files of the sweep for the last time and close MLflow's runs; return the law as a sentence.

        `status` is the status of MLflow's parent run. Waits for MLflow for at most `timeout_s` seconds.
        """
        from raycap.analysis.answer import answer

        if self._drawing.is_alive():
            self._drawing.join()
        self._unwritten = ""
        self._write(SweepFolder.RUN, run_json)
        analysis = self._publish(RunRecord.model_validate_json(run_json))
        self._close(status, timeout_s)
        return answer(analysis)

    def interrupt(self, run_json: str) -> None:
        """Close MLflow's runs of an interrupted sweep: running trials become KILLED. Draws no figures."""
        self._unwritten = ""
        self._write(SweepFolder.RUN, run_json)
        self._close("KILLED", INTERRUPTED_DELIVERY_TIMEOUT_S)

    def status(self) -> str:
        """Return MLflow's run status for the sweep, given the stored results."""
        done = len(self._stored.measured) + len(self._stored.unreadable)
        if done + len(self._stored.failures) < len(self._planned):
            return "KILLED"
        return "FINISHED" if done == len(self._planned) else "FAILED"

    def delivery(self) -> Delivery:
        """Return which records reached MLflow. Call it after `conclude` or `interrupt`."""
        outbox, folder = self._outbox, shlex.quote(self._folder.location)
        problems = [self._unwritten, outbox.read_error, outbox.write_error]
        if self._undelivered:
            fate = (
                "could not be kept"
                if outbox.write_error
                else f"wait in {self._storage.location(self._folder.path(SweepFolder.OUTBOX))}"
            )
            cause = f" ({outbox.delivery_error})" if outbox.delivery_error else ""
            problems.append(
                f"{self._undelivered:,} records for MLflow {fate}{cause}. To deliver what is stored: raycap sync {folder}"
            )
        if outbox.refused:
            problems.append(
                f"MLflow refused {len(outbox.refused):,} records, the first: {outbox.refused[0]}. "
                f"When the cause is removed, log the stored results again: raycap sync {folder}"
            )
        return Delivery(self._tracker.num_points, self._undelivered, tuple(filter(None, problems)))

    def _add_event(self, event: Event) -> None:
        self._events.append(event)
        self._progress.add(event)

    def _close(self, status: str, timeout_s: float) -> None:
        self._progress.close()
        self._outbox.add("close", status=status)
        self._undelivered = self._outbox.close(timeout_s, STALL_TIMEOUT_S)

    def _publish(self, run: RunRecord) -> "Analysis":
        from raycap.analysis.analyse import analyse
        from raycap.analysis.answer import answer
        from raycap.analysis.report import files
        from raycap.tracking.metrics import description, law_metrics

        stored = self._stored
        # Copies: other calls may add results while this thread draws.
        measured, failures = dict(stored.measured), dict(stored.failures)
        analysis = analyse(self._sweep, run, measured, failures, stored.unreadable)
        written = [name for name, content in files(analysis) if self._write(name, content)]
        self._outbox.add(
            "log_sweep",
            num_finished=len(measured),
            metrics=law_metrics(analysis),
            answer=answer(analysis),
            description=description(analysis),
            files=[SweepFolder.SWEEP, *(name for name in written if not name.endswith(".parquet"))],
        )
        return analysis

    def _write(self, name: str, content: str | bytes) -> bool:
        """Write a file into the sweep's folder; return whether the storage accepted it. `delivery` reports failures."""
        if self._unwritten:  # a write has failed: do not wait for the storage again for each of the other files
            return False
        try:
            self._folder.write(name, content)
        except OSError as error:
            self._unwritten = f"{name} could not be written: {error}; {advice(error)}"
            return False
        return True

    def _written_ms(self, path: str) -> int:
        """Return the modification time of a file, in ms since the epoch.

        Records get this time, which does not depend on when they are logged, so logging them again creates no duplicates.
        """
        modified_ns = None
        with suppress(OSError):
            modified_ns = self._storage.modified_ns(path)
        return (modified_ns or time.time_ns()) // 1_000_000


class _WhileLeased:
    """Forwards operations to MLflow unless another process has taken over the lock of the sweep.

    The other process logs the stored results itself.
    """

    def __init__(self, tracker: "Tracker", storage: Storage) -> None:
        self._tracker, self._storage = tracker, storage
        self.clear_cache = tracker.clear_cache

    def deliver(self, operation: "Operation") -> None:
        """Deliver an operation. Raises TrackingError if the lock was taken over."""
        try:
            self._storage.guard()
        except LeaseLostError as error:
            if error.was_taken:
                raise TrackingError(str(error)) from None
        self._tracker.deliver(operation)


def sync_sweep(sweep: SweepRecord, lease: LeaseId | None = None) -> Delivery:
    """Deliver to MLflow the stored results that it lacks and the contents of the outbox. Needs no Ray.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    analyst = Analyst(sweep.model_dump_json(), lease)
    folder = SweepFolder(Storage.at(sweep.storage), sweep.spec.name)
    analyst.open(folder.read_run().slots)
    analyst.conclude(folder.read(SweepFolder.RUN).decode(), analyst.status(), timeout_s=math.inf)
    return analyst.delivery()


class _RestartableAnalyst(Analyst):
    """An analyst that restores its state from the storage and MLflow after its process has died."""

    def __init__(self, sweep_json: str, lease: LeaseId | None = None) -> None:
        super().__init__(sweep_json, lease)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.open(self._folder.read_run().slots)


# The actor runs on the head node, because an SQLite database is a file of that node and the head is not preempted. Ray
# repeats calls that a dead process has not answered; this is safe because operations on MLflow are idempotent.
AnalystActor: Any = ray.remote(
    num_cpus=0, resources={"node:__internal_head__": 0.001}, max_restarts=MAX_RESTARTS, max_task_retries=-1
)(_RestartableAnalyst)
