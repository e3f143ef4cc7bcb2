"""How likely a reading finds the losses of trials that it was not fitted to."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.fitting import Fit, Floats, Prior, Problem, descend, fit_many

GAMMA_PRIOR = (1.0, 0.05)
"""Bits in proportion to parameters, give or take: a reading must not buy its fit with an exponent nobody has seen."""
MIN_SHARE = 0.2
"""Noise of the bits of a trial whose data run out, as a share of the noise of its capacity, is no less than this."""
MAX_FOLDS = 100
Ints = NDArray[np.int64]


def folds_of(cells: Ints, rng: np.random.Generator) -> Ints:
    """Which cells are left out together: each by itself, or in MOST_FOLDS groups where there are more."""
    num_cells = int(cells.max(initial=-1)) + 1
    return cells if num_cells <= MAX_FOLDS else rng.permutation(num_cells)[cells] % MAX_FOLDS


def cell_means(values: Floats, cells: Ints, present: NDArray[np.bool_]) -> Floats:
    """Means over the trials of each cell that are present, (B, cells); 0 in cells without any."""
    num = int(cells.max()) + 1
    member = (cells == np.arange(num)[:, None]).astype(float).T  # (n, cells)
    counts = present @ member
    return (np.where(present, values, 0.0) @ member) / np.maximum(counts, 1)


def predictive_bits(
    learned_bits: Floats,
    dataset_bits: Floats,
    slopes_bits: Floats,
    num_params: Floats,
    left_out: Ints,
    present: NDArray[np.bool_],
    log_scale: tuple[float, float] | None = None,
) -> Floats:
    """log2 density of each trial's log loss, predicted from trials outside its group; (B, n) for B sweeps at once.

    `left_out` (n,) numbers the groups. Learned bits are Student-t around the prediction, with the noise and the
    uncertainty of the fit in proportion to it, so that a reading under which they are negative is just very unlikely;
    `slopes_bits` turn their density into one of the log loss.
    """
    num_sweeps, n = learned_bits.shape
    centre = np.log(num_params).mean()
    x = np.log(num_params) - centre
    scale = (log_scale[0] + centre, log_scale[1]) if log_scale else None
    usable = present & (learned_bits > 0)
    log_bits = np.log(np.where(usable, learned_bits, np.maximum(dataset_bits, 1.0)))
    problem = Problem(
        log_bits, x, np.log(dataset_bits), np.ones((n, 1)), Prior.of(log_scale=scale, gamma=GAMMA_PRIOR), (0, 1, 2)
    )
    whole = fit_many(problem, usable.astype(float))
    num_groups = int(left_out.max()) + 1
    inside = left_out != np.arange(num_groups)[:, None]  # (groups, n): what stays when a group goes
    found = np.full((num_sweeps, n), -np.inf)
    for sweep in _batches(num_sweeps, num_groups * n):
        theta, noise = _without_groups(whole, sweep, usable[sweep, None] & inside, num_sweeps)
        found[sweep] = _densities(
            problem, theta, noise, usable[sweep, None] & inside, learned_bits[sweep], slopes_bits[sweep], left_out
        )
    return found


def _batches(num_sweeps: int, elements: int) -> list[slice]:
    at_once = max(1, 2_000_000 // elements)
    return [slice(begin, begin + at_once) for begin in range(0, num_sweeps, at_once)]


def _without_groups(whole: Fit, sweep: slice, weights: NDArray[np.bool_], num_sweeps: int) -> tuple[Floats, Floats]:
    """theta (B, groups, 3) without each group, and the noise (B,)."""
    noise = whole.noise[sweep]
    num, groups, n = weights.shape
    if num_sweeps == 1:
        single = Fit(whole.problem.with_bits(whole.problem.log_bits[0]), whole.theta[0], whole.noise[0])
        return single.refit(weights[0].astype(float))[None], noise
    problem = whole.problem
    tiled = problem.with_bits(np.repeat(problem.log_bits[sweep], groups, axis=0))
    start = np.repeat(whole.theta[sweep], groups, axis=0)
    theta = descend(tiled, start, weights.reshape(-1, n).astype(float), np.repeat(noise, groups))
    return theta.reshape(num, groups, -1), noise


def _densities(
    problem: Problem,
    theta: Floats,
    noise: Floats,
    weights: NDArray[np.bool_],
    learned_bits: Floats,
    slopes_bits: Floats,
    left_out: Ints,
) -> Floats:
    """log2 densities (B, n) of what each group's fit did not see."""
    num_sweeps, num_groups, _ = theta.shape
    found = np.empty((num_sweeps, len(left_out)))
    bits = np.log(np.maximum(learned_bits, 1e-300))
    for group in range(num_groups):
        f, slopes = problem.predict(theta[:, group])  # (B, n), (B, n, 3)
        inside = weights[:, group].astype(float)
        residuals = np.where(inside > 0, bits - f, 0.0)
        limit = 2.5 * noise[:, None]
        freedom = np.maximum(inside.sum(-1) - len(problem.free) + 1, 1.0)  # the sharpness is held by its prior
        # Trials whose data run out hardly show the noise of capacities.
        shown = np.maximum((inside * slopes[..., 0] ** 2).sum(-1), 1.0)
        variance = (inside * np.clip(residuals, -limit, limit) ** 2).sum(-1) / shown
        variance *= inside.sum(-1) / freedom
        variance = np.maximum(variance, 1e-12)
        matrix = np.swapaxes(slopes * inside[..., None], -1, -2) @ slopes
        covariance = np.linalg.inv(matrix / variance[:, None, None] + np.diag(problem.prior.precision + 1e-9))
        out = left_out == group
        s = slopes[:, out]
        leverage = np.einsum("bni,bij,bnj->bn", s, covariance, s)
        share = np.maximum(s[..., 0], MIN_SHARE)
        predicted = np.exp(f[:, out])
        width = predicted * np.sqrt(variance[:, None] * share**2 + leverage)
        density = stats.t.logpdf((learned_bits[:, out] - predicted) / width, freedom[:, None]) - np.log(width)
        found[:, out] = (density + np.log(np.maximum(slopes_bits[:, out], 1e-300))) / np.log(2)
    return found
