"""Confidence intervals of a fit from a bootstrap over cells, a jackknife over cells and profile likelihood.

The two-stage bootstrap (cells with replacement, then seeds within them) gives the shape of an interval, but its spread is
biased. It is too small with few cells, like any bootstrap variance, and too large where seeds are drawn too, because the
cells that are drawn already differ by the noise of their seeds (Davison & Hinkley 1997, section 3.8). The jackknife over
cells has neither bias, but no shape. So the percentiles of the resamples are stretched to the width that the jackknife
variance and Student's t give. See docs/science.md#intervals.
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
    freedom: float
    """Degrees of freedom of the variance: the effective number of cells less `num_fitted`, at least 1."""
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
        problem = found.problem
        slopes, free = problem.predict(found.theta)[1], list(problem.free)
        # df/dlog C is 1 where capacity limits a trial and 0 where its data do. The latter trials say nothing about the
        # variance of capacities, so a cell counts by the mean slope of its trials.
        num_effective_cells = float((np.bincount(cells, slopes[:, 0]) / np.bincount(cells)).sum())
        # Effective degrees of freedom as in ridge regression: tr((J'J + prior)^-1 J'J), in units of the noise.
        information = slopes[:, free].T @ slopes[:, free] / found.noise**2
        inverse = np.linalg.pinv(information + np.diag(problem.prior.precision[free]))
        num_fitted = float(np.trace(inverse @ information))
        return cls(found, drawn, left_out, max(num_effective_cells - num_fitted, 1.0), num_fitted)

    @property
    def t(self) -> float:
        """Quantile of Student's t for a two-sided 95 % interval."""
        return float(stats.t.ppf(TAILS[1], self.freedom))

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

        `of` maps theta (..., q + 2) to values (..., k). The bootstrap quantiles are centred on the estimate and
        multiplied by one factor, so that the skewness of the bootstrap distribution remains and the width is that of an
        interval of +- t times the jackknife standard error.
        """
        values, estimate = of(self.drawn), of(self.fit.theta)
        spread = values.std(axis=0)
        width = self.t / stats.norm.ppf(TAILS[1]) * np.sqrt(self.variance(of))
        scale = np.where(spread > 0, width / np.where(spread > 0, spread, 1.0), 0.0)
        low, high = estimate + (np.quantile(values, TAILS, axis=0) - values.mean(axis=0)) * scale
        return low, high


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
    threshold = resamples.t**2 / 2
    theta = np.tile(best, (PROFILE_POINTS, 1))
    reach = 4.0 * resamples.t * max(np.sqrt(variance), 1e-4)
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
