"""Robust fits of log learned bits = log smooth-min(scale P^gamma, H), single or in batches of thousands.

    u = X beta + gamma x,  x = log(P / P0)        log capacity, with a column of X for each arm
    f = -log(exp(-s u) + exp(-s h)) / s           log of the smooth minimum of capacity and data, h = log H

The parameters are theta = (beta_1 .. beta_q, gamma, log s). The objective is a *summed* Huber loss of log residuals in
units of the noise, plus the squared distance to declared priors. An averaged loss would let optimisers stop too early
[2404.10102]. The batch is the leading dimension of arrays: theta (B, q + 2), weights (B, n), y (n,) or (B, n). See
docs/science.md#fit.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]

HUBER_DELTA = 2.0
"""Limit of the quadratic range of the Huber loss in units of the noise, for many trials; see `Problem.delta`. The fit is
then 99 % efficient for normal residuals."""
SHARPNESS_PRIOR = (np.log(8.0), 0.7)
"""Mean and standard deviation of log s. Trials far from the bend do not determine its sharpness."""
MAX_LOG = 700.0
"""Log of the data bits where the data are unlimited."""
MAX_LOG_SHARPNESS = 50.0
"""Bends of larger sharpness are corners. The optimiser tries such values in its first steps."""
MIN_NOISE = 1e-4
MAX_NOISE_UPDATES, NOISE_TOLERANCE = 12, 1e-2
"""The noise has settled when an update changes it by less than this share. A fit ends after so many updates anyway."""
MAX_CONVERGED_STEP = 1e-3
"""A fit has converged if every element of the next Newton step is smaller than this."""
ELEMENTS_AT_ONCE = 1_000_000
REFIT_ITERATIONS = 12
MIN_STEP = 1e-5
"""Newton iterations stop at smaller steps than this, a thousandth of any noise of interest."""
EXACT_REFITS_UP_TO = 300
"""Number of trials above which a refit with other weights is a single Newton step, with a relative error of about
1 / trials."""


class Prior(NamedTuple):
    """Mean and inverse variance of a normal prior of every element of theta; a precision of 0 means no prior."""

    mean: Floats
    precision: Floats

    @classmethod
    def of(
        cls,
        num_arms: int = 1,
        *,
        log_scale: tuple[float, float] | None = None,
        gamma: tuple[float, float] | None = None,
    ) -> "Prior":
        """Combine priors of log scale and gamma, as (mean, standard deviation), with that of the sharpness."""
        mean, precision = np.zeros(num_arms + 2), np.zeros(num_arms + 2)
        for index, normal in ((0, log_scale), (num_arms, gamma), (num_arms + 1, SHARPNESS_PRIOR)):
            if normal:
                mean[index], precision[index] = normal[0], normal[1] ** -2
        return cls(mean, precision)


@dataclass(frozen=True)
class Problem:
    """Data and priors of a fit to n trials."""

    log_bits: Floats
    """y, (n,) or (B, n)."""
    log_params: Floats
    """x, (n,)."""
    log_data_bits: Floats
    """h, (n,)."""
    arms: Floats
    """X, (n, q); the first column is 1."""
    prior: Prior
    free: tuple[int, ...]
    """Indices of the elements of theta that are fitted; the others keep their initial values."""

    @property
    def num_trials(self) -> int:
        """Number of trials n."""
        return len(self.log_params)

    @property
    def delta(self) -> float:
        """Residual in units of the noise at which the loss becomes linear.

        It is larger for few trials, whose noise is uncertain: among four, one often looks like an outlier. With a limit
        of 2 for four trials, the 95 % interval of their mean would hold the truth in only 86 %.
        """
        return HUBER_DELTA * (1 + (6 / max(self.num_trials - len(self.free), 1)) ** 2)

    def with_bits(self, log_bits: Floats) -> "Problem":
        """Return the problem with other log learned bits of the same trials."""
        return replace(self, log_bits=log_bits)

    def with_free(self, free: tuple[int, ...]) -> "Problem":
        """Return the problem with other elements of theta fitted."""
        return replace(self, free=free)

    def predict(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return f (..., n) and df/dtheta (..., n, q + 2) for theta (..., q + 2)."""
        q = self.arms.shape[1]
        sharpness = np.exp(np.clip(theta[..., q + 1, None], -MAX_LOG_SHARPNESS, MAX_LOG_SHARPNESS))
        u = theta[..., :q] @ self.arms.T + theta[..., q, None] * self.log_params
        distance = np.clip(sharpness * (self.log_data_bits - u), -MAX_LOG, MAX_LOG)
        # With d = s (h - u), f = u - log(1 + exp(-d)) / s. The logarithm is split so that exp cannot overflow.
        bend = np.log1p(np.exp(-np.abs(distance))) + np.maximum(-distance, 0.0)
        f = u - bend / sharpness
        # df/du = sigmoid(d): near 1 where capacity limits a trial, near 0 where its data do.
        share = 1 / (1 + np.exp(-distance))
        slopes = np.empty((*f.shape, q + 2))
        slopes[..., :q] = share[..., None] * self.arms
        slopes[..., q] = share * self.log_params
        # df/dlog s = log(1 + exp(-d)) / s + (1 - sigmoid(d)) (h - u)
        slopes[..., q + 1] = bend / sharpness + (1 - share) * np.maximum(self.log_data_bits - u, -MAX_LOG)
        return f, slopes

    def objective(self, theta: Floats, weights: Floats, noise: Floats) -> Floats:
        """Return the weighted Huber loss plus the prior term, (...): minus the log posterior up to a constant."""
        r = (self.log_bits - self.predict(theta)[0]) / noise[..., None]
        huber = np.where(np.abs(r) <= self.delta, r**2 / 2, self.delta * (np.abs(r) - self.delta / 2))
        objective: Floats = (weights * huber).sum(-1) + (self.prior.precision * (theta - self.prior.mean) ** 2).sum(
            -1
        ) / 2
        return objective

    def newton_step(self, theta: Floats, weights: Floats, noise: Floats) -> Floats:
        """Return the step (..., q + 2) that solves (J'WJ + prior) step = J'Wr + prior (mean - theta).

        W are the trials' weights times the Huber weights min(1, delta / |r|), as in iteratively reweighted least squares.
        The second derivatives of f are neglected (Gauss-Newton).
        """
        f, slopes = self.predict(theta)
        r = (self.log_bits - f) / noise[..., None]
        robust = weights * np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-12)) / noise[..., None] ** 2
        free = list(self.free)
        j = slopes[..., free]
        weighted = j * robust[..., None]
        matrix = np.swapaxes(weighted, -1, -2) @ j
        gradient = (weighted * (self.log_bits - f)[..., None]).sum(-2)
        return self._solve_step(theta, matrix, gradient)

    def _solve_step(self, theta: Floats, matrix: Floats, gradient: Floats) -> Floats:
        """Return the step of the free elements for the data's curvature and gradient; elements are clipped to 1."""
        free = list(self.free)
        mean, precision = self.prior.mean[free], self.prior.precision[free]
        matrix = matrix + np.diag(precision)
        gradient = gradient - precision * (theta[..., free] - mean)
        # A small ridge keeps the matrix regular. A parameter that neither trials nor priors determine does not move.
        scale = np.einsum("...ii->...i", matrix).max(-1)[..., None, None]
        matrix = matrix + 1e-9 * np.maximum(scale, 1e-12) * np.eye(len(free))
        step = np.zeros_like(theta)
        step[..., free] = np.clip(np.linalg.solve(matrix, gradient[..., None])[..., 0], -1.0, 1.0)
        return step


@dataclass(frozen=True)
class Fit:
    """Parameters that minimise a problem's objective, with the noise."""

    problem: Problem
    theta: Floats
    """(q + 2,), or (B, q + 2)."""
    noise: Floats
    """Robust standard deviation of log residuals, () or (B,)."""
    converged: bool = True

    @property
    def residuals(self) -> Floats:
        """Log of learned bits over predicted bits, (..., n)."""
        return self.problem.log_bits - self.problem.predict(self.theta)[0]

    def refit(self, weights: Floats) -> Floats:
        """Refit with other weights (B, n) of the same trials, starting from this fit, and return theta (B, q + 2).

        All refits start from the same theta and therefore share residuals and derivatives. So the first Newton step
        takes only a few matrix products with the weights for the whole batch.
        """
        problem, noise = self.problem, self.noise
        f, slopes = problem.predict(self.theta)
        r = (problem.log_bits - f) / noise
        # The second derivative of the Huber loss is 0 beyond delta. The Huber weights of `newton_step` overestimate the
        # curvature there, so their steps are too short. Iterations correct that, but a single step must not have it.
        curved = (np.abs(r) <= problem.delta) / noise**2
        free = list(problem.free)
        j = slopes[:, free]
        products = (curved[:, None, None] * j[:, :, None] * j[:, None, :]).reshape(len(j), -1)
        scores = np.clip(r, -problem.delta, problem.delta)[:, None] / noise * j
        weights = np.asarray(weights, dtype=float)
        matrix = (weights @ products).reshape(len(weights), len(free), len(free))
        start = np.broadcast_to(self.theta, (len(weights), len(self.theta)))
        theta = start + problem._solve_step(start, matrix, weights @ scores)
        if problem.num_trials > EXACT_REFITS_UP_TO:
            return theta
        return descend(problem, theta, weights, np.broadcast_to(noise, len(weights)))


def descend(problem: Problem, theta: Floats, weights: Floats, noise: Floats) -> Floats:
    """Take Newton steps for a batch of fits, in chunks of bounded memory, until they have converged."""
    theta = np.array(theta)
    rows = max(1, ELEMENTS_AT_ONCE // problem.num_trials)
    batched_bits = problem.log_bits.ndim > 1
    for begin in range(0, len(theta), rows):
        part = slice(begin, begin + rows)
        piece = problem.with_bits(problem.log_bits[part]) if batched_bits else problem
        for _ in range(REFIT_ITERATIONS):
            step = piece.newton_step(theta[part], weights[part], noise[part])
            theta[part] += step
            if np.abs(step).max(initial=0.0) < MIN_STEP:
                break
    return theta


def estimate_noise(problem: Problem, theta: Floats, weights: Floats) -> Floats:
    """Return the standard deviation of log capacities (...) from the weighted median of absolute residuals.

    The learned bits of a trial that is limited by its data do not depend on its capacity and do not show its noise. So
    each trial is weighted by df/du, the derivative of its log bits by its log capacity. The factor 1.4826 makes the
    median absolute deviation consistent for normal residuals.
    """
    f, slopes = problem.predict(theta)
    counted = weights * slopes[..., 0]
    n, num_fitted = counted.sum(-1), len(problem.free)
    middle = _weighted_median(np.abs(problem.log_bits - f), counted)
    noise: Floats = np.maximum(1.4826 * middle * np.sqrt(n / np.maximum(n - num_fitted, 0.5)), MIN_NOISE)
    return noise


def _weighted_median(values: Floats, weights: Floats) -> Floats:
    order = np.argsort(values, axis=-1)
    cumulated = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    index = (cumulated >= cumulated[..., -1:] / 2).argmax(-1)
    return np.take_along_axis(np.take_along_axis(values, order, -1), index[..., None], -1)[..., 0]


def fit(problem: Problem) -> Fit:
    """Minimise the objective with L-BFGS from 18 starts, then polish the best result with Newton steps.

    The objective depends on the noise and the noise on the residuals, so both are alternated until the noise settles.
    """
    q, n = problem.arms.shape[1], problem.num_trials
    ones = np.ones(n)
    level = float(np.median(problem.log_bits - problem.log_params))
    starts, free = [], list(problem.free)
    for shift, gamma, sharpness in product((-0.5, 0.0, 0.5), (0.7, 1.0, 1.3), (4.0, 12.0)):
        theta = np.zeros(q + 2)
        theta[0], theta[q], theta[q + 1] = level + shift, gamma if q in problem.free else 1.0, np.log(sharpness)
        starts.append(theta)
    starts = list({tuple(theta[free]): theta for theta in starts}.values())  # starts that differ where theta is free
    # The first noise is that of residuals from the median level, which outliers hardly move.
    noise = estimate_noise(problem, min(starts, key=lambda start: abs(start[0] - level)), ones)
    best = starts[0]
    for _ in range(MAX_NOISE_UPDATES):
        found = [_lbfgs(problem, start, free, noise) for start in starts]
        _, best = min(found, key=lambda outcome: outcome[0])
        starts = [best]
        previous, noise = noise, estimate_noise(problem, best, ones)
        if abs(noise / previous - 1) < NOISE_TOLERANCE:
            break
    polished = descend(problem, best[None], ones[None], noise[None])[0]
    if problem.objective(polished, ones, noise) <= problem.objective(best, ones, noise):
        best = polished
    settled = bool(np.abs(problem.newton_step(best, ones, noise)).max() < MAX_CONVERGED_STEP)
    return Fit(problem, best, noise, settled)


def _lbfgs(problem: Problem, start: Floats, free: list[int], noise: Floats) -> tuple[float, Floats]:
    """Minimise over the free elements from one start; return the objective and theta."""
    ones = np.ones(problem.num_trials)

    def objective(values: Floats) -> tuple[float, Floats]:
        theta = start.copy()
        theta[free] = values
        f, slopes = problem.predict(theta)
        r = (problem.log_bits - f) / noise
        psi = np.clip(r, -problem.delta, problem.delta) / noise
        prior_gradient = problem.prior.precision * (theta - problem.prior.mean)
        gradient = -(psi[:, None] * slopes).sum(0) + prior_gradient
        return float(problem.objective(theta, ones, noise)), gradient[free]

    outcome = minimize(objective, start[free], jac=True, method="L-BFGS-B", options={"maxiter": 500})
    theta = start.copy()
    theta[free] = outcome.x
    return float(outcome.fun), theta


def fit_many(problem: Problem, weights: Floats) -> Fit:
    """Fit each row of y (B, n) with its weights (B, n), by Newton steps from a robust start instead of L-BFGS."""
    q, num = problem.arms.shape[1], len(problem.log_bits)
    theta = np.zeros((num, q + 2))
    theta[:, 0] = _weighted_median(problem.log_bits - problem.log_params, weights)
    theta[:, q], theta[:, q + 1] = 1.0, SHARPNESS_PRIOR[0]
    noise = estimate_noise(problem, theta, weights)
    for _ in range(3):
        theta = descend(problem, theta, weights, noise)
        noise = estimate_noise(problem, theta, weights)
    return Fit(problem, theta, noise)
