"""Confidence intervals of a fit from a bootstrap over cells, a jackknife over cells and profile likelihood.

The two-stage bootstrap (cells with replacement, then seeds within them) shows the skewness of an estimate, but its spread is
biased. It is too small with few cells, like any bootstrap variance, and too large where seeds are drawn too, because the
cells that are drawn already differ by the noise of their seeds (Davison & Hinkley 1997, section 3.8). The jackknife over
cells has neither bias, but no skewness. So the sides of an interval come from the jackknife variance and Student's t, and
skewness of the resamples lengthens one of them. See docs/science.md#intervals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.fitting import Fit, Floats, descend

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
PROFILE_POINTS = 161
RESAMPLES_AT_ONCE = 500
GRADIENT_STEP = 1e-4
MIN_FREEDOM = 2.0
"""Lower bound on the degrees of freedom of a variance where there are more cells than fitted parameters by that many. With
fewer, intervals of four cells would be several times wider than necessary."""
MAX_GROUPS = 200
"""Maximum number of refits of a jackknife. With more cells than this, groups of cells are left out."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval; NaN where there is none."""

    estimate: float
    low: float
    high: float


NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Resamples:
    """A fit with its bootstrap and jackknife replicates."""

    fit: Fit
    drawn: Floats
    """theta of bootstrap resamples, (resamples, q + 2)."""
    left_out: Floats
    """theta of jackknife replicates, without each cell or group of cells, (groups, q + 2)."""
    influence: Floats
    """d theta / d log bits of each cell, (cells, q + 2), in the linear approximation of the fit."""
    num_cells: float
    """Effective number of cells, of which those that are limited by their data count as nearly 0."""
    num_fitted: float
    """Effective number of fitted parameters p; one that its prior determines counts as nearly 0."""

    @classmethod
    def of(cls, found: Fit, cells: NDArray[np.int64], num: int, *, rng: np.random.Generator) -> "Resamples":
        """Refit to `num` bootstrap resamples and without each cell.

        Args:
            found: fit of a single problem.
            cells: index of each trial's cell, from 0, (n,). There must be at least two cells.
            num: number of bootstrap resamples.
            rng: random generator.
        """
        num_cells = int(cells.max()) + 1
        # The weights are drawn in chunks, because all of them would take (num, n) memory.
        chunks = [min(RESAMPLES_AT_ONCE, num - begin) for begin in range(0, num, RESAMPLES_AT_ONCE)]
        drawn = np.concatenate([found.refit(cluster_weights(cells, size, rng=rng)) for size in chunks])
        groups = cells if num_cells <= MAX_GROUPS else rng.permutation(num_cells)[cells] % MAX_GROUPS
        left_out = found.refit((groups != np.arange(groups.max() + 1)[:, None]).astype(float))
        slopes = found.problem.predict(found.theta)[1]
        # df/dlog C is 1 where capacity limits a trial and 0 where its data do. The latter trials say nothing about the
        # variance of capacities, so a cell counts by the mean slope of its trials.
        num_effective_cells = float((np.bincount(cells, slopes[:, 0]) / np.bincount(cells)).sum())
        free = list(found.problem.free)
        influence = np.zeros((num_cells, len(found.theta)))
        of_trials = slopes[:, free] @ _covariance(found) / found.noise**2
        influence[:, free] = (cells == np.arange(num_cells)[:, None]).astype(float) @ of_trials
        return cls(found, drawn, left_out, influence, num_effective_cells, effective_parameters(found))

    def t(self, of: Callable[[Floats], Floats]) -> Floats:
        """Return the quantile (k,) of Student's t for two-sided 95 % intervals of a function of theta.

        A jackknife variance is a sum over cells. If few cells contribute most of it, as those at both ends of the sizes do
        for an exponent, it varies more than G - p degrees of freedom suggest. Satterthwaite's approximation counts the
        cells by their expected contributions (Bell & McCaffrey 2002).
        """
        steps = GRADIENT_STEP * np.eye(len(self.fit.theta))
        gradient = (of(self.fit.theta + steps) - of(self.fit.theta - steps)) / (2 * GRADIENT_STEP)  # (q + 2, k)
        contributions = (self.influence @ gradient) ** 2  # (cells, k)
        num_effective = contributions.sum(0) ** 2 / np.maximum((contributions**2).sum(0), 1e-300)
        freedom = max(self.num_cells - self.num_fitted, 1.0)
        at_least = min(freedom, MIN_FREEDOM)
        return np.asarray(stats.t.ppf(TAILS[1], np.maximum(num_effective * freedom / self.num_cells, at_least)), float)

    def variance(self, of: Callable[[Floats], Floats]) -> Floats:
        """Return the jackknife variance of a function of theta: (G - p) / G times the sum of squared deviations.

        The usual factor is (G - 1) / G, which is right for a mean. A replicate of a fit with p parameters deviates more,
        because each cell has a leverage of about p / G.
        """
        values = of(self.left_out)
        num = len(values)
        variance: Floats = max(num - self.num_fitted, 0.5) / num * ((values - values.mean(0)) ** 2).sum(0)
        return variance

    def interval(self, of: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        """Return the low and high ends (k,) of the 95 % interval of a function of theta.

        `of` maps theta (..., q + 2) to values (..., k). Each side is t times the jackknife standard error. A side is longer
        if the bootstrap distribution has a longer tail on the *other* side (the basic bootstrap interval): a trial that
        pulls the estimate up also makes the upper tail long, while the truth is below. No side is shorter for it, because
        several such trials can bend the distribution either way.
        """
        values, estimate = of(self.drawn), of(self.fit.theta)
        half = self.t(of) * np.sqrt(self.variance(of))
        low_quantile, median, high_quantile = np.quantile(values, (TAILS[0], 0.5, TAILS[1]), axis=0)
        spread = high_quantile - low_quantile
        upper_share = np.where(spread > 0, (high_quantile - median) / np.where(spread > 0, spread, 1.0), 0.5)
        low = estimate - half * np.maximum(1.0, 2 * upper_share)
        high = estimate + half * np.maximum(1.0, 2 * (1 - upper_share))
        return low, high


def effective_parameters(found: Fit) -> float:
    """Return the number of parameters that the trials determine, and not the priors.

    As in ridge regression, it is tr((J'J + prior)^-1 J'J) in units of the noise.
    """
    slopes = found.problem.predict(found.theta)[1][:, list(found.problem.free)]
    return float(np.trace(_covariance(found) @ slopes.T @ slopes) / found.noise**2)


def _covariance(found: Fit) -> Floats:
    """Return (J'J / noise^2 + prior)^-1, the covariance of the free elements of theta if trials are independent."""
    free = list(found.problem.free)
    slopes = found.problem.predict(found.theta)[1][:, free]
    precision = slopes.T @ slopes / found.noise**2 + np.diag(found.problem.prior.precision[free])
    return np.asarray(np.linalg.pinv(precision), np.float64)


def profile(resamples: Resamples, index: int) -> tuple[float, float]:
    """Return the 95 % interval of theta[index] by its profile likelihood; an end outside the searched range is NaN.

    The interval is where the objective, minimised over all other elements of theta, exceeds its minimum by at most
    t^2 / 2. The objective treats trials as independent, although trials of one cell are correlated. So its rise is
    divided by the ratio of the jackknife variance over cells to the variance that independent trials would have
    (Chandler & Bate 2007).
    """
    found = resamples.fit
    problem, best = found.problem, found.theta
    ones = np.ones(problem.num_trials)
    variance = float(resamples.variance(lambda theta: theta[..., [index]])[0])
    t = float(resamples.t(lambda theta: theta[..., [index]])[0])
    threshold = t**2 / 2
    theta = np.tile(best, (PROFILE_POINTS, 1))
    reach = 4.0 * t * max(np.sqrt(variance), 1e-4)
    theta[:, index] = best[index] + np.linspace(-reach, reach, PROFILE_POINTS)
    # One batched descent minimises over the other elements at every point of the grid.
    others = problem.with_free(tuple(other for other in problem.free if other != index))
    weights, noise = np.tile(ones, (PROFILE_POINTS, 1)), np.full(PROFILE_POINTS, found.noise)
    theta = descend(others, theta, weights, noise)
    rise = problem.objective(theta, weights, noise) - problem.objective(best, ones, found.noise)
    _, slopes = problem.predict(best)
    independent_variance = np.linalg.pinv((slopes.T @ slopes) / found.noise**2 + np.diag(problem.prior.precision))[
        index, index
    ]
    rise = rise / max(variance / independent_variance, 1e-6)
    inside = np.flatnonzero(rise <= threshold)
    ends = []
    for end, outward in ((inside.min(initial=PROFILE_POINTS), -1), (inside.max(initial=-1), 1)):
        beyond = end + outward
        if not 0 <= end < PROFILE_POINTS or not 0 <= beyond < PROFILE_POINTS:
            ends.append(np.nan)
            continue
        # Interpolate linearly between the last point inside and the first one outside.
        share = (threshold - rise[end]) / (rise[beyond] - rise[end])
        ends.append(float(theta[end, index] + share * (theta[beyond, index] - theta[end, index])))
    return ends[0], ends[1]


def cluster_weights(clusters: NDArray[np.int64], num: int, *, rng: np.random.Generator) -> Floats:
    """Return how often each trial is in each of `num` two-stage bootstrap resamples, (num, n).

    Clusters are drawn with replacement, then the trials within each drawn cluster. `clusters` (n,) are indices 0 .. G - 1.
    """
    sizes = np.bincount(clusters)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num)  # (num, G)
    weights = np.empty((num, len(clusters)))
    order = np.argsort(clusters, kind="stable")
    begins = np.cumsum(sizes) - sizes
    # Clusters of equal size are handled in one vectorised draw.
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        members = order[begins[same][:, None] + np.arange(size)]  # (clusters of this size, size)
        counts = drawn[:, same]
        if size == 1:
            weights[:, members[:, 0]] = counts
        else:
            # A cluster drawn c times contributes c * size draws among its trials; their sum is one multinomial.
            spread = rng.multinomial(counts * size, np.full(size, 1 / size))
            weights[:, members.ravel()] = spread.reshape(num, -1)
    return weights
