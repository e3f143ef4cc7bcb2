"""Before spending anything: how often would a sweep tell which reading is true?

Every reading is taken to be true in turn. Its planted trials, with assumed noise, are put through the very comparison
that the results will be put through; the outcome is a confusion matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycap.analysis.curves import EXHAUSTED_BELOW
from raycap.analysis.measurements import Floats, cells
from raycap.analysis.planted import Truth, share_curves
from raycap.analysis.readings import Reading, readings
from raycap.analysis.scoring import cell_means, predictive_bits
from raycap.analysis.selection import LEVEL, holm, paired
from raycap.results import PlannedTrial
from raycap.spec import AnalysisSpec

NUM_RESAMPLES = 400
"""For p-values in a simulation: a twentieth is well told apart by so many."""


@dataclass(frozen=True)
class Power:
    """What a sweep would tell, reading by reading."""

    readings: tuple[Reading, ...]
    """Those that differ for this sweep."""
    noise: float
    num_sweeps: int
    """Simulated for each truth."""
    picked: Floats
    """Share of sweeps in which a reading (columns) has the best score, if another (rows) is true."""
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
    num_params = np.array([trial.parameters.total for trial in trials], dtype=float)
    numbers = cells(trials)
    of_cell = np.array([numbers[trial.trial_id] for trial in trials])
    dataset_bits = {r: np.array([curve.learned_bits[r][0] for curve in curves]) for r in readings(analysis)}
    names = {r: np.array([curve.bits_at(r, np.ones(())) for curve in curves]) for r in readings(analysis)}
    distinct: list[Reading] = []
    for reading in readings(analysis):
        told = np.stack([dataset_bits[reading], names[reading]])
        if not any(np.allclose(told, np.stack([dataset_bits[r], names[r]]), rtol=1e-9) for r in distinct):
            distinct.append(reading)
    picked = np.zeros((len(distinct), len(distinct)))
    decided, misled, usable = (np.zeros(len(distinct)) for _ in range(3))
    for row, truth in enumerate(distinct):
        planted = Truth(truth, bits_per_param, noise=noise)
        bits = planted.learned_bits(num_params, dataset_bits[truth], of_cell, rng=rng, num=num_sweeps)
        share = np.stack([curve.share_lost(truth, bits[:, i]) for i, curve in enumerate(curves)], axis=1)
        present = (share >= EXHAUSTED_BELOW) & (share < 1)
        usable[row] = float(present.mean())
        scores = []
        for reading in distinct:
            learned = np.stack([curve.bits_at(reading, share[:, i]) for i, curve in enumerate(curves)], axis=1)
            slopes = np.stack([curve.slope_bits(reading, share[:, i]) for i, curve in enumerate(curves)], axis=1)
            densities = predictive_bits(learned, dataset_bits[reading], slopes, num_params, of_cell, present)
            scores.append(cell_means(densities, of_cell, present))
        by_cell = np.stack(scores, axis=1)  # (sweeps, readings, cells)
        best = by_cell.mean(-1).argmax(-1)
        picked[row] = np.bincount(best, minlength=len(distinct)) / num_sweeps
        for sweep in by_cell:
            outcome = _told(sweep, row, rng)
            decided[row] += outcome == 1
            misled[row] += outcome == -1
    return Power(tuple(distinct), noise, num_sweeps, picked, decided / num_sweeps, misled / num_sweeps, usable)


def _told(scores: Floats, truth: int, rng: np.random.Generator) -> int:
    """1 if the true reading is better than every other, -1 if some other is better than it, 0 while undecided."""
    others = [place for place in range(len(scores)) if place != truth]
    differences = scores[truth] - scores[others]
    p_values, _ = paired(differences, rng=rng, num_resamples=NUM_RESAMPLES)
    significant, better = holm(p_values) < LEVEL, differences.mean(1) > 0
    if (significant & better).all():
        return 1
    return -1 if (significant & ~better).any() else 0
