"""Before spending anything: how often would a sweep tell which reading is true?

Every reading is taken to be true in turn. Its planted trials, with assumed noise, are put through the very comparison
that the results will be put through; the outcome is a confusion matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.analysis.analyse import log_scale_of
from raycap.analysis.curves import EXHAUSTED_BELOW, IGNORANT_ABOVE
from raycap.analysis.measurements import Floats, cells
from raycap.analysis.planted import Truth, share_curves
from raycap.analysis.readings import Reading, readings
from raycap.analysis.scoring import cell_means, folds_of, predictive_bits
from raycap.analysis.selection import MIN_CELLS, Verdict, best_of, distinct_readings, judged, verdict_on
from raycap.results import PlannedTrial
from raycap.spec import AnalysisSpec

NUM_RESAMPLES = 2_000
"""For p-values in a simulation: enough for a twentieth to be told apart after the correction for 36 pairs."""


@dataclass(frozen=True)
class Power:
    """What a sweep would tell, reading by reading."""

    readings: tuple[Reading, ...]
    """Those that differ for this sweep."""
    noise: float
    num_sweeps: int
    """Simulated for each truth."""
    picked: Floats
    """Share of sweeps in which a reading (columns) has the best score, if another (rows) is true.

    Rows add up to less than one if some sweeps have too few usable cells to compare anything.
    """
    decided: Floats
    """Share in which the true reading is better than every other, significantly; (readings,)."""
    misled: Floats
    """Share in which some other reading is significantly better than the true one; (readings,)."""
    usable: Floats
    """Mean share of the trials that are neither exhausted nor ignorant; (readings,)."""


def simulate(
    trials: Sequence[PlannedTrial],
    analysis: AnalysisSpec,
    *,
    noise: float,
    bits_per_param: float,
    num_sweeps: int,
    rng: np.random.Generator,
) -> Power:
    """Confusion of the readings for a planned sweep.

    `noise` is the standard deviation of the log of a trial's capacity, and `bits_per_param` what models are taken to
    store under the true reading. Needs at least two readings that differ.
    """
    curves = share_curves(trials, analysis)
    log_scale = log_scale_of(analysis.calibration)
    num_params = np.array([trial.parameters.total for trial in trials], dtype=float)
    of_size = np.unique(num_params, return_inverse=True)[1].astype(np.int64)
    numbers = cells(trials)
    of_cell = np.array([numbers[trial.trial_id] for trial in trials])
    dataset_bits = {r: np.array([curve.learned_bits[r][0] for curve in curves]) for r in readings(analysis)}
    at_chance = {r: np.array([curve.bits_at(r, np.ones(())) for curve in curves]) for r in readings(analysis)}
    distinct, _ = distinct_readings(at_chance, dataset_bits)
    folds = folds_of(of_cell, rng)
    picked = np.zeros((len(distinct), len(distinct)))
    decided, misled, usable = (np.zeros(len(distinct)) for _ in range(3))
    for row, truth in enumerate(distinct):
        planted = Truth(truth, bits_per_param, noise=noise)
        bits = planted.learned_bits(num_params, dataset_bits[truth], of_cell, rng=rng, num=num_sweeps)
        share = np.stack([curve.share_lost(truth, bits[:, i]) for i, curve in enumerate(curves)], axis=1)
        present = (share >= EXHAUSTED_BELOW) & (share <= IGNORANT_ABOVE)
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
        told_by = cell_means(present.astype(float), of_cell, present) > 0  # (sweeps, cells)
        for told, cell_scores, size_scores in zip(told_by, np.stack(by_cell, 1), np.stack(by_size, 1), strict=True):
            if told.sum() < MIN_CELLS:
                continue
            picked[row, cell_scores[:, told].mean(-1).argmax()] += 1
            whole_sizes = size_scores[:, told] if of_size.max() else np.empty(0)
            pairs = judged(tuple(distinct), cell_scores[:, told], whole_sizes, rng=rng, num_resamples=NUM_RESAMPLES)
            decided[row] += best_of(pairs) == truth
            misled[row] += any(verdict_on(p, truth) is Verdict.WORSE for p in pairs if truth in p[:2])
    picked /= num_sweeps
    return Power(tuple(distinct), noise, num_sweeps, picked, decided / num_sweeps, misled / num_sweeps, usable)
