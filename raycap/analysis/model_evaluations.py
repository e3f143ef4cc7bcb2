"""Learned bits of stored models, also compressed, and how their two-hop answers come about, as tidy frames and metrics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from raycap.analysis.capacity import headline_bits
from raycap.analysis.measurements import Losses
from raycap.results import InspectionRecord, ModelLosses, PlannedTrial
from raycap.results.composition import Composition, Estimate
from raycap.spec import AnalysisSpec

Evaluations = tuple[InspectionRecord[ModelLosses], ...]
Compositions = tuple[InspectionRecord[Composition], ...]
MODEL_COLUMNS = ["trial", "step", "exposures"]
EVALUATION_COLUMNS = [*MODEL_COLUMNS, "weights", "learned_bits", "bits_per_param", "kept_share"]
COMPOSITION_ESTIMATES = ("memorised_share", "trained_gap_bits", "held_out_gap_bits")
COMPOSITION_COLUMNS = [
    *MODEL_COLUMNS, "mechanism",
    *(column for name in COMPOSITION_ESTIMATES for column in (name, f"{name}_error")),
]  # fmt: skip
AS_STORED = "as stored"
"""Weights of a model that is not compressed."""


def evaluation_entries(
    trials: Sequence[PlannedTrial], evaluations: Mapping[str, Evaluations], analysis: AnalysisSpec
) -> list[dict[str, Any]]:
    """Return an entry for each stored evaluation of the stored models of some trials, under the headline's reading.

    `kept` is the share of the learned bits of the stored model that the compressed one has.
    """
    entries = []
    for trial in trials:
        records = evaluations.get(trial.trial_id, ())
        whole_bits: dict[int, float] = {}  # of the models as they are stored, by step
        for record in sorted(records, key=lambda each: (each.moment.step, sorted(each.options.items()))):
            losses = Losses.of(trial.spec, trial.populations, [record.body])
            (learned_bits,) = headline_bits(losses, analysis).tolist()
            whole_bits.setdefault(record.moment.step, learned_bits)  # the record without options is the first
            entries.append(
                {
                    "trial_id": trial.trial_id,
                    "label": trial.label,
                    "step": record.moment.step,
                    "exposures": record.moment.exposures,
                    "options": record.options,
                    "losses_bits": {str(kind): record.body.losses.select(kind).mean_bits for kind in losses.kinds},
                    "learned_bits": learned_bits,
                    "bits_per_param": learned_bits / trial.parameters.total,
                    "kept": learned_bits / whole_bits[record.moment.step],
                }
            )
    return entries


def describe_weights(options: Mapping[str, Any]) -> str:
    """Return the options of an evaluation as text, such as "quantise int4"."""
    return ", ".join(f"{name} {value}" for name, value in options.items()) or AS_STORED


def evaluation_rows(
    trials: Sequence[PlannedTrial], evaluations: Mapping[str, Evaluations], analysis: AnalysisSpec
) -> pd.DataFrame:
    """Return one row per model and form of its weights, with the index of the trial as the column `trial`."""
    indices = {trial.trial_id: index for index, trial in enumerate(trials)}
    rows = [
        {
            "trial": indices[entry["trial_id"]],
            "step": entry["step"],
            "exposures": entry["exposures"],
            "weights": describe_weights(entry["options"]),
            "learned_bits": entry["learned_bits"],
            "bits_per_param": entry["bits_per_param"],
            "kept_share": entry["kept"],
            **{f"{kind}_loss_bits": bits for kind, bits in entry["losses_bits"].items()},
        }
        for entry in evaluation_entries(trials, evaluations, analysis)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=EVALUATION_COLUMNS)


def composition_rows(trials: Sequence[PlannedTrial], compositions: Mapping[str, Compositions]) -> pd.DataFrame:
    """Return one row per model, with the index of the trial as the column `trial`."""
    rows = [
        {
            "trial": index,
            "step": record.moment.step,
            "exposures": record.moment.exposures,
            "mechanism": str(record.body.mechanism),
            **{name: estimate.value for name, estimate in _estimates(record.body)},
            **{f"{name}_error": estimate.standard_error for name, estimate in _estimates(record.body)},
        }
        for index, trial in enumerate(trials)
        for record in compositions.get(trial.trial_id, ())
    ]
    return pd.DataFrame(rows, columns=COMPOSITION_COLUMNS)


def evaluation_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return an entry as metrics, such as evaluate/learned_bits and evaluate/quantise_int4/kept_share."""
    options = entry["options"]
    form = "".join(f"{name}_{value}/" for name, value in options.items())
    metrics = {f"evaluate/{form}learned_bits": entry["learned_bits"]}
    metrics |= {f"evaluate/{form}{kind}_loss_bits": bits for kind, bits in entry["losses_bits"].items()}
    return metrics | ({f"evaluate/{form}kept_share": entry["kept"]} if options else {})


def composition_metrics(found: Composition) -> dict[str, float]:
    """Return a composition as metrics, such as losses/memorised_share and losses/trained_gap_bits."""
    return {f"losses/{name}": estimate.value for name, estimate in _estimates(found)}


def _estimates(found: Composition) -> Iterator[tuple[str, Estimate]]:
    """Yield the estimates of COMPOSITION_ESTIMATES that a composition has."""
    held_out = found.held_out.gap_bits if found.held_out else None
    for name, estimate in zip(
        COMPOSITION_ESTIMATES, (found.memorised_share, found.trained.gap_bits, held_out), strict=True
    ):
        if estimate is not None:
            yield name, estimate
