"""Simulation of how often a planned sweep would identify the true reading (docs/science.md#power).

Every reading is assumed to be true in turn. Synthetic trials with an assumed noise go through the same comparison as real
results. The outcome is a confusion matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.analysis.analyse import log_scale_of
from raycap.analysis.curves import EXHAUSTED_BELOW, IGNORANT_ABOVE
from raycap.analysis.measurements import Floats, cells
from raycap.analysis.planted import Truth, share_curves
from raycap.analysis.readings import Reading, readings
from raycap.analysis.scoring import cell_folds, cell_means, predictive_bits
from raycap.analysis.selection import MIN_CELLS, Verdict, best_of, compare_pairs, distinct_readings, verdict_on
from raycap.results import PlannedTrial
from raycap.spec import AnalysisSpec

NUM_RESAMPLES = 2_000
"""Resamples per p-value. The smallest p-value must be below 0.05 after Holm's correction for 36 pairs."""


@dataclass(frozen=True)
class Power:
    """Confusion matrix of the readings and the rates of right and wrong decisions."""

    readings: tuple[Reading, ...]
    """Readings that differ for this sweep."""
    noise: float
    num_sweeps: int
    """Number of simulated sweeps per true reading."""
    picked: Floats
    """Share of sweeps in which the reading of a column has the best score if that of the row is true.

    Rows add up to less than 1 if some sweeps have too few usable cells for a comparison.
    """
    decided: Floats
    """Share of sweeps in which the true reading is significantly better than every other, (readings,)."""
    misled: Floats
    """Share of sweeps in which another reading is significantly better than the true one, (readings,)."""
    usable: Floats
    """Mean share of the trials that are neither exhausted nor ignorant, (readings,)."""


def simulate(
    trials: Sequence[PlannedTrial],
    analysis: AnalysisSpec,
    *,
    noise: float,
    bits_per_param: float,
    num_sweeps: int,
    rng: np.random.Generator,
) -> Power:
    """Simulate a planned sweep under every reading. At least two readings must differ.

    Args:
        trials: the plan.
        analysis: analysis spec.
        noise: standard deviation of the log of a trial's capacity.
        bits_per_param: capacity of the models under the true reading.
        num_sweeps: simulated sweeps per true reading.
        rng: random generator.
    """
    curves = share_curves(trials, analysis)
    log_scale = log_scale_of(analysis.calibration)
    num_params = np.array([trial.parameters.total for trial in trials], dtype=float)
    of_size = np.unique(num_params, return_inverse=True)[1].astype(np.int64)
    cell_of = cells(trials)
    of_cell = np.array([cell_of[trial.trial_id] for trial in trials])
    dataset_bits = {r: np.array([curve.learned_bits[r][0] for curve in curves]) for r in readings(analysis)}
    at_chance = {r: np.array([curve.bits_at(r, np.ones(())) for curve in curves]) for r in readings(analysis)}
    distinct, _ = distinct_readings(at_chance, dataset_bits)
    folds = cell_folds(of_cell, rng)
    picked = np.zeros((len(distinct), len(distinct)))
    decided, misled, usable = (np.zeros(len(distinct)) for _ in range(3))
    for row, truth in enumerate(distinct):
        planted = Truth(truth, bits_per_param, noise=noise)
        bits = planted.learned_bits(num_params, dataset_bits[truth], of_cell, rng=rng, num=num_sweeps)
        share = np.stack([curve.share_lost(truth, bits[:, i]) for i, curve in enumerate(curves)], axis=1)
        of_cells = cell_means(share, of_cell, np.ones_like(share, dtype=bool))[:, of_cell]
        present = (share >= EXHAUSTED_BELOW) & (of_cells <= IGNORANT_ABOVE)
        usable[row] = float(present.mean())
        by_cell: list[Floats] = []
        by_size: list[Floats] = []
        for reading in distinct:
            learned = np.stack([curve.bits_at(reading, share[:, i]) for i, curve in enumerate(curves)], axis=1)
            slopes = np.stack([curve.slope_bits(reading, share[:, i]) for i, curve in enumerate(curves)], axis=1)
            for scores, groups in ((by_cell, folds), (by_size, of_size)):
                densities = predictive_bits(
                    learned, dataset_bits[reading], slopes, num_params, groups, present, log_scale
                )
                scores.append(cell_means(densities, of_cell, present))
        usable_cells = cell_means(present.astype(float), of_cell, present) > 0  # (sweeps, cells)
        for mask, cell_scores, size_scores in zip(
            usable_cells, np.stack(by_cell, 1), np.stack(by_size, 1), strict=True
        ):
            if mask.sum() < MIN_CELLS:
                continue
            picked[row, cell_scores[:, mask].mean(-1).argmax()] += 1
            whole_sizes = size_scores[:, mask] if of_size.max() else np.empty(0)
            pairs = compare_pairs(
                tuple(distinct), cell_scores[:, mask], whole_sizes, rng=rng, num_resamples=NUM_RESAMPLES
            )
            decided[row] += best_of(pairs) == truth
            misled[row] += any(verdict_on(p, truth) is Verdict.WORSE for p in pairs if truth in p[:2])
    picked /= num_sweeps
    return Power(tuple(distinct), noise, num_sweeps, picked, decided / num_sweeps, misled / num_sweeps, usable)
