"""The registry of figures, in the order in which the report shows them."""

from collections.abc import Callable

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.capacities import (
    capacity,
    capacity_by_profiles,
    capacity_by_scheme,
    capacity_vs_norm,
    capacity_vs_profiles,
    hops,
)
from raycap.analysis.figures.contrasts import contrasts
from raycap.analysis.figures.frequencies import frequencies
from raycap.analysis.figures.generalising import gap_vs_size, held_out_vs_learned, loss_by_kind, steps_to_minimum
from raycap.analysis.figures.laws import law, phase_map
from raycap.analysis.figures.localisation import localisation
from raycap.analysis.figures.losses import generalisation, histograms, learning_rates, loss_vs_content, subjects
from raycap.analysis.figures.probes import probes
from raycap.analysis.figures.schemes import schemes
from raycap.analysis.figures.style import CaptionedFigure
from raycap.analysis.figures.training import exposures, generalisation_gap, loss_derivatives

FIGURES: dict[str, Callable[[Analysis], CaptionedFigure | None]] = {
    "contrasts": contrasts,
    "capacity": capacity,
    "law": law,
    "capacity_by_profiles": capacity_by_profiles,
    "capacity_vs_profiles": capacity_vs_profiles,
    "capacity_by_scheme": capacity_by_scheme,
    "schemes": schemes,
    "phase_map": phase_map,
    "hops": hops,
    "exposures": exposures,
    "frequencies": frequencies,
    "loss_by_kind": loss_by_kind,
    "loss_derivatives": loss_derivatives,
    "generalisation": generalisation,
    "generalisation_gap": generalisation_gap,
    "gap_vs_size": gap_vs_size,
    "held_out_vs_learned": held_out_vs_learned,
    "steps_to_minimum": steps_to_minimum,
    "subjects": subjects,
    "loss_vs_content": loss_vs_content,
    "histograms": histograms,
    "learning_rates": learning_rates,
    "capacity_vs_norm": capacity_vs_norm,
    "probes": probes,
    "localisation": localisation,
}
"""Figure functions by file name. A function returns None if the sweep has nothing to show in that figure."""


def draw(analysis: Analysis) -> dict[str, CaptionedFigure]:
    """Return the figures that the sweep has data for, by file name."""
    drawn = {name: make(analysis) for name, make in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
