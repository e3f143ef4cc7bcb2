"""The capacity-analysis actor: takes measurements as they are made, keeps the capacity table, refits, redraws, logs.

What it writes is `analysis` applied to the stored results, so that `raycap report` gives the same files without Ray.
Nobody waits for MLflow: what it is to be told goes through an outbox. Nobody waits for drawing either, which has its thread.
The session imports this module before anything else runs, so what only the analyst needs is imported in it.
"""

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from raycap.results import Evaluation, Failure, RunRecord, SweepRecord, TrialResult
from raycap.storage import Storage, failure_path, result_path
from raycap.storage.progress import Event, ProgressFile
from raycap.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis

DRAWING_SHARE = 0.03
"""At most this share of the time goes into redrawing while trials still run."""
CLUSTER_TIMEOUT_S, INTERRUPTED_TIMEOUT_S, STALL_S = 10.0, 2.0, 20.0
"""How long the end of a sweep waits for MLflow, and of one that was interrupted; how long `sync` waits for one answer."""


@dataclass(frozen=True)
class Delivery:
    """What has become of all that MLflow was to be told."""

    num_points: int
    """Metric points logged."""
    undelivered: int
    """Operations that wait in the outbox's file."""
    problems: tuple[str, ...]
    """What could not be delivered, written or read, and what to do, a line each; for people."""


class Analyst:
    """One per sweep; a Ray actor (AnalystActor) while trials run, a plain object where none has to."""

    def __init__(self, sweep_json: str) -> None:
        """`open` comes next. Loading MLflow takes seconds, in which the session goes on."""
        from raycap.tracking import tracker

        self._tracking = tracker
        self._sweep = SweepRecord.model_validate_json(sweep_json)
        self._planned = {trial.trial_id: trial for trial in self._sweep.trials}
        self._storage = Storage.at(self._sweep.spec.storage)
        self._folder = SweepFolder(self._storage, self._sweep.spec.name)
        self._began, self._slots = time.monotonic(), 1
        self._next_drawing, self._drawing = 0.0, threading.Thread()
        self._events: list[Event] = []
        self._progress = ProgressFile(self._storage, self._sweep.spec.name)
        self._undelivered, self._unwritten = 0, ""

    def open(self, slots: int) -> None:
        """Read what finished or failed before, and make or find MLflow's experiment and runs, before trials begin, `slots`
        at once. What MLflow lacks of it follows in the background.

        Raises TrackingError if MLflow cannot be used. (Not done on construction: an actor that fails there dies without
        saying why.)
        """
        from raycap.analysis.stored import read_stored
        from raycap.tracking.outbox import Outbox

        self._slots = slots
        self._progress.close()  # one of a run that was killed
        self._stored = read_stored(self._sweep.trials, self._storage)
        self._tracker = self._tracking.Tracker(self._sweep, self._sweep.spec.tracking, self._stored.measured)
        known = {trial_id: self._tracker.status(trial_id) for trial_id in self._planned}
        self._outbox = Outbox(self._storage, self._folder.path(SweepFolder.OUTBOX), self._tracker, self._planned)
        if not self._folder.exists(SweepFolder.RUN):  # whatever happens, `raycap report` works
            self._write(SweepFolder.RUN, self._run_so_far().model_dump_json())
        for trial_id in self._stored.measured:
            if known[trial_id] != "FINISHED":
                self._outbox.add("finish_trial", self._written_ms(result_path(trial_id)), trial_id=trial_id)
        for trial_id, failure in self._stored.failures.items():
            if known[trial_id] != "FAILED":
                when_ms = self._written_ms(failure_path(trial_id))
                self._outbox.add("fail_trial", when_ms, trial_id=trial_id, cause=failure.cause)

    def start_trial(self, trial_id: str, afresh: bool) -> None:
        """A trial is placed; `afresh` if there is no checkpoint that it goes on from."""
        self._outbox.add("start_trial", trial_id=trial_id, afresh=afresh)
        self._stored.failures.pop(trial_id, None)
        self._tell(Event(trial_id, "started", time.time()))

    def events(self, since: int) -> list[Event]:
        """What has happened after the first `since` events. Asked often, which is when progress.json is written too."""
        self._progress.flush()
        return self._events[since:]

    def record_evaluation(self, trial_id: str, evaluation_json: str) -> None:
        """A trial was evaluated: log its losses and capacities."""
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
        self._tell(Event(trial_id, "evaluated", time.time(), step, exposures, loss, bits, speed))

    def record_result(self, result_json: str) -> None:
        """A trial finished, and its result is stored: log it."""
        from raycap.analysis.measurements import Measured

        measured = Measured.of(TrialResult.model_validate_json(result_json))
        self._stored.measured[measured.trial_id] = measured
        when_ms = self._written_ms(result_path(measured.trial_id))
        self._outbox.add("finish_trial", when_ms, trial_id=measured.trial_id)
        self._tell(Event(measured.trial_id, "finished", time.time()))

    def refresh(self) -> None:
        """Refit the laws and redraw in the background, unless that was done a moment ago, or will be when the sweep is
        concluded.
        """
        stored = self._stored
        over = len(stored.measured) + len(stored.failures) + len(stored.unreadable) == len(self._planned)
        if over or self._drawing.is_alive() or time.monotonic() < self._next_drawing:
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
        """A trial failed."""
        failure = Failure.model_validate_json(failure_json)
        self._stored.failures[failure.trial_id] = failure
        self._outbox.add("fail_trial", trial_id=failure.trial_id, cause=failure.cause)
        self._tell(Event(failure.trial_id, "failed", time.time()))

    def conclude(self, run_json: str, status: str, patience_s: float = CLUSTER_TIMEOUT_S) -> str:
        """The sweep is over: write everything once more, and wait for MLflow at most `patience_s`. Returns the law as a
        sentence.
        """
        from raycap.analysis.report import answer

        if self._drawing.is_alive():
            self._drawing.join()
        self._unwritten = ""
        self._write(SweepFolder.RUN, run_json)
        analysis = self._publish(RunRecord.model_validate_json(run_json))
        self._close(status, patience_s)
        return answer(analysis)

    def interrupt(self, run_json: str) -> None:
        """The sweep is broken off: mark what was running KILLED, and draw nothing."""
        self._unwritten = ""
        self._write(SweepFolder.RUN, run_json)
        self._close("KILLED", INTERRUPTED_TIMEOUT_S)

    def status(self) -> str:
        """MLflow's word for how far the sweep has come, by what is stored."""
        done = len(self._stored.measured) + len(self._stored.unreadable)
        if done + len(self._stored.failures) < len(self._planned):
            return "KILLED"
        return "FINISHED" if done == len(self._planned) else "FAILED"

    def delivery(self) -> Delivery:
        """What has become of all that MLflow was to be told, after the end."""
        outbox, folder = self._outbox, f"{self._sweep.spec.storage}/{self._sweep.spec.name}"
        problems = [self._unwritten, outbox.unread, outbox.unsaved]
        if self._undelivered:
            what = "could not be kept" if outbox.unsaved else f"wait in {folder}/{SweepFolder.OUTBOX}"
            why = f" ({outbox.trouble})" if outbox.trouble else ""
            problems.append(
                f"{self._undelivered:,} records for MLflow {what}{why}. To deliver what is stored: raycap sync {folder}"
            )
        if outbox.refused:
            problems.append(
                f"MLflow refused {len(outbox.refused):,} records, the first: {outbox.refused[0]}. "
                f"To log what is stored once more: raycap sync {folder}"
            )
        return Delivery(self._tracker.num_points, self._undelivered, tuple(filter(None, problems)))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._progress.add(event)

    def _close(self, status: str, patience_s: float) -> None:
        self._progress.close()
        self._outbox.add("close", status=status)
        self._undelivered = self._outbox.close(patience_s, STALL_S)

    def _publish(self, run: RunRecord) -> "Analysis":
        from raycap.analysis.analyse import analyse
        from raycap.analysis.report import files
        from raycap.tracking.metrics import description, law_metrics

        stored = self._stored
        measured, failures = dict(stored.measured), dict(stored.failures)  # trials go on while this is drawn
        analysis = analyse(self._sweep, run, measured, failures, stored.unreadable)
        written = [name for name, content in files(analysis).items() if self._write(name, content)]
        self._outbox.add(
            "log_sweep",
            num_finished=len(measured),
            metrics=law_metrics(analysis),
            description=description(analysis),
            files=[SweepFolder.SWEEP, *(name for name in written if not name.endswith(".parquet"))],
        )
        return analysis

    def _write(self, name: str, content: str | bytes) -> bool:
        """Write a file of the sweep's folder, if the storage takes it. If it does not, that is told at the end."""
        try:
            self._folder.write(name, content)
        except OSError as error:
            self._unwritten = self._unwritten or f"{name} could not be written: {error}"
            return False
        return True

    def _written_ms(self, path: str) -> int:
        """When a file was written, in ms since the epoch: whoever asks, and how often, it is the same."""
        info = self._storage.filesystem.get_file_info(self._storage.path(path))
        return (info.mtime_ns or time.time_ns()) // 1_000_000


def sync(sweep: SweepRecord) -> Delivery:
    """Tell MLflow what it lacks of a sweep that has run: all that is stored, and what waits in its outbox. Without Ray.

    Raises TrackingError if MLflow cannot be used.
    """
    analyst = Analyst(sweep.model_dump_json())
    folder = SweepFolder(Storage.at(sweep.spec.storage), sweep.spec.name)
    analyst.open(folder.read_run().slots)
    analyst.conclude(folder.read(SweepFolder.RUN).decode(), analyst.status(), patience_s=math.inf)
    return analyst.delivery()


# On the head, where a sqlite database is, and where nobody preempts it.
AnalystActor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(Analyst)
