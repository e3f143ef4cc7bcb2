"""Contents of summary.json: trials, laws and the comparison of readings as numbers, with null for missing ones."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raycap.analysis.analyse import Analysis
from raycap.analysis.answer import answer
from raycap.analysis.contrasts import Contrast
from raycap.analysis.headline import Headline, headlines
from raycap.analysis.laws import Law
from raycap.analysis.readings import Reading
from raycap.analysis.selection import Comparison

LAW_NUMBERS = ("alpha", "low", "high", "gamma", "gamma_low", "gamma_high", "num_trials")
"""Numbers of a law's entry that are also logged as MLflow metrics."""


def summary(analysis: Analysis) -> dict[str, Any]:
    """Return the contents of summary.json, without NaN and infinity."""
    trials = trial_entries(analysis)
    train_seconds = sum(trial.get("train_seconds", 0.0) for trial in trials)
    tree = {
        "sweep": analysis.sweep.spec.name,
        "question": analysis.sweep.question,
        "answer": answer(analysis),
        "headlines": [headline_entry(headline) for headline in headlines(analysis)],
        "trials": trials,
        "laws": _by_reading({reading: law_entry(law) for reading, law in analysis.laws.items()}),
        "arm_laws": [
            {"arm": arm.label, "laws": _by_reading({reading: law_entry(law) for reading, law in arm.laws.items()})}
            for arm in analysis.arms
        ],
        "class_laws": [
            law._asdict() | {"status": str(law.status), "alpha": list(law.alpha)} for law in analysis.class_laws
        ],
        "best_settings": [asdict(setting) for setting in analysis.best_settings],
        "contrasts": [contrast_entry(contrast) for contrast in analysis.contrasts],
        "comparison": _comparison_entry(analysis.comparison),
        "wall_seconds": analysis.run.wall_seconds if analysis.run else None,
        "train_seconds_ideal": train_seconds / analysis.run.slots if analysis.run else None,
    }
    finite: dict[str, Any] = plain(tree)
    return finite


def trial_entries(analysis: Analysis) -> list[dict[str, Any]]:
    """Return an entry per planned trial, with measured values if it has finished."""
    finals = {}
    spreads = {reading: analysis.seed_spread_bits(reading) for reading in analysis.laws}
    for reading in analysis.laws:
        for row in analysis.totals(reading, final=True).to_dict("records"):
            finals[reading, row["trial"]] = row
    losses, splits, training = (
        _losses(analysis),
        _splits(analysis),
        analysis.training.set_index("trial").to_dict("index"),
    )
    entries = []
    for index, (planned, row) in enumerate(
        zip(analysis.sweep.trials, analysis.tables.trials.to_dict("records"), strict=True)
    ):
        entry: dict[str, Any] = {
            "trial_id": planned.trial_id,
            "label": planned.label,
            "state": state(analysis, planned.trial_id),
            "num_params": planned.parameters.total,
            "num_non_embedding_params": planned.parameters.non_embedding,
            "dataset_bits": planned.dataset_bits,
        }
        if planned.trial_id in analysis.measured:
            for column in ("learned_bits", "standard_error_bits", "bits_per_param", "bits_per_non_embedding_param"):
                entry[column] = _by_reading({reading: finals[reading, index][column] for reading in analysis.laws})
            entry["seed_spread_bits"] = _by_reading({reading: spreads[reading][index] for reading in analysis.laws})
            verdict = training[index]
            excluded = analysis.law.excluded.get(planned.trial_id)
            entry |= {
                **losses[index],
                **splits.get(index, {}),
                "exposures": row["exposures"],
                "steps": int(analysis.measured[planned.trial_id].curve.step[-1]),
                "tokens": row["tokens"],
                "train_seconds": row["train_seconds"],
                "parameter_norm": row["parameter_norm"],
                "convergence": str(verdict["convergence"]),
                "asymptote_bits": [verdict[f"asymptote_{name}"] for name in ("bits", "low", "high")],
                "excluded": excluded,
                "capacity_limited": excluded is None,
                "stop_reason": row["stop_reason"],
            }
        entries.append(entry)
    return entries


def state(analysis: Analysis, trial_id: str) -> str:
    """Return the state of a trial: finished, unreadable, failed or missing."""
    if trial_id in analysis.measured:
        return "finished"
    if trial_id in analysis.unreadable:
        return "unreadable"
    return "failed" if trial_id in analysis.failures else "missing"


def headline_entry(headline: Headline) -> dict[str, Any]:
    """Return a headline as numbers and text."""
    return {
        "arm": headline.arm,
        "claim": str(headline.claim),
        "bits_per_param": list(headline.value),
        "readings": _by_reading({reading: list(value) for reading, value in headline.readings.items()}),
        "range": list(headline.range),
        "exposures": list(headline.exposures),
        "num_trials": headline.num_trials,
        "num_still_learning": headline.num_still_learning,
        "asymptote": list(headline.asymptote),
    }


def law_entry(law: Law) -> dict[str, Any]:
    """Return both laws under a reading as numbers. Intervals are at 95 %."""
    power = law.power
    return {
        "alpha": law.alpha.estimate,
        "low": law.alpha.low,
        "high": law.alpha.high,
        "noise": law.noise,
        "num_trials": law.num_trials,
        "num_cells": law.num_cells,
        "status": str(law.status),
        "outliers": dict(law.outliers),
        "gamma": power.gamma.estimate,
        "gamma_low": power.gamma.low,
        "gamma_high": power.gamma.high,
        "gamma_profile": list(power.profile),
        "power_law": {
            "status": str(power.status),
            "bits_per_param": list(power.bits_per_param),
            "reference_params": power.reference_params,
            "sharpness": power.sharpness,
            "noise": power.noise,
            "num_trials": power.num_trials,
            "num_cells": power.num_cells,
        },
        "arms": [arm._asdict() | {"ratio": list(arm.ratio)} for arm in law.ratios],
        "excluded": dict(law.excluded),
    }


def contrast_entry(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast as numbers and text."""
    kind, split, population = contrast.outcome
    return {
        "axis": contrast.axis.path,
        "outcome": "loss_bits" if contrast.outcome.is_loss else "bits_per_param",
        "kind": kind and str(kind),
        "split": str(split) if contrast.outcome.is_loss else None,
        "population": population if contrast.outcome.is_loss else None,
        "value": contrast.axis.values[contrast.value],
        "mean": contrast.mean,
        "best": contrast.axis.values[contrast.best],
        "difference": contrast.difference.estimate,
        "low": contrast.difference.low,
        "high": contrast.difference.high,
        "p_value": contrast.p_value,
        "verdict": str(contrast.effect),
        "num_settings": contrast.num_settings,
        "num_seeds": contrast.num_seeds,
        "paired": contrast.paired,
    }


def _comparison_entry(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison of readings as numbers and text."""
    best = comparison.best
    return {
        "best": str(best) if best else None,
        "num_trials": comparison.num_trials,
        "num_cells": comparison.num_cells,
        "num_sizes": comparison.num_sizes,
        "readings": {
            str(reading): {
                "score_bits": comparison.scores_bits.get(reading),
                "score_by_size_bits": comparison.scores_by_size_bits.get(reading),
                "weight": comparison.weights.get(reading),
            }
            for reading in comparison.readings
        },
        "same": {str(reading): str(earlier) for reading, earlier in comparison.same.items()},
        "pairs": [
            {
                "one": str(pair.one),
                "other": str(pair.other),
                "difference_bits": list(pair.difference_bits),
                "difference_by_size_bits": pair.difference_by_size_bits,
                "p_value": pair.p_value,
                "verdict": str(pair.verdict),
            }
            for pair in comparison.pairs
        ],
        "trends": [
            {
                "reading": str(trend.reading),
                "quantity": trend.quantity,
                "exponent": list(trend.exponent),
                "constancy": str(trend.constancy),
            }
            for trend in comparison.trends
        ],
    }


def _losses(analysis: Analysis) -> dict[int, dict[str, Any]]:
    """Return mean final losses by trial, under names with a prefix for the second population and for chains."""
    found: dict[int, dict[str, Any]] = {}
    table = analysis.tables.losses
    for row in table[table["final"]].to_dict("records"):
        name = f"{'second_' * row['population']}{'chain_' * (row['part'] == 'chain')}loss_bits"
        found.setdefault(row["trial"], {}).setdefault(name, {})[row["kind"]] = row["loss_bits"]
    return found


def _splits(analysis: Analysis) -> dict[int, dict[str, Any]]:
    """Return generalisation matrices by trial, for trials with held-out questions."""
    found: dict[int, dict[str, Any]] = {}
    table = analysis.tables.splits
    if table.empty:
        return found
    keys: Any
    for keys, rows in table.groupby(["trial", "population", "part"], sort=True):
        trial, population, part = keys
        if rows["split"].nunique() > 1:
            name = f"{'second_' * population}{'chain_' * (part == 'chain')}generalisation_bits"
            matrix: dict[str, dict[str, float]] = {}
            for row in rows.to_dict("records"):
                matrix.setdefault(row["split"], {})[row["kind"]] = row["loss_bits"]
            found.setdefault(trial, {})[name] = matrix
    return found


def _by_reading(values: Mapping[Reading, Any]) -> dict[str, dict[str, Any]]:
    """Return values by scheme and selection."""
    tree: dict[str, dict[str, Any]] = {}
    for (scheme, selection), value in values.items():
        tree.setdefault(str(scheme), {})[str(selection)] = value
    return tree


def plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, by None in a tree."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
