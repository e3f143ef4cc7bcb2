"""The whole analysis of a sweep as one pure function of what is stored, and summary.json as its outcome."""

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raycap.analysis.capacity import TOTAL, capacity_table, exclusion
from raycap.analysis.laws import Point, ProportionalLaw, fit_proportional
from raycap.losses import LossTable, Part
from raycap.results import Failure, RunRecord, SweepRecord, TrialResult
from raycap.spec import EncodingScheme, Kind, SelectionScheme

BOOTSTRAP_SEED = 0

LawKey = tuple[EncodingScheme, SelectionScheme]


@dataclass(frozen=True)
class Analysis:
    """A sweep read under its analysis spec. Laws and headline numbers are of each trial's last kind of text."""

    sweep: SweepRecord
    run: RunRecord
    results: dict[str, TrialResult]
    failures: dict[str, Failure]
    capacities: pd.DataFrame
    laws: dict[LawKey, ProportionalLaw]

    @property
    def headline(self) -> LawKey:
        """The reading shown first."""
        return self.sweep.spec.analysis.headline

    @property
    def kind(self) -> Kind:
        """The last kind of text that any trial was evaluated on; one-hop questions while there is none."""
        kinds = [result.final.losses.kinds[-1] for result in self.results.values()]
        return max(kinds, key=list(Kind).index, default=Kind.ONE_HOP)

    def totals(self, scheme: EncodingScheme, selection: SelectionScheme) -> pd.DataFrame:
        """The capacity table's totals under one reading, every evaluation, each trial's last kind of text."""
        table = self.capacities
        if table.empty:
            return table
        return table[
            (table["subject"] == TOTAL)
            & (table["scheme"] == str(scheme))
            & (table["selection"] == str(selection))
            & table["headline"]
        ]

    def finals(self, scheme: EncodingScheme, selection: SelectionScheme) -> dict[str, dict[str, Any]]:
        """The rows of `totals` at each trial's last evaluation, by trial_id."""
        totals = self.totals(scheme, selection)
        if totals.empty:
            return {}
        rows = totals[totals["final"]].to_dict("records")
        return {str(row["trial_id"]): {str(name): value for name, value in row.items()} for row in rows}


def analyse(
    sweep: SweepRecord, run: RunRecord, results: dict[str, TrialResult], failures: dict[str, Failure]
) -> Analysis:
    """Capacities of every trial and a law per scheme and selection. The same records give the same analysis."""
    ordered = {trial.trial_id: results[trial.trial_id] for trial in sweep.trials if trial.trial_id in results}
    spec = sweep.spec.analysis
    table = capacity_table(list(ordered.values()), spec)
    analysis = Analysis(sweep, run, ordered, failures, table, {})
    for scheme in spec.schemes:
        for selection in spec.selections:
            finals = analysis.finals(scheme, selection)
            reasons = {trial_id: exclusion(result, scheme, selection) for trial_id, result in ordered.items()}
            points = [
                Point(trial_id, final["num_params"], final["learned_bits"])
                for trial_id, final in finals.items()
                if reasons[trial_id] is None
            ]
            excluded = {trial_id: str(reason) for trial_id, reason in reasons.items() if reason is not None}
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            analysis.laws[scheme, selection] = fit_proportional(points, excluded, rng=rng)
    return analysis


def summary(analysis: Analysis) -> dict[str, Any]:
    """summary.json: every trial and every law in plain numbers, null where there is none."""
    spec = analysis.sweep.spec.analysis
    finals = {key: analysis.finals(*key) for key in analysis.laws}

    def by_reading(trial_id: str, column: str) -> dict[str, dict[str, float | None]]:
        return {
            str(scheme): {
                str(selection): finals[scheme, selection].get(trial_id, {}).get(column) for selection in spec.selections
            }
            for scheme in spec.schemes
        }

    trials = []
    train_seconds = 0.0
    for planned in analysis.sweep.trials:
        result = analysis.results.get(planned.trial_id)
        state = "finished" if result else "failed" if planned.trial_id in analysis.failures else "missing"
        trial: dict[str, Any] = {
            "trial_id": planned.trial_id,
            "label": planned.label,
            "state": state,
            "num_params": planned.parameters.total,
            "num_non_embedding_params": planned.parameters.non_embedding,
            "dataset_bits": planned.dataset_bits,
        }
        if result:
            final = result.final
            train_seconds += final.train_seconds
            trial |= {
                "learned_bits": by_reading(planned.trial_id, "learned_bits"),
                "bits_per_param": by_reading(planned.trial_id, "bits_per_param"),
                "bits_per_non_embedding_param": by_reading(planned.trial_id, "bits_per_non_embedding_param"),
                **_losses(final.losses),
                "exposures": final.exposures,
                "train_seconds": final.train_seconds,
                "capacity_limited": exclusion(result, *analysis.headline) is None,
                "stop_reason": str(result.stop_reason),
            }
        trials.append(trial)
    return {
        "sweep": analysis.sweep.spec.name,
        "question": analysis.sweep.question,
        "trials": trials,
        "laws": {
            str(scheme): {str(selection): _law_entry(analysis.laws[scheme, selection]) for selection in spec.selections}
            for scheme in spec.schemes
        },
        "wall_seconds": analysis.run.wall_seconds,
        "train_seconds_ideal": train_seconds / analysis.run.slots,
    }


def _losses(losses: LossTable) -> dict[str, Any]:
    """Mean losses of a final evaluation, of the second population under a name of their own."""
    found: dict[str, Any] = {}
    for population, prefix in enumerate(("", "second_")[: losses.num_populations]):
        select = partial(losses.select, population=population)
        found[f"{prefix}loss_bits"] = {str(kind): select(kind).mean_bits for kind in losses.kinds}
        chains = {row.kind for row in losses.rows if row.part is Part.CHAIN}
        if chains:
            found[f"{prefix}chain_loss_bits"] = {str(kind): select(kind, part=Part.CHAIN).mean_bits for kind in chains}
        matrix = losses.generalisation(population)
        if len(matrix) > 1:
            found[f"{prefix}generalisation_bits"] = matrix
            if chains:
                found[f"{prefix}chain_generalisation_bits"] = losses.generalisation(population, Part.CHAIN)
    return found


def _law_entry(law: ProportionalLaw) -> dict[str, Any]:
    numbers = {
        name: value if math.isfinite(value := getattr(law, name)) else None
        for name in ("alpha", "low", "high", "gamma", "gamma_low", "gamma_high")
    }
    return numbers | {"num_trials": law.num_trials, "status": str(law.status), "excluded": law.excluded}


def summary_json(analysis: Analysis) -> str:
    """summary() as text."""
    return json.dumps(summary(analysis), indent=2, allow_nan=False)
