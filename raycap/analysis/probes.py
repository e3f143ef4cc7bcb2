"""Tidy frames of what probes read from stored models, and of the effects of interchanged residuals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from raycap.results import InspectionRecord
from raycap.results.probes import InterchangeRow, ProbeReadings, ProbeRow, Space
from raycap.spec import Split
from raycap.spec.probes import ProbesSpec

Readings = tuple[InspectionRecord[ProbeReadings], ...]
MODEL_COLUMNS = ["trial", "step", "exposures", "family", "seed"]
PROBE_COLUMNS = [name for name in ProbeRow.model_fields if name != "parts_bits"] + ["selectivity_bits"]
INTERCHANGE_COLUMNS = list(InterchangeRow.model_fields)


def probe_rows(readings: Mapping[int, Readings]) -> pd.DataFrame:
    """Return one row per model, kind, split, target, layer and site. Readings are given by the index of the trial."""
    rows = [
        header | row.model_dump(mode="json", exclude={"parts_bits"}) | {"selectivity_bits": row.selectivity_bits}
        for header, body in _bodies(readings)
        for row in body.probes
    ]
    return pd.DataFrame(rows, columns=[*MODEL_COLUMNS, *PROBE_COLUMNS])


def interchange_rows(readings: Mapping[int, Readings]) -> pd.DataFrame:
    """Return one row per model, kind, layer, site and space. Readings are given by the index of the trial."""
    rows = [header | row.model_dump(mode="json") for header, body in _bodies(readings) for row in body.interchanges]
    return pd.DataFrame(rows, columns=[*MODEL_COLUMNS, *INTERCHANGE_COLUMNS])


def probe_metrics(body: ProbeReadings) -> dict[str, float]:
    """Return the usable and gained bits of trained questions as metrics, such as probe/bridge/answer/L3_usable_bits.

    Metrics of questions with fewer hops than the last kind have the kind in front, as in probe_one_hop/answer/....
    """
    kinds = [row.kind for row in body.probes] + [row.kind for row in body.interchanges]
    last = max(kinds, key=lambda kind: kind.hops, default=None)

    def name(row: ProbeRow | InterchangeRow, read: str, number: str) -> str:
        prefix = "probe" if row.kind is last else f"probe_{row.kind}"
        return f"{prefix}/{read}/{row.site}/L{row.layer:g}_{number}"

    usable = {name(row, row.target, "usable_bits"): row.usable_bits for row in body.probes if row.split is Split.TRAIN}
    gained = {
        name(row, "interchange", "gained_bits"): row.gained_bits
        for row in body.interchanges
        if row.space is Space.WHOLE
    }
    return usable | gained


def _bodies(readings: Mapping[int, Readings]) -> list[tuple[dict[str, Any], ProbeReadings]]:
    """Return the readings of every model with the columns that identify it."""
    found = []
    for trial, records in readings.items():
        for record in records:
            spec = ProbesSpec.model_validate(record.options, strict=False)
            model = {"trial": trial, "step": record.moment.step, "exposures": record.moment.exposures}
            found.append((model | {"family": str(spec.family), "seed": spec.seed}, record.body))
    return found
