"""Intervals of a fit: a bootstrap over cells gives their shape, a jackknife over cells and Student's t their width.

Resampling cells and then seeds within them is the right recipe for the shape, but not for the spread: that is too small
where cells are few, and too large where seeds are drawn too, since the cells drawn already hold what seeds differ by
(Davison & Hinkley 1997, 3.8). So percentiles of the resamples are brought to the width of the jackknife over cells.
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
"""Cells left out one by one in a jackknife; where there are more, groups of cells are."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval; NaN where there is none."""

    estimate: float
    low: float
    high: float


NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Resamples:
    """A fit, and what it would have been with other cells and seeds."""

    fit: Fit
    drawn: Floats
    """theta of bootstrap resamples, (resamples, q + 2)."""
    left_out: Floats
    """theta without each cell (or group of them), (groups, q + 2)."""
    freedom: float
    """Degrees of freedom of a variance: cells that still tell of capacity, less what was fitted."""
    num_fitted: float
    """What the data determine of the fit; a number that its prior determines is none of it."""

    @classmethod
    def of(cls, found: Fit, cells: NDArray[np.int64], num: int, *, rng: np.random.Generator) -> "Resamples":
        """`cells` number the cells of the trials from 0; at least two of them."""
        num_cells = int(cells.max()) + 1
        chunks = [min(RESAMPLES_AT_ONCE, num - begin) for begin in range(0, num, RESAMPLES_AT_ONCE)]
        drawn = np.concatenate([found.refit(cluster_weights(cells, size, rng=rng)) for size in chunks])
        groups = cells if num_cells <= MAX_GROUPS else rng.permutation(num_cells)[cells] % MAX_GROUPS
        left_out = found.refit((groups != np.arange(groups.max() + 1)[:, None]).astype(float))
        problem = found.problem
        slopes, free = problem.predict(found.theta)[1], list(problem.free)
        telling = float((np.bincount(cells, slopes[:, 0]) / np.bincount(cells)).sum())
        told = slopes[:, free].T @ slopes[:, free] / found.noise**2
        inverse = np.linalg.pinv(told + np.diag(problem.prior.precision[free]))
        num_fitted = float(np.trace(inverse @ told))
        return cls(found, drawn, left_out, max(telling - num_fitted, 1.0), num_fitted)

    @property
    def t(self) -> float:
        """Student's t at 95 %."""
        return float(stats.t.ppf(TAILS[1], self.freedom))

    def variance(self, of: Callable[[Floats], Floats]) -> Floats:
        """Jackknife variance of something of theta; (G - p) / G for the usual (G - 1) / G, since p numbers were fitted."""
        values = of(self.left_out)
        num = len(values)
        return max(num - self.num_fitted, 0.5) / num * ((values - values.mean(0)) ** 2).sum(0)

    def interval(self, of: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        """95 % interval of something of theta: `of` takes (..., q + 2) to (..., k), the result is two of (k,)."""
        values, estimate = of(self.drawn), of(self.fit.theta)
        spread = values.std(axis=0)
        width = self.t / stats.norm.ppf(TAILS[1]) * np.sqrt(self.variance(of))
        scale = np.where(spread > 0, width / np.where(spread > 0, spread, 1.0), 0.0)
        low, high = estimate + (np.quantile(values, TAILS, axis=0) - values.mean(axis=0)) * scale
        return low, high


def profile(resamples: Resamples, place: int) -> tuple[float, float]:
    """95 % interval of one element of theta by its profile likelihood.

    Where the objective, minimised over all else, is half of t^2 above its least. What it rises by is divided by how much
    cells widen the variance (Chandler & Bate 2007). NaN beyond what was searched.
    """
    found = resamples.fit
    problem, best = found.problem, found.theta
    ones = np.ones(problem.num_trials)
    variance = float(resamples.variance(lambda theta: theta[..., [place]])[0])
    threshold = resamples.t**2 / 2
    theta = np.tile(best, (PROFILE_POINTS, 1))
    reach = 4.0 * resamples.t * max(np.sqrt(variance), 1e-4)
    theta[:, place] = best[place] + np.linspace(-reach, reach, PROFILE_POINTS)
    others = problem.with_free(tuple(other for other in problem.free if other != place))
    weights, noise = np.tile(ones, (PROFILE_POINTS, 1)), np.full(PROFILE_POINTS, found.noise)
    theta = descend(others, theta, weights, noise)
    rise = problem.objective(theta, weights, noise) - problem.objective(best, ones, found.noise)
    _, slopes = problem.predict(best)
    naive = np.linalg.pinv((slopes.T @ slopes) / found.noise**2 + np.diag(problem.prior.precision))[place, place]
    rise = rise / max(variance / naive, 1e-6)
    inside = np.flatnonzero(rise <= threshold)
    ends = []
    for end, outward in ((inside.min(initial=PROFILE_POINTS), -1), (inside.max(initial=-1), 1)):
        beyond = end + outward
        if not 0 <= end < PROFILE_POINTS or not 0 <= beyond < PROFILE_POINTS:
            ends.append(np.nan)
            continue
        share = (threshold - rise[end]) / (rise[beyond] - rise[end])
        ends.append(float(theta[end, place] + share * (theta[beyond, place] - theta[end, place])))
    return ends[0], ends[1]


def cluster_weights(clusters: NDArray[np.int64], num: int, *, rng: np.random.Generator) -> Floats:
    """How often each trial is in each of `num` resamples (num, n): clusters with replacement, then within each its trials.

    `clusters` are numbers 0 .. G - 1.
    """
    sizes = np.bincount(clusters)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num)  # (num, G)
    weights = np.empty((num, len(clusters)))
    order = np.argsort(clusters, kind="stable")
    begins = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        members = order[begins[same][:, None] + np.arange(size)]  # (clusters of this size, size)
        counts = drawn[:, same]
        if size == 1:
            weights[:, members[:, 0]] = counts
        else:
            spread = rng.multinomial(counts * size, np.full(size, 1 / size))
            weights[:, members.ravel()] = spread.reshape(num, -1)
    return weights
