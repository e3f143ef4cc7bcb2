"""The capacity-analysis actor: takes measurements as they are made, keeps the capacity table, refits, redraws, logs.

What it writes is `analysis` applied to the stored results, so that `raycap report` gives the same files without Ray.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.report import answer, files
from raycap.analysis.summary import Analysis, analyse, summary
from raycap.cluster.tracking import Tracker
from raycap.losses import LossTable, Part
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

    def __init__(
        self, sweep_json: str, storage_location: str, results_json: list[str], failures_json: list[str]
    ) -> None:
        """Starts from the trials that finished or failed before; `open` comes next."""
        self._sweep = SweepRecord.model_validate_json(sweep_json)
        self._planned = {trial.trial_id: trial for trial in self._sweep.trials}
        self._storage = Storage.at(storage_location)
        self._results = {r.trial_id: r for r in map(TrialResult.model_validate_json, results_json)}
        self._failures = {f.trial_id: f for f in map(Failure.model_validate_json, failures_json)}
        self._began, self._slots = time.monotonic(), 1
        self._next_drawing = 0.0
        self._events: list[Event] = []

    def open(self, slots: int) -> None:
        """Make or find MLflow's experiment and runs, before trials begin, `slots` at once.

        Raises TrackingError if MLflow cannot be used. (Not done on construction: an actor that fails there dies without
        saying why.)
        """
        self._slots = slots
        self._tracker = Tracker(self._sweep, self._sweep.spec.tracking)
        if not self._storage.exists(f"{self._sweep.spec.name}/run.json"):  # whatever happens, `raycap report` works
            self._storage.write(f"{self._sweep.spec.name}/run.json", self._run_so_far().model_dump_json())
        for result in self._results.values():
            if not self._tracker.is_finished(result.trial_id):
                self._log_result(result)

    def start_trial(self, trial_id: str, afresh: bool) -> None:
        """A trial is placed; `afresh` if there is no checkpoint that it goes on from."""
        self._tracker.start_trial(trial_id, afresh=afresh)
        self._failures.pop(trial_id, None)
        self._events.append(Event(trial_id, "started"))

    def events(self, since: int) -> list[Event]:
        """What has happened after the first `since` events."""
        return self._events[since:]

    def record_evaluation(self, trial_id: str, evaluation_json: str) -> None:
        """A trial was evaluated: log its losses and capacities."""
        evaluation = Evaluation.model_validate_json(evaluation_json)
        metrics = self._metrics(self._planned[trial_id], evaluation)
        self._tracker.log_evaluation(trial_id, evaluation.step, metrics)
        bits, speed = metrics["capacity/bits_per_param"], metrics["train/tokens_per_s"]
        loss = evaluation.losses.select(evaluation.losses.kinds[-1]).mean_bits
        self._events.append(Event(trial_id, "evaluated", evaluation.exposures, loss, bits, speed))

    def record_result(self, result_json: str) -> None:
        """A trial finished: log it."""
        result = TrialResult.model_validate_json(result_json)
        self._results[result.trial_id] = result
        self._log_result(result)
        self._events.append(Event(result.trial_id, "finished"))

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
        self._failures[failure.trial_id] = failure
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
        analysis = analyse(self._sweep, run, self._results, self._failures)
        contents = files(analysis)
        for name, content in contents.items():
            self._storage.write(f"{self._sweep.spec.name}/{name}", content)
        laws = summary(analysis)["laws"]
        metrics = {
            f"law/{scheme}/{selection}/{name}": value
            for scheme, by_selection in laws.items()
            for selection, law in by_selection.items()
            for name in ("alpha", "low", "high", "gamma", "num_trials")
            if (value := law[name]) is not None
        }
        shown = {name: content for name, content in contents.items() if not name.endswith(".parquet")}
        shown["spec.yaml"] = self._sweep.spec_yaml.encode()
        shown["sweep.json"] = self._sweep.model_dump_json(indent=1).encode()
        self._tracker.log_sweep(len(self._results), metrics, description(analysis), shown)
        return analysis

    def _log_result(self, result: TrialResult) -> None:
        planned = self._planned[result.trial_id]
        for evaluation in result.evaluations:
            self._tracker.log_evaluation(result.trial_id, evaluation.step, self._metrics(planned, evaluation))
        final = self._metrics(planned, result.final)
        self._tracker.finish_trial(result.trial_id, {f"final/{name}": value for name, value in final.items()})

    def _metrics(self, planned: PlannedTrial, evaluation: Evaluation) -> Mapping[str, float]:
        """One evaluation as MLflow metrics, capacities under the sweep's first scheme."""
        metrics = {
            "train/loss_bits": evaluation.train_loss_bits,
            "train/exposures": evaluation.exposures,
            "train/tokens": evaluation.tokens,
            "train/tokens_per_s": evaluation.tokens / evaluation.train_seconds,
            "train/learning_rate": evaluation.learning_rate,
        }
        metrics |= loss_metrics(evaluation.losses)
        analysis = self._sweep.spec.analysis
        scheme, headline = analysis.headline
        for estimate in capacities(planned, evaluation, analysis):
            if (estimate.subject, estimate.scheme, estimate.kind) != (TOTAL, scheme, evaluation.losses.kinds[-1]):
                continue
            metrics[f"capacity/{estimate.selection}_bits_per_param"] = estimate.bits_per_param
            if estimate.selection == headline:
                metrics["capacity/learned_bits"] = estimate.learned_bits
                metrics["capacity/bits_per_param"] = estimate.bits_per_param
                metrics["capacity/bits_per_non_embedding_param"] = estimate.bits_per_non_embedding_param
        return metrics


def loss_metrics(losses: LossTable) -> dict[str, float]:
    """Mean losses by kind and subject; chains of thought, held-out splits and the second population by themselves."""
    metrics = {}
    for population, about in enumerate(("", "second_")[: losses.num_populations]):
        for kind in losses.kinds:
            trained = losses.select(kind, population=population)
            metrics[f"loss/{about}{kind}_bits"] = trained.mean_bits
            for subject, rows in trained.by_subject().items():
                metrics[f"loss_{about}{kind}/{subject}_bits"] = rows.mean_bits
            if any(row.part is Part.CHAIN and row.kind is kind for row in losses.rows):
                chain = losses.select(kind, population=population, part=Part.CHAIN)
                metrics[f"loss/{about}{kind}_chain_bits"] = chain.mean_bits
        for split, by_kind in losses.generalisation(population).items():
            if split != Split.TRAIN:
                metrics |= {f"held_out_{about}{kind}/{split}_bits": bits for kind, bits in by_kind.items()}
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
    for trial in summary(analysis)["trials"]:
        bits = ("", "")
        if trial["state"] == "finished":
            values = [trial[column][str(scheme)][str(selection)] for column in ("learned_bits", "bits_per_param")]
            bits = (f"{values[0]:,.0f}", f"{values[1]:.3f}")
        lines.append(f"| {trial['label']} | {trial['num_params']:,} | {bits[0]} | {bits[1]} | {trial['state']} |")
    return "\n".join([*lines, "", "Figures: `capacity.png`, `exposures.png`, `subjects.png` and `report.html` below."])
