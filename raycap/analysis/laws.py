"""Laws across trials: learned bits in proportion to parameters, with intervals, status and declared exclusions."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

NUM_BOOTSTRAP = 4_000
INTERVAL = 0.95


class FitStatus(StrEnum):
    """How far a fit can be trusted."""

    OK = "ok"
    """At least three trials; alpha has an interval."""
    TOO_FEW = "too few trials"
    """One or two capacity-limited trials: alpha is their mean, without an interval."""
    NO_TRIALS = "no trials"
    """No capacity-limited trial: there is no number."""


@dataclass(frozen=True)
class Point:
    """A capacity-limited trial as a law sees it."""

    trial_id: str
    num_params: int
    learned_bits: float


@dataclass(frozen=True)
class ProportionalLaw:
    """learned_bits = alpha P, and beside it the free exponent of learned_bits ~ P^gamma, with 95 % intervals.

    NaN where there is no number; `status` says why.
    """

    alpha: float
    low: float
    high: float
    gamma: float
    gamma_low: float
    gamma_high: float
    num_trials: int
    status: FitStatus
    excluded: dict[str, str] = field(default_factory=dict)
    """Reason by trial_id."""

    def learned_bits(self, num_params: NDArray[np.float64]) -> NDArray[np.float64]:
        """alpha P."""
        return self.alpha * num_params


def fit_proportional(points: list[Point], excluded: dict[str, str], *, rng: np.random.Generator) -> ProportionalLaw:
    """Fit by least squares on log residuals: log alpha = mean of log(learned_bits / P).

    Trials are resampled with replacement (4,000 times, percentile interval). gamma is the slope of log learned_bits on
    log P, over resamples that hold at least two sizes. Points must have positive learned_bits.
    """
    nan = float("nan")
    if not points:
        return ProportionalLaw(nan, nan, nan, nan, nan, nan, 0, FitStatus.NO_TRIALS, excluded)
    log_params = np.log([point.num_params for point in points])
    log_ratios = np.log([point.learned_bits for point in points]) - log_params
    alpha = float(np.exp(log_ratios.mean()))
    gamma = float(_slope(log_params[None], log_ratios[None])[0])
    if len(points) < 3:
        return ProportionalLaw(alpha, nan, nan, gamma, nan, nan, len(points), FitStatus.TOO_FEW, excluded)
    draws = rng.integers(len(points), size=(NUM_BOOTSTRAP, len(points)))
    low, high = np.exp(_interval(log_ratios[draws].mean(axis=1)))
    gamma_low, gamma_high = _interval(_slope(log_params[draws], log_ratios[draws]))
    return ProportionalLaw(
        alpha, float(low), float(high), gamma, float(gamma_low), float(gamma_high), len(points), FitStatus.OK, excluded
    )


def _slope(log_params: NDArray[np.float64], log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponent of learned_bits in P for each row: 1 + slope of log(bits / P) on log P; NaN where all sizes are equal."""
    centred = log_params - log_params.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1)
    varied = variance > 1e-12
    return np.where(varied, 1 + (centred * log_ratios).sum(axis=1) / np.where(varied, variance, 1.0), np.nan)


def _interval(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = samples[np.isfinite(samples)]
    tail = (1 - INTERVAL) / 2
    return np.quantile(finite, [tail, 1 - tail]) if len(finite) else np.full(2, np.nan)
