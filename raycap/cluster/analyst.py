"""The capacity-analysis actor: takes measurements as they are made, keeps the capacity table, refits, redraws, logs.

What it writes is `analysis` applied to the stored results, so that `raycap report` gives the same files without Ray.
The session imports this module before anything else runs, so what only the analyst needs is imported in it.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from raycap.results import Evaluation, Failure, RunRecord, SweepRecord, TrialResult
from raycap.storage import Storage

if TYPE_CHECKING:
    from raycap.analysis.analyse import Analysis
    from raycap.analysis.measurements import Measured

DRAWING_SHARE = 0.03
"""At most this share of the time goes into redrawing while trials still run."""


@dataclass(frozen=True)
class Event:
    """Something a trial did: started, evaluated, finished or failed. Numbers belong to evaluations."""

    trial_id: str
    what: str
    exposures: float = 0.0
    loss_bits: float = 0.0
    bits_per_param: float = 0.0
    tokens_per_s: float = 0.0


class Analyst:
    """One per sweep; a Ray actor (AnalystActor) while trials run, a plain object where none has to."""

    def __init__(self, sweep_json: str) -> None:
        """`open` comes next. Loading MLflow takes seconds, in which the session goes on."""
        from raycap.cluster import tracking

        self._tracking = tracking
        self._sweep = SweepRecord.model_validate_json(sweep_json)
        self._planned = {trial.trial_id: trial for trial in self._sweep.trials}
        self._storage = Storage.at(self._sweep.spec.storage)
        self._began, self._slots = time.monotonic(), 1
        self._next_drawing = 0.0
        self._events: list[Event] = []

    def open(self, slots: int) -> None:
        """Read what finished or failed before, and make or find MLflow's experiment and runs, before trials begin, `slots`
        at once.

        Raises TrackingError if MLflow cannot be used. (Not done on construction: an actor that fails there dies without
        saying why.)
        """
        from raycap.analysis.stored import read_stored

        self._slots = slots
        self._stored = read_stored(self._sweep.trials, self._storage)
        self._tracker = self._tracking.Tracker(self._sweep, self._sweep.spec.tracking)
        if not self._storage.exists(f"{self._sweep.spec.name}/run.json"):  # whatever happens, `raycap report` works
            self._storage.write(f"{self._sweep.spec.name}/run.json", self._run_so_far().model_dump_json())
        for measured in self._stored.measured.values():
            if not self._tracker.is_finished(measured.trial_id):
                self._log_result(measured)

    def start_trial(self, trial_id: str, afresh: bool) -> None:
        """A trial is placed; `afresh` if there is no checkpoint that it goes on from."""
        self._tracker.start_trial(trial_id, afresh=afresh)
        self._stored.failures.pop(trial_id, None)
        self._events.append(Event(trial_id, "started"))

    def events(self, since: int) -> list[Event]:
        """What has happened after the first `since` events."""
        return self._events[since:]

    def record_evaluation(self, trial_id: str, evaluation_json: str) -> None:
        """A trial was evaluated: log its losses and capacities."""
        from raycap.analysis.measurements import Curve, Losses

        evaluation = Evaluation.model_validate_json(evaluation_json)
        planned = self._planned[trial_id]
        losses = Losses.of(planned.spec, planned.populations, [evaluation])
        (metrics,) = self._tracking.trial_metrics(planned, self._sweep.spec.analysis, Curve.of([evaluation]), losses)
        self._tracker.log_evaluation(trial_id, evaluation.step, metrics)
        bits, speed = metrics["capacity/bits_per_param"], metrics["train/tokens_per_s"]
        loss = metrics[f"loss/{losses.kinds[-1]}_bits"]
        self._events.append(Event(trial_id, "evaluated", evaluation.exposures, loss, bits, speed))

    def record_result(self, result_json: str) -> None:
        """A trial finished: log it."""
        from raycap.analysis.measurements import Measured

        measured = Measured.of(TrialResult.model_validate_json(result_json))
        self._stored.measured[measured.trial_id] = measured
        self._log_result(measured)
        self._events.append(Event(measured.trial_id, "finished"))

    def refresh(self) -> None:
        """Refit the laws and redraw, unless that was done a moment ago, or will be when the sweep is concluded. No trial
        waits for this.
        """
        stored = self._stored
        over = len(stored.measured) + len(stored.failures) + len(stored.unreadable) == len(self._planned)
        if over or time.monotonic() < self._next_drawing:
            return
        began = time.monotonic()
        self._publish(self._run_so_far())
        self._next_drawing = time.monotonic() + (time.monotonic() - began) / DRAWING_SHARE

    def _run_so_far(self) -> RunRecord:
        return RunRecord(wall_seconds=time.monotonic() - self._began, slots=self._slots)

    def record_failure(self, failure_json: str) -> None:
        """A trial failed."""
        failure = Failure.model_validate_json(failure_json)
        self._stored.failures[failure.trial_id] = failure
        self._tracker.fail_trial(failure.trial_id, failure.cause)
        self._events.append(Event(failure.trial_id, "failed"))

    def conclude(self, run_json: str, status: str) -> str:
        """The sweep is over: write everything once more. Returns the law as a sentence."""
        run = RunRecord.model_validate_json(run_json)
        self._storage.write(f"{self._sweep.spec.name}/run.json", run_json)
        analysis = self._publish(run)
        self._tracker.close(status)
        from raycap.analysis.report import answer

        return answer(analysis)

    def _publish(self, run: RunRecord) -> "Analysis":
        from raycap.analysis.analyse import analyse
        from raycap.analysis.report import files

        stored = self._stored
        analysis = analyse(self._sweep, run, stored.measured, stored.failures, stored.unreadable)
        contents = files(analysis)
        for name, content in contents.items():
            self._storage.write(f"{self._sweep.spec.name}/{name}", content)
        shown = {name: content for name, content in contents.items() if not name.endswith(".parquet")}
        shown["spec.yaml"] = self._sweep.spec_yaml.encode()
        shown["sweep.json"] = self._sweep.model_dump_json(indent=1).encode()
        self._tracker.log_sweep(
            len(stored.measured), self._tracking.law_metrics(analysis), self._tracking.description(analysis), shown
        )
        return analysis

    def _log_result(self, measured: "Measured") -> None:
        planned, analysis = self._planned[measured.trial_id], self._sweep.spec.analysis
        metrics = self._tracking.trial_metrics(planned, analysis, measured.curve, measured.losses)
        for step, at_step in zip(measured.curve.step.tolist(), metrics, strict=True):
            self._tracker.log_evaluation(measured.trial_id, step, at_step)
        self._tracker.finish_trial(measured.trial_id, {f"final/{name}": value for name, value in metrics[-1].items()})


# On the head, where a sqlite database is, and where nobody preempts it.
AnalystActor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(Analyst)
