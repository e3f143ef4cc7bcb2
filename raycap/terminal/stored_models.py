"""Stored models: the disk space that a plan needs for them, and tables of their losses and learned bits."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from raycap.plan.estimate import max_stored_models, model_bytes
from raycap.results import ModelLosses, PlannedTrial, SweepRecord
from raycap.spec import KeptModels
from raycap.storage import Storage
from raycap.storage.inspections import read_inspections
from raycap.terminal.format import size


def describe_stored_models(sweep: SweepRecord, trials: Sequence[PlannedTrial]) -> list[str]:
    """Return a line of text with the disk space of the models of some trials, if more than the final ones are stored."""
    if sweep.spec.execution.keep_models is KeptModels.FINAL:
        return []
    numbers = [max_stored_models(trial, sweep.spec.execution) for trial in trials]
    return [f"Models: up to {sum(numbers):,}, {size(model_bytes(trials, sweep.spec.execution))} in all"]


def evaluation_rows(sweep: SweepRecord, trials: Iterable[PlannedTrial], storage: Storage) -> list[dict[str, Any]]:
    """Return a row for each stored evaluation of the stored models of some trials, under the headline's reading."""
    from raycap.analysis.capacity import headline_bits
    from raycap.analysis.measurements import Losses

    rows = []
    for trial in trials:
        for record in read_inspections(storage, trial.trial_id, "evaluate", ModelLosses):
            losses = Losses.of(trial.spec, trial.populations, [record.body])
            (learned_bits,) = headline_bits(losses, sweep.spec.analysis).tolist()
            rows.append(
                {
                    "trial_id": trial.trial_id,
                    "label": trial.label,
                    "step": record.moment.step,
                    "exposures": record.moment.exposures,
                    "losses_bits": {str(kind): record.body.losses.select(kind).mean_bits for kind in losses.kinds},
                    "learned_bits": learned_bits,
                    "bits_per_param": learned_bits / trial.parameters.total,
                }
            )
    return rows


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the rows of `evaluation_rows`."""
    table = Table(box=SIMPLE)
    table.add_column("trial")
    for header in ("exposures", "loss (bits)", "learned bits", "bits/param"):
        table.add_column(header, justify="right")
    for row in rows:
        losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in row["losses_bits"].items())
        numbers = (f"{row['exposures']:,.1f}", losses, f"{row['learned_bits']:,.0f}", f"{row['bits_per_param']:.3f}")
        table.add_row(row["label"], *numbers)
    return table
