"""Learned bits that models lose when one of their parts is ablated or quantised, as tidy frames and metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.measurements import Losses
from raycap.analysis.readings import headline
from raycap.results import InspectionRecord, ModelLosses, Part, PlannedTrial
from raycap.results.localisation import Localisation, ModelPart
from raycap.spec import AnalysisSpec, LocaliseSpec

Localisations = tuple[InspectionRecord[Localisation], ...]
MODEL_COLUMNS = ["trial", "step", "exposures", "seed"]
COLUMNS = [*MODEL_COLUMNS, "ablation", "part", "layer", "learned_bits", "lost_bits", "lost_share"]


def localisation_rows(
    trials: Sequence[PlannedTrial], localisations: Mapping[str, Localisations], analysis: AnalysisSpec
) -> pd.DataFrame:
    """Return a row per model, ablation, part and layer; see `raycap.analysis.frames.Results.localisation`.

    The column `trial` has the index of the trial. Bits are those of the headline. The columns `{kind}_lost_bits` count the
    bits of each kind of text on its own.
    """
    frames = [
        _rows_of_model(trial, record, analysis).assign(trial=index)
        for index, trial in enumerate(trials)
        for record in localisations.get(trial.trial_id, ())
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return rows[[*COLUMNS, *rows.columns.difference(COLUMNS, sort=False)]]


def _rows_of_model(trial: PlannedTrial, record: InspectionRecord[Localisation], analysis: AnalysisSpec) -> pd.DataFrame:
    """Return the rows of one model without the column `trial`."""
    body = record.body
    tables = [body.intact, *(each.losses for each in body.ablated)]
    losses = Losses.of(trial.spec, trial.populations, [ModelLosses(losses=table) for table in tables])
    first = headline(analysis)
    totals = [each for each in capacities(losses, analysis) if each.subject == TOTAL and each.reading == first]
    (total,) = (capacity for capacity in totals if capacity.is_headline(losses, analysis))
    # Questions do not measure the names, so no ablation can lose their bits.
    fixed_bits = 0.0 if total.kind.names_are_measured else total.baseline_bits
    lost = total.learned_bits[0] - total.learned_bits
    columns: dict[str, Any] = {
        "step": record.moment.step,
        "exposures": record.moment.exposures,
        "seed": LocaliseSpec.model_validate(record.options, strict=False).seed,
        "ablation": ["", *(str(each.ablation) for each in body.ablated)],
        "part": ["", *(str(each.part) for each in body.ablated)],
        "layer": pd.array([None, *(each.layer for each in body.ablated)], dtype="Int64"),
        "learned_bits": total.learned_bits,
        "lost_bits": lost,
        "lost_share": lost / (total.learned_bits[0] - fixed_bits),
    }
    for kind in losses.kinds:
        columns[f"{kind}_loss_bits"] = losses.mean_bits(losses.columns(kind, population=None))
        if chain := losses.columns(kind, population=None, part=Part.CHAIN):
            columns[f"{kind}_chain_loss_bits"] = losses.mean_bits(chain)
        (alone,) = (each.learned_bits for each in totals if each.kind is kind and not each.incremental)
        columns[f"{kind}_lost_bits"] = alone[0] - alone
    return pd.DataFrame(columns).iloc[1:]


def part_sums(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model, ablation and part, with the bits lost with all layers together and one after the other.

    Columns: those that identify the model, ablation, part, lost_bits and lost_share (of all layers together), sum_bits (of
    single layers; for the whole model that of the embeddings and all blocks) and most_layer (the layer that loses most).
    """
    keys = [*MODEL_COLUMNS, "ablation"]
    frames = []
    for key, group in rows.groupby(keys, sort=False):
        single, together = group[group["layer"].notna()], group[group["layer"].isna()].set_index("part")
        sums = single.groupby("part", sort=False)["lost_bits"].sum()
        blocks = sums.get(ModelPart.BLOCK, sums[ModelPart.ATTENTION])  # blocks without MLP have only attention
        sums[ModelPart.MODEL] = sums[ModelPart.EMBEDDING] + blocks
        most = single.loc[single.groupby("part")["lost_bits"].idxmax()].set_index("part")
        for part, sum_bits in sums.items():
            whole = most.loc[part] if part == ModelPart.EMBEDDING else together.loc[part]
            layer = None if part in (ModelPart.EMBEDDING, ModelPart.MODEL) else most["layer"][part]
            numbers = (str(part), whole["lost_bits"], whole["lost_share"], sum_bits, layer)
            frames.append((*key, *numbers))
    return pd.DataFrame(frames, columns=[*keys, "part", "lost_bits", "lost_share", "sum_bits", "most_layer"])


def localisation_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """Return the rows of one model as metrics, such as localise/mean/mlp/L1_lost_bits, or all_lost_bits of all layers."""
    layers = ["all" if pd.isna(layer) else f"L{layer}" for layer in rows["layer"]]
    places = zip(rows["ablation"], rows["part"], layers, rows["lost_bits"], strict=True)
    return {f"localise/{ablation}/{part}/{layer}_lost_bits": float(bits) for ablation, part, layer, bits in places}
