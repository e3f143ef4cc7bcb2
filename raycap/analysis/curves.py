"""Verdicts on training curves, and the asymptotes of learned bits."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.intervals import NOTHING, Interval

Floats = NDArray[np.float64]

EXHAUSTED_BELOW = 0.1
"""A trial has exhausted its data if it loses less than this share of its answers' entropy."""
IGNORANT_ABOVE = 0.95
"""A trial is ignorant if it loses more than this share. It does not measure its model's capacity, because nearly all its
bits are those of the names, whose loss questions do not measure."""
DIVERGED_ABOVE = 0.05
"""A trial has diverged if its lost share at the end exceeds its earlier minimum by more than this."""
STILL_LEARNING_ABOVE = 0.05
"""A trial is still learning if its learned bits grew by more than this share over the last doubling of exposures."""
MIN_POINTS = 5
"""Evaluations with positive bits that an asymptote needs; three numbers are fitted to them."""
MAX_TAU_RATIO = 5.0
"""Largest time constant that is tried, as a multiple of all exposures. The curve of a larger one looks like a line."""
NUM_TAUS = 100
"""Time constants in each of two grids: over the whole range, then over the ones that fit."""


class Convergence(StrEnum):
    """Verdict on a trial's training (docs/science.md#training-verdicts)."""

    CONVERGED = "converged"
    """Learned bits grew by less than 5 % over the last doubling of exposures."""
    STILL_LEARNING = "still learning"
    """Learned bits grew by more than 5 % over the last doubling of exposures."""
    EXHAUSTED = "dataset exhausted"
    """Less than a tenth of the answers' entropy is lost, so the model could have learned more data."""
    DIVERGED = "diverged"
    """The lost share at the end exceeds that of an earlier evaluation by more than 0.05."""
    UNKNOWN = "too few evaluations"
    """Fewer than two, or none at half of the exposures or before."""


def convergence(exposures: Floats, learned_bits: Floats, lost_share: Floats) -> Convergence:
    """Return the verdict on a trial from its evaluations in order; all arrays are (E,).

    The first rule that holds decides: exhausted, diverged, too few evaluations, still learning, converged.
    """
    if lost_share[-1] < EXHAUSTED_BELOW:
        return Convergence.EXHAUSTED
    if lost_share[-1] - lost_share.min() > DIVERGED_ABOVE:
        return Convergence.DIVERGED
    if len(exposures) < 2 or exposures[0] > 0.51 * exposures[-1]:
        return Convergence.UNKNOWN
    if gain(exposures, learned_bits) > STILL_LEARNING_ABOVE:
        return Convergence.STILL_LEARNING
    return Convergence.CONVERGED


def gain(exposures: Floats, learned_bits: Floats) -> float:
    """Return the share of the final learned bits that the last doubling of exposures added; infinite if they are <= 0."""
    before = np.interp(np.log(exposures[-1] / 2), np.log(exposures), learned_bits)
    return float((learned_bits[-1] - before) / learned_bits[-1]) if learned_bits[-1] > 0 else np.inf


def derivative(exposures: Floats, loss_bits: Floats) -> Floats:
    """Return the decrease of the loss in bits per doubling of exposures between evaluations, (E - 1,)."""
    return -np.diff(loss_bits) / np.diff(np.log2(exposures))


class Asymptote(NamedTuple):
    """Limit of the fitted curve K(x) = K_inf - b exp(-x / tau)."""

    learned_bits: Interval
    """K_inf; NaN if refused."""
    refused: str
    """Reason why there is no asymptote, or ""."""


def asymptote(exposures: Floats, learned_bits: Floats) -> Asymptote:
    """Extrapolate learned bits to infinitely many exposures, with a 95 % interval (docs/science.md#training-verdicts).

    Only evaluations with positive bits count. The model is linear in K_inf and b for a given time constant tau, so both
    are solved for in closed form on a grid of tau. The interval holds the K_inf whose residual sum of squares, minimised
    over b and tau, is at most 1 + t^2 / (n - 3) times its minimum. Under a learning rate that decays to zero the
    asymptote is the limit of that schedule, not the capacity of the model.

    The result is refused with fewer than five evaluations, or if the largest time constant, with which the curve is
    nearly a straight line, fits as well.

    Args:
        exposures: exposures at a trial's evaluations in order, (E,).
        learned_bits: learned bits at the same evaluations, (E,).
    """
    known = learned_bits > 0
    x, y = exposures[known], learned_bits[known]
    n = len(x)
    if n < MIN_POINTS:
        return Asymptote(NOTHING, f"fewer than {MIN_POINTS} evaluations with bits learned; set num_evaluations higher")
    taus = np.geomspace(x[0] / 4, MAX_TAU_RATIO * x[-1], NUM_TAUS)
    for coarse in (True, False):
        # Least squares of y on z for every tau at once. The slope is -b, and the intercept K_inf.
        z = np.exp(-x / taus[:, None])  # (taus, n)
        centred = z - z.mean(1, keepdims=True)
        variance = np.maximum((centred**2).sum(1), 1e-300)
        slope = (centred * y).sum(1) / variance
        ends = y.mean() - slope * z.mean(1)
        rss = ((y - ends[:, None] - slope[:, None] * z) ** 2).sum(1)
        best = int(rss.argmin())
        floor = n * (1e-6 * y[-1]) ** 2  # rounding errors of a curve without noise
        limit = (rss[best] + floor) * (1 + stats.t.ppf(0.975, n - 3) ** 2 / (n - 3))
        allowed = np.flatnonzero(rss <= limit)
        if allowed[-1] == NUM_TAUS - 1 and coarse:
            return Asymptote(NOTHING, "no bend yet: a straight line fits as well; train longer")
        if coarse:  # refine between the neighbours of the allowed time constants, which bound the interval
            taus = np.geomspace(taus[max(allowed[0] - 1, 0)], taus[allowed[-1] + 1], NUM_TAUS)
    if slope[best] > 0:
        return Asymptote(NOTHING, "learned bits fall")
    # For each allowed tau, the K_inf within the limit lie symmetrically around the least-squares intercept.
    reach = np.sqrt((limit - rss[allowed]) * (1 / n + z[allowed].mean(1) ** 2 / variance[allowed]))
    low, high = float((ends[allowed] - reach).min()), float((ends[allowed] + reach).max())
    return Asymptote(Interval(float(ends[best]), low, high), "")
