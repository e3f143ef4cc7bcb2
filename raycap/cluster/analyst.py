"""The capacity-analysis actor: takes measurements as they are made, keeps the capacity table, refits, redraws, logs.

What it writes is `analysis` applied to the stored results, so that `raycap report` gives the same files without Ray.
"""

import time
from dataclasses import dataclass

import ray

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.measurements import Curve, Floats, Losses, Measured
from raycap.analysis.readings import headline
from raycap.analysis.report import answer, files
from raycap.analysis.stored import read_stored
from raycap.analysis.summary import LAW_NUMBERS, summary, trial_entries
from raycap.cluster.tracking import Tracker
from raycap.losses import Part
from raycap.results import Evaluation, Failure, PlannedTrial, RunRecord, SweepRecord, TrialResult
from raycap.spec import Split
from raycap.storage import Storage

DRAWING_SHARE = 0.1
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
        """`open` comes next."""
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
        self._slots = slots
        self._stored = read_stored(self._sweep.trials, self._storage)
        self._tracker = Tracker(self._sweep, self._sweep.spec.tracking)
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
        evaluation = Evaluation.model_validate_json(evaluation_json)
        planned = self._planned[trial_id]
        losses = Losses.of(planned.spec, planned.populations, [evaluation])
        (metrics,) = self._metrics(planned, Curve.of([evaluation]), losses)
        self._tracker.log_evaluation(trial_id, evaluation.step, metrics)
        bits, speed = metrics["capacity/bits_per_param"], metrics["train/tokens_per_s"]
        loss = metrics[f"loss/{losses.kinds[-1]}_bits"]
        self._events.append(Event(trial_id, "evaluated", evaluation.exposures, loss, bits, speed))

    def record_result(self, result_json: str) -> None:
        """A trial finished: log it."""
        measured = Measured.of(TrialResult.model_validate_json(result_json))
        self._stored.measured[measured.trial_id] = measured
        self._log_result(measured)
        self._events.append(Event(measured.trial_id, "finished"))

    def refresh(self) -> None:
        """Refit the laws and redraw, unless that was done a moment ago. No trial waits for this."""
        if time.monotonic() < self._next_drawing:
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
        return answer(analysis)

    def _publish(self, run: RunRecord) -> Analysis:
        stored = self._stored
        analysis = analyse(self._sweep, run, stored.measured, stored.failures, stored.unreadable)
        contents = files(analysis)
        for name, content in contents.items():
            self._storage.write(f"{self._sweep.spec.name}/{name}", content)
        laws = summary(analysis)["laws"]
        metrics = {
            f"law/{scheme}/{selection}/{name}": value
            for scheme, by_selection in laws.items()
            for selection, law in by_selection.items()
            for name in LAW_NUMBERS
            if (value := law[name]) is not None
        }
        shown = {name: content for name, content in contents.items() if not name.endswith(".parquet")}
        shown["spec.yaml"] = self._sweep.spec_yaml.encode()
        shown["sweep.json"] = self._sweep.model_dump_json(indent=1).encode()
        self._tracker.log_sweep(len(stored.measured), metrics, description(analysis), shown)
        return analysis

    def _log_result(self, measured: Measured) -> None:
        planned = self._planned[measured.trial_id]
        metrics = self._metrics(planned, measured.curve, measured.losses)
        for step, at_step in zip(measured.curve.step.tolist(), metrics, strict=True):
            self._tracker.log_evaluation(measured.trial_id, step, at_step)
        self._tracker.finish_trial(measured.trial_id, {f"final/{name}": value for name, value in metrics[-1].items()})

    def _metrics(self, planned: PlannedTrial, curve: Curve, losses: Losses) -> list[dict[str, float]]:
        """Evaluations as MLflow metrics, capacities under the sweep's first scheme."""
        metrics: dict[str, Floats] = {
            "train/loss_bits": curve.train_loss_bits,
            "train/exposures": curve.exposures,
            "train/tokens": curve.tokens.astype(float),
            "train/tokens_per_s": curve.tokens / curve.train_seconds,
            "train/learning_rate": curve.learning_rate,
            "train/parameter_norm": curve.parameter_norm,
        }
        metrics |= loss_metrics(losses)
        analysis = self._sweep.spec.analysis
        first = headline(analysis)
        for capacity in capacities(losses, analysis):
            if capacity.subject != TOTAL or not capacity.is_headline(losses, analysis):
                continue
            if capacity.reading.scheme is not first.scheme:
                continue
            per_param = capacity.learned_bits / planned.parameters.total
            metrics[f"capacity/{capacity.reading.selection}_bits_per_param"] = per_param
            if capacity.reading == first:
                metrics["capacity/learned_bits"] = capacity.learned_bits
                metrics["capacity/bits_per_param"] = per_param
                non_embedding = capacity.learned_bits / planned.parameters.non_embedding
                metrics["capacity/bits_per_non_embedding_param"] = non_embedding
        names = list(metrics)
        return [dict(zip(names, map(float, values), strict=True)) for values in zip(*metrics.values(), strict=True)]


def loss_metrics(losses: Losses) -> dict[str, Floats]:
    """Mean losses by kind and subject; chains of thought, held-out splits and the second population by themselves."""
    metrics = {}
    for number, about in enumerate(("", "second_")[: len(losses.populations)]):
        for kind in losses.kinds:
            metrics[f"loss/{about}{kind}_bits"] = losses.mean_bits(losses.columns(kind, population=number))
            for subject in losses.subjects(kind, number):
                columns = losses.columns(kind, population=number, subject=subject)
                metrics[f"loss_{about}{kind}/{subject}_bits"] = losses.mean_bits(columns)
            chain = losses.columns(kind, population=number, part=Part.CHAIN)
            if chain:
                metrics[f"loss/{about}{kind}_chain_bits"] = losses.mean_bits(chain)
            for split in Split:
                held_out = losses.columns(kind, population=number, split=split)
                if held_out and split is not Split.TRAIN:
                    metrics[f"held_out_{about}{kind}/{split}_bits"] = losses.mean_bits(held_out)
    return metrics


# On the head, where a sqlite database is, and where nobody preempts it.
AnalystActor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(Analyst)


def description(analysis: Analysis) -> str:
    """The parent run's description in Markdown: question, law, table of trials."""
    scheme, selection = analysis.headline
    lines = [
        f"**{analysis.sweep.question}**" if analysis.sweep.question else f"**{analysis.sweep.spec.name}**",
        "",
        answer(analysis),
        "",
        f"| trial | parameters | learned bits ({selection}) | bits/param | state |",
        "|---|---:|---:|---:|---|",
    ]
    for trial in trial_entries(analysis):
        bits = ("", "")
        if trial["state"] == "finished":
            values = [trial[column][str(scheme)][str(selection)] for column in ("learned_bits", "bits_per_param")]
            bits = (f"{values[0]:,.0f}", f"{values[1]:.3f}")
        lines.append(f"| {trial['label']} | {trial['num_params']:,} | {bits[0]} | {bits[1]} | {trial['state']} |")
    return "\n".join([*lines, "", "Figures: `capacity.png`, `exposures.png`, `subjects.png` and `report.html` below."])
