"""Trials whose learned bits are so far from a fitted law that noise does not explain them (docs/science.md#outliers).

The test is the generalised extreme Studentised deviate [Rosner 1983]. It takes the j trials with the largest residuals away,
fits the law to the others, and compares all j with what that law predicts for them. So several outliers do not hide each
other by pulling the law and inflating the noise.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.fitting import Fit
from raycap.analysis.intervals import effective_parameters

LEVEL = 0.01
"""Probability that a sweep without outliers has a trial that is named as one."""
MAX_SHARE = 0.25
"""Largest share of the cells in which outliers are searched. Beyond it, no majority defines the law."""
MIN_NOISE = 1e-3
"""Lower bound on the noise of log bits, far below any noise of interest. Without it, rounding errors of an exact law would
count as outliers."""
MIN_SLOPE = 0.5
"""Trials whose bits depend less than this on their capacity are not tested: their data limit them, not the model."""


def find_outliers(found: Fit, cells: NDArray[np.int64]) -> dict[int, float]:
    """Return the logs of learned over predicted bits of the outliers by their index, the largest first.

    Predictions are those of the law without the outliers. The result is empty if there are too few cells for the test.

    Args:
        found: fit of a single problem.
        cells: index of each trial's cell, (n,).
    """
    problem, p = found.problem, effective_parameters(found)
    slope = problem.predict(found.theta)[1][:, 0]
    tested = np.flatnonzero(slope >= MIN_SLOPE)
    order = tested[np.argsort(-np.abs(found.residuals[tested]), kind="stable")]
    outliers: dict[int, float] = {}
    for num in range(1, int(MAX_SHARE * len(set(cells[tested].tolist()))) + 1):
        suspects, others = order[:num], order[num:]
        # Seeds of one cell may share a deviation, so cells count as independent and not trials.
        num_cells = len(set(cells[others].tolist()))
        freedom = num_cells - p
        if freedom < 1:
            break
        weights = np.ones((1, problem.num_trials))
        weights[0, suspects] = 0.0
        theta = found.refit(weights)[0]
        f, slopes = problem.predict(theta)
        residuals = problem.log_bits - f
        variance = max((residuals[others] ** 2).mean() * num_cells / freedom, MIN_NOISE**2)
        # A prediction adds the uncertainty of the law to the noise: s^2 (1 + x' (X'X)^-1 x).
        j = slopes[:, list(problem.free)]
        precision = j[others].T @ j[others] + variance * np.diag(problem.prior.precision[list(problem.free)])
        leverage = np.einsum("ni,ij,nj->n", j[suspects], np.linalg.pinv(precision), j[suspects])
        # Bonferroni's correction on both sides, because each suspect is the most extreme of the trials that are left.
        limit = stats.t.ppf(1 - LEVEL / (2 * (len(order) - num + 1)), freedom)
        if (np.abs(residuals[suspects]) > limit * np.sqrt(variance * (1 + leverage))).all():
            outliers = {int(index): float(residuals[index]) for index in suspects}
    return outliers
