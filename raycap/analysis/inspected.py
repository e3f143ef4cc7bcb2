"""Results of analyses of stored models, as an `Analysis` holds them, and their metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raycap.analysis.localisation import Localisations, localisation_metrics, localisation_rows
from raycap.analysis.model_evaluations import (
    Compositions,
    Evaluations,
    composition_metrics,
    evaluation_entries,
    evaluation_metrics,
)
from raycap.analysis.probes import Readings, probe_metrics
from raycap.results import ModelLosses, PlannedTrial, SweepRecord
from raycap.results.composition import COMPOSITION, Composition
from raycap.results.localisation import Localisation
from raycap.results.probes import ProbeReadings
from raycap.spec import ModelAnalysis
from raycap.storage import Storage
from raycap.storage.inspections import read_of_trials

ModelMetrics = Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]
"""Metrics of the models of each trial with their steps, by trial_id."""


@dataclass(frozen=True)
class Inspected:
    """Results of analyses of the stored models of a sweep, by trial_id; trials without any are left out."""

    evaluations: Mapping[str, Evaluations] = field(default_factory=dict)
    probes: Mapping[str, Readings] = field(default_factory=dict)
    localisations: Mapping[str, Localisations] = field(default_factory=dict)
    compositions: Mapping[str, Compositions] = field(default_factory=dict)

    @classmethod
    def read(cls, trials: Iterable[PlannedTrial], storage: Storage) -> "Inspected":
        """Read the stored results of some trials."""
        trial_ids = [trial.trial_id for trial in trials]
        return cls(
            read_of_trials(storage, trial_ids, ModelAnalysis.EVALUATE, ModelLosses),
            read_of_trials(storage, trial_ids, ModelAnalysis.PROBE, ProbeReadings),
            read_of_trials(storage, trial_ids, ModelAnalysis.LOCALISE, Localisation),
            read_of_trials(storage, trial_ids, COMPOSITION, Composition),
        )

    def metrics(self, sweep: SweepRecord) -> ModelMetrics:
        """Return the results for the trials of a sweep as metrics."""
        analysis = sweep.spec.analysis
        found: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
        for entry in evaluation_entries(sweep.trials, self.evaluations, analysis):
            found.setdefault(entry["trial_id"], []).append((entry["step"], evaluation_metrics(entry)))
        for trial_id, compositions in self.compositions.items():
            found.setdefault(trial_id, []).extend(
                (record.moment.step, composition_metrics(record.body)) for record in compositions
            )
        for trial_id, readings in self.probes.items():
            found.setdefault(trial_id, []).extend(
                (record.moment.step, probe_metrics(record.body)) for record in readings
            )
        rows = localisation_rows(sweep.trials, self.localisations, analysis)
        for (index, step), of_model in rows.groupby(["trial", "step"]):
            found.setdefault(sweep.trials[index].trial_id, []).append((step, localisation_metrics(of_model)))
        return found
