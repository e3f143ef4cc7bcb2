"""Stored models: the disk space that a plan needs for them, and tables of their losses and learned bits."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from raycap.plan.estimate import max_stored_models, model_bytes
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import InspectedModels, KeptModels
from raycap.terminal.format import size


def describe_stored_models(sweep: SweepRecord, trials: Sequence[PlannedTrial]) -> list[str]:
    """Return a line of text with the disk space of the models of some trials, if more than the final ones are stored."""
    if sweep.spec.execution.keep_models is KeptModels.FINAL:
        return []
    numbers = [max_stored_models(trial, sweep.spec.execution) for trial in trials]
    return [f"Models: up to {sum(numbers):,}, {size(model_bytes(trials, sweep.spec.execution))} in all"]


def describe_analyses(sweep: SweepRecord) -> list[str]:
    """Return a line of text with the analyses that follow the trials, if there are any."""
    inspect = sweep.spec.inspect
    if not inspect.analyses:
        return []
    models = "all stored models" if inspect.models is InspectedModels.ALL else "the final models"
    return [f"Analyses after the trials: {', '.join(inspect.analyses)} of {models}"]


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of entries of `raycap.analysis.model_evaluations.evaluation_entries`."""
    from raycap.analysis.model_evaluations import describe_weights

    table = Table(box=SIMPLE)
    table.add_column("trial")
    table.add_column("weights")
    for header in ("exposures", "loss (bits)", "learned bits", "bits/param", "kept"):
        table.add_column(header, justify="right")
    for row in rows:
        losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in row["losses_bits"].items())
        table.add_row(
            row["label"],
            describe_weights(row["options"]),
            f"{row['exposures']:,.1f}",
            losses,
            f"{row['learned_bits']:,.0f}",
            f"{row['bits_per_param']:.3f}",
            f"{100 * row['kept']:.1f} %",
        )
    return table


def composition_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the compositions of stored models, with 95 % intervals clustered by bridge."""
    table = Table(box=SIMPLE)
    for header in (
        "trial",
        "exposures",
        "answers",
        "memorised share",
        "gap, trained (bits)",
        "gap, held out (bits)",
    ):
        table.add_column(header)
    for row in rows:
        found = row["composition"]
        if found is None:
            table.add_row(row["label"], f"{row['exposures']:,.1f}", "no one-hop and two-hop questions without chains")
            continue
        gaps = [found[split]["gap_bits"] if found[split] else None for split in ("trained", "held_out")]
        numbers = map(_with_interval, (found["memorised_share"], *gaps))
        table.add_row(row["label"], f"{row['exposures']:,.1f}", found["mechanism"], *numbers)
    return table


def _with_interval(estimate: dict[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.2f} ± {1.96 * estimate['standard_error']:.2f}"
