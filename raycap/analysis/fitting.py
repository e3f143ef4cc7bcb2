"""Fits of log learned bits = log smooth-min(scale P^gamma, H), one or thousands at once.

    u = X beta + gamma x,  x = log(P / P0)        log capacity, with a column of X for each arm
    f = -log(exp(-s u) + exp(-s h)) / s           log of the smooth minimum of capacity and data, h = log H

theta = (beta_1 .. beta_q, gamma, log s). The objective is a *summed* Huber loss of log residuals in units of the noise
(an averaged one stops optimisers early: arXiv 2404.10102), plus the squared distance to declared priors. Arrays lead
with the batch: theta (B, q + 2), weights (B, n), y (n,) or (B, n).
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]

HUBER_DELTA = 2.0
"""In units of the noise: 99 % efficient for normal residuals. Few trials cannot tell what is an outlier: see `delta`."""
SHARPNESS_PRIOR = (np.log(8.0), 0.7)
"""Mean and deviation of log s. Where no trial is near the bend nothing else says how sharp it is."""
MAX_LOG = 700.0
"""Log of the data bits where data never run out."""
MIN_NOISE = 1e-4
SETTLED = 1e-3
"""A fit has converged if Newton's next step would be shorter than this."""
ELEMENTS_AT_ONCE = 1_000_000
REFIT_ITERATIONS = 12
STANDSTILL = 1e-5
"""Newton stops at steps shorter than this, a thousandth of any noise of interest."""
EXACT_REFITS_UP_TO = 300
"""Trials. Beyond, a refit that leaves out or repeats some of them is one Newton step, exact to 1 / trials."""


class Prior(NamedTuple):
    """Mean and inverse variance of every element of theta; 0 is no prior."""

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
        """Priors as (mean, standard deviation) of log scale and gamma, beside that of the sharpness."""
        mean, precision = np.zeros(num_arms + 2), np.zeros(num_arms + 2)
        for place, told in ((0, log_scale), (num_arms, gamma), (num_arms + 1, SHARPNESS_PRIOR)):
            if told:
                mean[place], precision[place] = told[0], told[1] ** -2
        return cls(mean, precision)


@dataclass(frozen=True)
class Problem:
    """What is fitted: n trials."""

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
    """Places of theta that are fitted; the others stay as they start."""

    @property
    def num_trials(self) -> int:
        """n."""
        return len(self.log_params)

    @property
    def delta(self) -> float:
        """Where the loss turns linear, in units of the noise: further out the fewer trials the noise is told from.

        Of four one often seems to lie outside; turned at 2 the 95 % interval of their mean would hold in 86 %.
        """
        return HUBER_DELTA * (1 + (6 / max(self.num_trials - len(self.free), 1)) ** 2)

    def with_bits(self, log_bits: Floats) -> "Problem":
        """The same trials with other learned bits."""
        return replace(self, log_bits=log_bits)

    def with_free(self, free: tuple[int, ...]) -> "Problem":
        """The same, other numbers fitted."""
        return replace(self, free=free)

    def predict(self, theta: Floats) -> tuple[Floats, Floats]:
        """f (..., n) and df/dtheta (..., n, q + 2) for theta (..., q + 2)."""
        q = self.arms.shape[1]
        sharpness = np.exp(theta[..., q + 1, None])
        u = theta[..., :q] @ self.arms.T + theta[..., q, None] * self.log_params
        distance = np.clip(sharpness * (self.log_data_bits - u), -MAX_LOG, MAX_LOG)
        # f = u - log(1 + exp(-s (h - u))) / s, and how much of its slope is that of u
        bend = np.log1p(np.exp(-np.abs(distance))) + np.maximum(-distance, 0.0)
        f = u - bend / sharpness
        share = 1 / (1 + np.exp(-distance))
        slopes = np.empty((*f.shape, q + 2))
        slopes[..., :q] = share[..., None] * self.arms
        slopes[..., q] = share * self.log_params
        slopes[..., q + 1] = bend / sharpness + (1 - share) * np.maximum(self.log_data_bits - u, -MAX_LOG)
        return f, slopes

    def objective(self, theta: Floats, weights: Floats, noise: Floats) -> Floats:
        """Half of minus twice the log posterior but for constants, (...)."""
        r = (self.log_bits - self.predict(theta)[0]) / noise[..., None]
        huber = np.where(np.abs(r) <= self.delta, r**2 / 2, self.delta * (np.abs(r) - self.delta / 2))
        return (weights * huber).sum(-1) + (self.prior.precision * (theta - self.prior.mean) ** 2).sum(-1) / 2

    def newton_step(self, theta: Floats, weights: Floats, noise: Floats) -> Floats:
        """Change of theta: (J'WJ + prior) step = J'W psi, with the weights of the Huber loss; (..., q + 2)."""
        f, slopes = self.predict(theta)
        r = (self.log_bits - f) / noise[..., None]
        robust = weights * np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-12)) / noise[..., None] ** 2
        free = list(self.free)
        j = slopes[..., free]
        weighted = j * robust[..., None]
        matrix = np.swapaxes(weighted, -1, -2) @ j
        gradient = (weighted * (self.log_bits - f)[..., None]).sum(-2)
        return self._solved(theta, matrix, gradient)

    def _solved(self, theta: Floats, matrix: Floats, gradient: Floats) -> Floats:
        free = list(self.free)
        mean, precision = self.prior.mean[free], self.prior.precision[free]
        matrix = matrix + np.diag(precision)
        gradient = gradient - precision * (theta[..., free] - mean)
        # Where trials say nothing about a parameter, and no prior does, it stays.
        scale = np.einsum("...ii->...i", matrix).max(-1)[..., None, None]
        matrix = matrix + 1e-9 * np.maximum(scale, 1e-12) * np.eye(len(free))
        step = np.zeros_like(theta)
        step[..., free] = np.clip(np.linalg.solve(matrix, gradient[..., None])[..., 0], -1.0, 1.0)
        return step


@dataclass(frozen=True)
class Fit:
    """Where a problem's objective is least."""

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
        """theta (B, q + 2) with other weights (B, n) of the same trials, starting from this fit.

        The first Newton step shares its residuals, so that it is three matrix products for all of them.
        """
        problem, noise = self.problem, self.noise
        f, slopes = problem.predict(self.theta)
        r = (problem.log_bits - f) / noise
        # Newton's own curvature, 0 beyond delta: the weights of the Huber loss would step too short, which iterations
        # make good but a single step does not.
        curved = (np.abs(r) <= problem.delta) / noise**2
        free = list(problem.free)
        j = slopes[:, free]
        products = (curved[:, None, None] * j[:, :, None] * j[:, None, :]).reshape(len(j), -1)
        scores = np.clip(r, -problem.delta, problem.delta)[:, None] / noise * j
        weights = np.asarray(weights, dtype=float)
        matrix = (weights @ products).reshape(len(weights), len(free), len(free))
        start = np.broadcast_to(self.theta, (len(weights), len(self.theta)))
        theta = start + problem._solved(start, matrix, weights @ scores)
        if problem.num_trials > EXACT_REFITS_UP_TO:
            return theta
        return descend(problem, theta, weights, np.broadcast_to(noise, len(weights)))


def descend(problem: Problem, theta: Floats, weights: Floats, noise: Floats) -> Floats:
    """Newton steps for a batch of fits, chunk by chunk, until nothing moves."""
    theta = np.array(theta)
    rows = max(1, ELEMENTS_AT_ONCE // problem.num_trials)
    own_bits = problem.log_bits.ndim > 1
    for begin in range(0, len(theta), rows):
        part = slice(begin, begin + rows)
        piece = problem.with_bits(problem.log_bits[part]) if own_bits else problem
        for _ in range(REFIT_ITERATIONS):
            step = piece.newton_step(theta[part], weights[part], noise[part])
            theta[part] += step
            if np.abs(step).max(initial=0.0) < STANDSTILL:
                break
    return theta


def noise_at(problem: Problem, theta: Floats, weights: Floats) -> Floats:
    """Standard deviation of log capacities (...) by the weighted median of absolute residuals.

    Where data run out a trial's bits no longer move with its capacity and say nothing of its noise: trials count by how
    much they do.
    """
    f, slopes = problem.predict(theta)
    counted = weights * slopes[..., 0]
    n, num_fitted = counted.sum(-1), len(problem.free)
    middle = _weighted_median(np.abs(problem.log_bits - f), counted)
    return np.maximum(1.4826 * middle * np.sqrt(n / np.maximum(n - num_fitted, 0.5)), MIN_NOISE)


def _weighted_median(values: Floats, weights: Floats) -> Floats:
    order = np.argsort(values, axis=-1)
    cumulated = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    place = (cumulated >= cumulated[..., -1:] / 2).argmax(-1)
    return np.take_along_axis(np.take_along_axis(values, order, -1), place[..., None], -1)[..., 0]


def fit(problem: Problem) -> Fit:
    """The least objective found by L-BFGS from a grid of starts; the noise is estimated from its residuals and refined."""
    q, n = problem.arms.shape[1], problem.num_trials
    ones = np.ones(n)
    level = float(np.median(problem.log_bits - problem.log_params))
    starts = []
    for shift, gamma, sharpness in product((-0.5, 0.0, 0.5), (0.7, 1.0, 1.3), (4.0, 12.0)):
        theta = np.zeros(q + 2)
        theta[0], theta[q], theta[q + 1] = level + shift, gamma if q in problem.free else 1.0, np.log(sharpness)
        starts.append(theta)
    starts = list({tuple(theta): theta for theta in starts}.values())
    free = list(problem.free)
    noise = noise_at(problem, starts[0], ones)  # of a rough fit at first, so that the noise of a good one can be told
    best = starts[0]
    for _ in range(3):
        found = [_lbfgs(problem, start, free, noise) for start in starts]
        _, best = min(found, key=lambda told: told[0])
        starts = [best]
        noise = noise_at(problem, best, ones)
    polished = descend(problem, best[None], ones[None], noise[None])[0]
    if problem.objective(polished, ones, noise) <= problem.objective(best, ones, noise):
        best = polished
    settled = bool(np.abs(problem.newton_step(best, ones, noise)).max() < SETTLED)
    return Fit(problem, best, noise, settled)


def _lbfgs(problem: Problem, start: Floats, free: list[int], noise: Floats) -> tuple[float, Floats]:
    ones = np.ones(problem.num_trials)

    def told(values: Floats) -> tuple[float, Floats]:
        theta = start.copy()
        theta[free] = values
        f, slopes = problem.predict(theta)
        r = (problem.log_bits - f) / noise
        psi = np.clip(r, -problem.delta, problem.delta) / noise
        pull = problem.prior.precision * (theta - problem.prior.mean)
        gradient = -(psi[:, None] * slopes).sum(0) + pull
        return float(problem.objective(theta, ones, noise)), gradient[free]

    outcome = minimize(told, start[free], jac=True, method="L-BFGS-B", options={"maxiter": 500})
    theta = start.copy()
    theta[free] = outcome.x
    return float(outcome.fun), theta


def fit_many(problem: Problem, weights: Floats) -> Fit:
    """One fit for each row of y (B, n) and of weights: Newton's steps from a robust start instead of L-BFGS."""
    q, num = problem.arms.shape[1], len(problem.log_bits)
    theta = np.zeros((num, q + 2))
    theta[:, 0] = _weighted_median(problem.log_bits - problem.log_params, weights)
    theta[:, q], theta[:, q + 1] = 1.0, SHARPNESS_PRIOR[0]
    noise = noise_at(problem, theta, weights)
    for _ in range(3):
        theta = descend(problem, theta, weights, noise)
        noise = noise_at(problem, theta, weights)
    return Fit(problem, theta, noise)
