"""MLflow: parent run = sweep, child run = trial. One process, the analyst, does all the logging.

Runs are found again by tags (sweep, trial_id), and a point that a run already has is not logged again, so restarts leave
neither duplicates nor gaps.
"""

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from raycap.analysis.analyse import Analysis
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.measurements import Curve, Floats, Losses
from raycap.analysis.readings import headline
from raycap.analysis.report import answer
from raycap.analysis.summary import LAW_NUMBERS, summary, trial_entries
from raycap.cluster.errors import TrackingError
from raycap.losses import Part
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import AnalysisSpec, Split, TrackingSpec

SWEEP_TAG, TRIAL_TAG, PARENT_TAG, NOTE_TAG = (
    "raycap.sweep",
    "raycap.trial_id",
    "mlflow.parentRunId",
    "mlflow.note.content",
)
STORAGE_TAG = "raycap.storage"
STEP_METRIC = "train/exposures"
"""Logged at every evaluation: its history tells which steps a run already has."""
METRICS_PER_CALL = 900


class Tracker:
    """The runs of one sweep. Raises TrackingError from the start if MLflow cannot be used."""

    def __init__(self, sweep: SweepRecord, tracking: TrackingSpec) -> None:
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._uri = tracking.uri
        self._planned = {trial.trial_id: trial for trial in sweep.trials}
        try:
            self._client = MlflowClient(self._uri)
            self.experiment_id = self._experiment(tracking.experiment)
            self.parent_id = self._open_parent(sweep)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"tracking.uri {tracking.uri}: MLflow cannot be used: {error}") from error
        self._children: dict[str, str] = {}
        self._logged_steps: dict[str, set[int]] = {}

    def _experiment(self, name: str) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return existing.experiment_id
        if self._uri.startswith("sqlite:///"):
            # Without this, artifacts would go to ./mlruns of whatever directory the actor happens to be in.
            beside = Path(self._uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            return self._client.create_experiment(name, artifact_location=beside.as_uri())
        return self._client.create_experiment(name)

    def _open_parent(self, sweep: SweepRecord) -> str:
        name, storage = sweep.spec.name, sweep.spec.storage
        run = self._find(_sweep_filter(name, storage))
        if run is None:
            tags = {SWEEP_TAG: name, STORAGE_TAG: storage}
            run = self._client.create_run(self.experiment_id, run_name=name, tags=tags)
        self._client.update_run(run.info.run_id, status="RUNNING")
        return run.info.run_id

    def _find(self, filter_string: str) -> Run | None:
        found = self._client.search_runs([self.experiment_id], filter_string, max_results=1)
        return found[0] if found else None

    def _child(self, trial_id: str) -> str:
        """The run of a trial under this sweep's parent, made or found once."""
        if trial_id not in self._children:
            run = self._find(f"tags.`{TRIAL_TAG}` = '{trial_id}' and tags.`{PARENT_TAG}` = '{self.parent_id}'")
            planned = self._planned[trial_id]
            if run is None:
                tags = {TRIAL_TAG: trial_id, PARENT_TAG: self.parent_id}
                run = self._client.create_run(self.experiment_id, run_name=planned.label, tags=tags)
                parameters = [Param(key, str(value)[:6000]) for key, value in flat_params(planned).items()]
                self._client.log_batch(run.info.run_id, params=parameters)
            run_id = run.info.run_id
            history = self._client.get_metric_history(run_id, STEP_METRIC)
            self._children[trial_id], self._logged_steps[trial_id] = run_id, {point.step for point in history}
        return self._children[trial_id]

    def log_evaluation(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log one evaluation of a trial, unless its run has it already."""
        run_id = self._child(trial_id)
        if step not in self._logged_steps[trial_id]:
            self._log_metrics(run_id, metrics, step)
            self._logged_steps[trial_id].add(step)

    def finish_trial(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Set a trial's final metrics and mark it finished."""
        run_id = self._child(trial_id)
        self._log_metrics(run_id, metrics, step=0)
        self._client.set_terminated(run_id, "FINISHED")

    def is_finished(self, trial_id: str) -> bool:
        """Whether a trial's run is marked finished."""
        return self._client.get_run(self._child(trial_id)).info.status == "FINISHED"

    def fail_trial(self, trial_id: str, cause: str) -> None:
        """Mark a trial failed, with the cause as its description."""
        run_id = self._child(trial_id)
        self._client.set_tag(run_id, NOTE_TAG, cause[:5000])
        self._client.set_terminated(run_id, "FAILED")

    def start_trial(self, trial_id: str, *, afresh: bool) -> None:
        """Mark a trial running. One that starts afresh though its run has points gets a new run: they are not its."""
        run_id = self._child(trial_id)
        if afresh and self._logged_steps[trial_id]:
            self._client.delete_run(run_id)
            del self._children[trial_id]
            run_id = self._child(trial_id)
        self._client.update_run(run_id, status="RUNNING")

    def log_sweep(
        self, num_finished: int, metrics: Mapping[str, float], description: str, artifacts: Mapping[str, bytes]
    ) -> None:
        """Refresh the parent run: law metrics after so many finished trials, description, and files as artifacts."""
        self._log_metrics(self.parent_id, metrics, step=num_finished)
        self._client.set_tag(self.parent_id, NOTE_TAG, description)
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            for name, content in artifacts.items():
                (Path(folder) / name).write_bytes(content)
            self._client.log_artifacts(self.parent_id, folder)

    def close(self, status: str) -> None:
        """Mark the sweep FINISHED, FAILED or KILLED; trials still running then are KILLED."""
        for run_id in self._children.values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, "KILLED")
        self._client.set_terminated(self.parent_id, status)

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for begin in range(0, len(points), METRICS_PER_CALL):  # MLflow takes at most 1000 metrics at once
            self._client.log_batch(run_id, metrics=points[begin : begin + METRICS_PER_CALL])


def flat_params(planned: PlannedTrial) -> dict[str, Any]:
    """The trial's spec and what the plan knows of it as flat, scalar params."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = ",".join(map(str, node)) if isinstance(node, list) else node

    walk("", planned.spec.model_dump(mode="json"))
    flat |= {"plan.num_params": planned.parameters.total, "plan.num_steps": planned.steps}
    return flat | {f"plan.dataset_bits.{selection}": round(bits, 1) for selection, bits in planned.dataset_bits.items()}


def trial_metrics(
    planned: PlannedTrial, analysis: AnalysisSpec, curve: Curve, losses: Losses
) -> list[dict[str, float]]:
    """Evaluations of a trial as MLflow metrics, capacities under the sweep's first scheme."""
    metrics: dict[str, Floats] = {
        "train/loss_bits": curve.train_loss_bits,
        "train/exposures": curve.exposures,
        "train/tokens": curve.tokens.astype(float),
        "train/tokens_per_s": curve.tokens / curve.train_seconds,
        "train/learning_rate": curve.learning_rate,
        "train/parameter_norm": curve.parameter_norm,
    }
    metrics |= loss_metrics(losses)
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


def law_metrics(analysis: Analysis) -> dict[str, float]:
    """The laws so far as metrics of the sweep."""
    laws = summary(analysis)["laws"]
    return {
        f"law/{scheme}/{selection}/{name}": value
        for scheme, by_selection in laws.items()
        for selection, law in by_selection.items()
        for name in LAW_NUMBERS
        if (value := law[name]) is not None
    }


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


def comparison_link(base_url: str, experiment_id: str, parent_id: str) -> str:
    """Address of the page that shows a sweep's trials side by side, with charts.

    MLflow hides nested runs without a filter, and folds them under their parent unless they are sorted by something
    other than their date.
    """
    query = {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}'",
        "orderByKey": "metrics.`capacity/bits_per_param`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{base_url}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def sweep_link(base_url: str, experiment_id: str, parent_id: str) -> str:
    """Address of the page of the sweep itself: its law, figures and report."""
    return f"{base_url}/#/experiments/{experiment_id}/runs/{parent_id}?workflowType=machine_learning"


def _sweep_filter(name: str, storage: str) -> str:
    """Sweeps of one name in different storages are different: their trials were trained apart."""
    return f"tags.`{SWEEP_TAG}` = '{name}' and tags.`{STORAGE_TAG}` = '{storage}'"


def find_sweep(tracking: TrackingSpec, sweep_name: str, storage: str) -> tuple[str, str]:
    """(experiment_id, parent run id) of a sweep. Raises TrackingError where there is none."""
    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], _sweep_filter(sweep_name, storage)) if experiment else []
    if not experiment or not runs:
        raise TrackingError(f"no sweep {sweep_name!r} in experiment {tracking.experiment!r} of {tracking.uri}")
    return experiment.experiment_id, runs[0].info.run_id
