"""Learned bits over training: where a trial was heading, and whether it had arrived."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.intervals import NOTHING, Interval

Floats = NDArray[np.float64]

EXHAUSTED_BELOW = 0.1
"""A trial whose loss is below this share of its answers' entropy has run out of data rather than of capacity."""
IGNORANT_ABOVE = 0.95
"""A trial that loses more than this share knows so little of the answers that it says nothing of its model's capacity:
nearly all its bits would be those of names, whose loss questions do not measure."""
DIVERGED_ABOVE = 0.05
"""A trial diverged if it ends up losing this share of its answers' entropy more than it once did."""
STILL_LEARNING_ABOVE = 0.05
"""A trial still learns if its learned bits grew by this share over the last doubling of exposures."""
MIN_POINTS = 5
"""Of a curve whose asymptote is asked for: three numbers are fitted."""
MAX_CURVE_POINTS = 5.0
"""Time constants beyond this multiple of the exposures seen cannot be told from a straight line."""


NUM_TAUS = 100
"""Time constants tried, twice: over all that can be told, and then where they fit."""


class Convergence(StrEnum):
    """How far a trial's training had come."""

    CONVERGED = "converged"
    """Learned bits grew by less than 5 % over the last doubling of exposures."""
    STILL_LEARNING = "still learning"
    """They grew by more."""
    EXHAUSTED = "dataset exhausted"
    """Less than a tenth of the answers' entropy is lost: more data would have been learned."""
    DIVERGED = "diverged"
    """It ends up losing 5 % of the answers' entropy more than at an earlier evaluation."""
    UNKNOWN = "too few evaluations"
    """Fewer than two, or none at half of the exposures or before."""


def convergence(exposures: Floats, learned_bits: Floats, lost_share: Floats) -> Convergence:
    """The verdict on a trial from its evaluations in order, each (E,). The first rule that holds decides:

    exhausted, diverged, too few evaluations, still learning, converged.
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
    """Share of the final learned bits that came with the last doubling of exposures; infinite if there are none."""
    before = np.interp(np.log(exposures[-1] / 2), np.log(exposures), learned_bits)
    return float((learned_bits[-1] - before) / learned_bits[-1]) if learned_bits[-1] > 0 else np.inf


def derivative(exposures: Floats, loss_bits: Floats) -> Floats:
    """Bits of loss a doubling of exposures takes away, between evaluations, (E - 1,)."""
    return -np.diff(loss_bits) / np.diff(np.log2(exposures))


class Asymptote(NamedTuple):
    """Where K(x) = K_inf - b exp(-x / tau) tends to."""

    learned_bits: Interval
    """K_inf; NaN where `refused` says why."""
    refused: str


def asymptote(exposures: Floats, learned_bits: Floats) -> Asymptote:
    """Learned bits after exposures without end, with a 95 % interval, from a trial's evaluations in order, each (E,).

    Only evaluations with positive bits count. For each of a grid of time constants K_inf and b are linear; the interval
    is where the residual sum of squares, minimised over b and tau, is at most 1 + t^2 / (n - 3) times its least. Refused
    if there are fewer than five evaluations, or if a time constant so long that the curve is a straight line fits too.
    With a learning rate that decays to nothing this is where *that schedule* was heading, not what the model could hold.
    """
    known = learned_bits > 0
    x, y = exposures[known], learned_bits[known]
    n = len(x)
    if n < MIN_POINTS:
        return Asymptote(NOTHING, f"fewer than {MIN_POINTS} evaluations with bits learned")
    taus = np.geomspace(x[0] / 4, MAX_CURVE_POINTS * x[-1], NUM_TAUS)
    for finer in (True, False):
        z = np.exp(-x / taus[:, None])  # (taus, n)
        centred = z - z.mean(1, keepdims=True)
        variance = np.maximum((centred**2).sum(1), 1e-300)
        slope = (centred * y).sum(1) / variance
        ends = y.mean() - slope * z.mean(1)
        rss = ((y - ends[:, None] - slope[:, None] * z) ** 2).sum(1)
        best = int(rss.argmin())
        floor = n * (1e-6 * y[-1]) ** 2  # a perfect curve still has rounding
        limit = (rss[best] + floor) * (1 + stats.t.ppf(0.975, n - 3) ** 2 / (n - 3))
        allowed = np.flatnonzero(rss <= limit)
        if allowed[-1] == NUM_TAUS - 1 and finer:
            return Asymptote(NOTHING, "no bend yet: a straight line fits as well")
        if finer:  # the ends of the interval lie where time constants stop being allowed
            taus = np.geomspace(taus[max(allowed[0] - 1, 0)], taus[allowed[-1] + 1], NUM_TAUS)
    if slope[best] > 0:
        return Asymptote(NOTHING, "learned bits fall")
    reach = np.sqrt((limit - rss[allowed]) * (1 / n + z[allowed].mean(1) ** 2 / variance[allowed]))
    low, high = float((ends[allowed] - reach).min()), float((ends[allowed] + reach).max())
    return Asymptote(Interval(float(ends[best]), low, high), "")
