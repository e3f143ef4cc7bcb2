"""Predictive densities of the losses of held-out trials under a reading (docs/science.md#comparison)."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.fitting import Fit, Floats, Prior, Problem, descend, fit_many

GAMMA_PRIOR = (1.0, 0.05)
"""Mean and standard deviation of the exponent. Under the right reading bits are proportional to parameters, so a reading
that needs another exponent to fit must score worse."""
MIN_SHARE = 0.2
"""Lower bound on the noise of the bits of a nearly exhausted trial, as a share of the noise of its capacity."""
MAX_FOLDS = 100
Ints = NDArray[np.int64]


def cell_folds(cells: Ints, rng: np.random.Generator) -> Ints:
    """Return the fold (n,) of each trial's cell: one cell per fold, or random groups of cells beyond MAX_FOLDS cells."""
    num_cells = int(cells.max(initial=-1)) + 1
    return cells if num_cells <= MAX_FOLDS else rng.permutation(num_cells)[cells] % MAX_FOLDS


def cell_means(values: Floats, cells: Ints, present: NDArray[np.bool_]) -> Floats:
    """Return means over the present trials of each cell, (B, cells); 0 in cells without present trials."""
    num = int(cells.max()) + 1
    member = (cells == np.arange(num)[:, None]).astype(float).T  # (n, cells)
    counts = present @ member
    means: Floats = (np.where(present, values, 0.0) @ member) / np.maximum(counts, 1)
    return means


def predictive_bits(
    learned_bits: Floats,
    dataset_bits: Floats,
    slopes_bits: Floats,
    num_params: Floats,
    left_out: Ints,
    present: NDArray[np.bool_],
    log_scale: tuple[float, float] | None = None,
) -> Floats:
    """Return the log2 density (B, n) of each trial's log loss, predicted from the trials outside its group.

    Learned bits are modelled as Student-t around the prediction. The scale is proportional to the prediction and includes
    the noise and the uncertainty of the fit. Bits are not log-transformed here, so negative bits under a reading have a
    very small density instead of none. The density of the bits is converted to one of the log loss by the change of
    variables, because only densities of the same observed quantity are comparable between readings.

    Args:
        learned_bits: of B sweeps with n trials each, (B, n).
        dataset_bits: code lengths, (n,).
        slopes_bits: |d learned bits / d log loss|, (B, n).
        num_params: parameters, (n,).
        left_out: index of the group that each trial is left out with, (n,).
        present: mask of the trials that count, (B, n).
        log_scale: prior mean and standard deviation of log bits per parameter.
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
    inside = left_out != np.arange(num_groups)[:, None]  # (groups, n): trials that remain without a group
    densities = np.full((num_sweeps, n), -np.inf)
    for sweep in _batches(num_sweeps, num_groups * n):
        theta, noise = _without_groups(whole, sweep, usable[sweep, None] & inside, num_sweeps)
        densities[sweep] = _densities(
            problem, theta, noise, usable[sweep, None] & inside, learned_bits[sweep], slopes_bits[sweep], left_out
        )
    return densities


def _batches(num_sweeps: int, elements: int) -> list[slice]:
    """Return slices of sweeps whose arrays have at most about two million elements."""
    size = max(1, 2_000_000 // elements)
    return [slice(begin, begin + size) for begin in range(0, num_sweeps, size)]


def _without_groups(whole: Fit, sweep: slice, weights: NDArray[np.bool_], num_sweeps: int) -> tuple[Floats, Floats]:
    """Return theta (B, groups, 3) refitted without each group, and the noise (B,) of the fit to all trials."""
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
    """Return the log2 densities (B, n) of each group's trials under the fit without that group."""
    num_sweeps, num_groups, _ = theta.shape
    densities = np.empty((num_sweeps, len(left_out)))
    bits = np.log(np.maximum(learned_bits, 1e-300))
    for group in range(num_groups):
        f, slopes = problem.predict(theta[:, group])  # (B, n), (B, n, 3)
        inside = weights[:, group].astype(float)
        residuals = np.where(inside > 0, bits - f, 0.0)
        limit = 2.5 * noise[:, None]
        freedom = np.maximum(inside.sum(-1) - len(problem.free) + 1, 1.0)  # the prior determines the sharpness
        # The bits of nearly exhausted trials hardly show the noise of capacities, so a trial counts by (df/du)^2.
        num_effective = np.maximum((inside * slopes[..., 0] ** 2).sum(-1), 1.0)
        variance = (inside * np.clip(residuals, -limit, limit) ** 2).sum(-1) / num_effective
        variance *= inside.sum(-1) / freedom
        variance = np.maximum(variance, 1e-12)
        # Laplace approximation: the covariance of theta is the inverse of the curvature of the objective.
        matrix = np.swapaxes(slopes * inside[..., None], -1, -2) @ slopes
        covariance = np.linalg.inv(matrix / variance[:, None, None] + np.diag(problem.prior.precision + 1e-9))
        out = left_out == group
        s = slopes[:, out]
        leverage = np.einsum("bni,bij,bnj->bn", s, covariance, s)
        share = np.maximum(s[..., 0], MIN_SHARE)
        predicted = np.exp(f[:, out])
        width = predicted * np.sqrt(variance[:, None] * share**2 + leverage)
        # log density of the bits; adding log |d bits / d log loss| makes it one of the log loss.
        density = stats.t.logpdf((learned_bits[:, out] - predicted) / width, freedom[:, None]) - np.log(width)
        densities[:, out] = (density + np.log(np.maximum(slopes_bits[:, out], 1e-300))) / np.log(2)
    return densities
