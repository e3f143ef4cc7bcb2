"""Laws across trials: bits per parameter, the exponent, and what arms change, with intervals, status and exclusions.

Two laws are fitted. The proportional one, learned_bits = alpha P, over capacity-limited trials: alpha is the headline.
And learned_bits = smooth-min(C (P / P0)^gamma, H) over all trials that learned something: H, the bits there are, bends it
where data run out, so no trial has to be left out for that, and gamma is free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.analysis.fitting import MAX_LOG, Floats, Prior, Problem, fit
from raycap.analysis.intervals import NOTHING, Interval, Resamples, profile

NUM_RESAMPLES = 4_000


class FitStatus(StrEnum):
    """How far a fit can be trusted."""

    OK = "ok"
    """There is an interval."""
    TOO_FEW = "too few cells"
    """Hardly more cells than numbers to fit: an estimate without an interval."""
    ONE_SIZE = "one size"
    """All models are of one size, so there is no exponent."""
    NOT_CONVERGED = "not converged"
    """The optimiser stopped early; no number is given."""
    NO_TRIALS = "no trials"
    """No trial enters: there is no number."""


@dataclass(frozen=True)
class Point:
    """A trial as a law sees it."""

    trial_id: str
    cell: int
    """Trials of one cell differ in nothing but seeds."""
    num_params: int
    learned_bits: float
    dataset_bits: float
    capacity_limited: bool
    """Whether its data were not exhausted."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """How it was made: layers, optimizer, precision, tying and the like, by name."""


@dataclass(frozen=True)
class PowerLaw:
    """learned_bits = smooth-min(C (P / P0)^gamma, H). NaN where there is no number; `status` says why."""

    status: FitStatus
    bits_per_param: Interval
    """C / P0: the capacity at the reference size over that size."""
    gamma: Interval
    """By the cluster bootstrap."""
    profile: tuple[float, float]
    """95 % interval of gamma by its profile likelihood, adjusted for clusters."""
    sharpness: float
    """s: large where capacity and data meet at a corner."""
    noise: float
    """Robust standard deviation of log residuals."""
    reference_params: float
    """P0, the geometric mean of the sizes."""
    num_trials: int
    num_cells: int
    residuals: Mapping[str, float] = field(default_factory=dict)
    """Log of learned over predicted bits by trial_id."""
    theta: Floats = field(default_factory=lambda: np.full(3, np.nan))
    resamples: Resamples | None = None
    """None where there are too few cells for an interval."""

    def learned_bits(self, num_params: Floats, dataset_bits: Floats | float = np.inf) -> Floats:
        """The law at some sizes."""
        return np.exp(self._problem(num_params, dataset_bits).predict(self.theta)[0])

    def band(self, num_params: Floats, dataset_bits: Floats | float = np.inf) -> tuple[Floats, Floats]:
        """95 % band of the law at some sizes. There must be resamples."""
        assert self.resamples is not None
        problem = self._problem(num_params, dataset_bits)
        low, high = self.resamples.interval(lambda theta: problem.predict(theta)[0])
        return np.exp(low), np.exp(high)

    def _problem(self, num_params: Floats, dataset_bits: Floats | float) -> Problem:
        num_params = np.asarray(num_params, dtype=float)
        with np.errstate(divide="ignore"):
            log_bits = np.minimum(np.log(np.broadcast_to(dataset_bits, num_params.shape)), MAX_LOG)
        x = np.log(num_params / self.reference_params)
        return Problem(log_bits, x, log_bits, np.ones((len(x), 1)), Prior.of(), (0, 1, 2))


class Arm(NamedTuple):
    """How much more trials of an arm store than those of the most frequent value, all else equal."""

    name: str
    value: str
    baseline: str
    ratio: Interval
    num_trials: int


@dataclass(frozen=True)
class Law:
    """What the trials say about bits per parameter, under one reading."""

    status: FitStatus
    """Of alpha."""
    alpha: Interval
    """Bits per parameter: learned_bits = alpha P over capacity-limited trials."""
    noise: float
    """Robust standard deviation of log residuals of the proportional law."""
    num_trials: int
    """Capacity-limited ones."""
    num_cells: int
    power: PowerLaw
    arms: tuple[Arm, ...]
    excluded: Mapping[str, str]
    """Why a trial enters neither law, or not the proportional one, by trial_id."""


def fit_law(
    points: Sequence[Point],
    excluded: Mapping[str, str],
    *,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> Law:
    """Both laws and the arms. Points must have positive learned_bits; trials in `excluded` are not among them, but those
    whose data are exhausted may be: they enter the power law alone.

    Intervals are those of a cluster bootstrap, cells and then seeds: see intervals.py.
    """
    limited = [point for point in points if point.capacity_limited]
    alpha, status, noise = _proportional(limited, rng, num_resamples)
    return Law(
        status=status,
        alpha=alpha,
        noise=noise,
        num_trials=len(limited),
        num_cells=len({point.cell for point in limited}),
        power=_power(points, rng, num_resamples),
        arms=_arms(limited, rng, num_resamples),
        excluded=dict(excluded),
    )


def _problem(points: Sequence[Point], arms: Floats, free: tuple[int, ...], *, bends: bool) -> tuple[Problem, float]:
    log_params = np.log([point.num_params for point in points])
    reference = float(log_params.mean())
    data = np.log([point.dataset_bits for point in points]) if bends else np.full(len(points), MAX_LOG)
    log_bits = np.log([point.learned_bits for point in points])
    return Problem(log_bits, log_params - reference, data, arms, Prior.of(arms.shape[1]), free), reference


def _proportional(
    points: Sequence[Point], rng: np.random.Generator, num_resamples: int
) -> tuple[Interval, FitStatus, float]:
    if not points:
        return NOTHING, FitStatus.NO_TRIALS, np.nan
    problem, reference = _problem(points, np.ones((len(points), 1)), (0,), bends=False)
    found = fit(problem)
    if not found.converged:
        return NOTHING, FitStatus.NOT_CONVERGED, np.nan
    alpha = float(np.exp(found.theta[0] - reference))
    cells = _cells(points)
    if cells.max() < 2:
        return Interval(alpha, np.nan, np.nan), FitStatus.TOO_FEW, float(found.noise)
    low, high = Resamples.of(found, cells, num_resamples, rng=rng).interval(lambda theta: theta - reference)
    return Interval(alpha, float(np.exp(low[0])), float(np.exp(high[0]))), FitStatus.OK, float(found.noise)


def _power(points: Sequence[Point], rng: np.random.Generator, num_resamples: int) -> PowerLaw:
    sizes = len({point.num_params for point in points})
    cells = _cells(points)
    num_cells = int(cells.max(initial=-1)) + 1

    def without(status: FitStatus) -> PowerLaw:
        return PowerLaw(status, NOTHING, NOTHING, (np.nan, np.nan), np.nan, np.nan, np.nan, len(points), num_cells)

    if not points:
        return without(FitStatus.NO_TRIALS)
    if sizes < 2:
        return without(FitStatus.ONE_SIZE)
    problem, reference = _problem(points, np.ones((len(points), 1)), (0, 1, 2), bends=True)
    found = fit(problem)
    if not found.converged:
        return without(FitStatus.NOT_CONVERGED)
    status = FitStatus.OK if num_cells > 2 else FitStatus.TOO_FEW
    resamples, by_profile = None, (np.nan, np.nan)
    estimates = float(np.exp(found.theta[0] - reference)), float(found.theta[1])
    if status is FitStatus.OK:
        resamples = Resamples.of(found, cells, num_resamples, rng=rng)
        low, high = resamples.interval(lambda theta: theta)
        bits_per_param = Interval(estimates[0], float(np.exp(low[0] - reference)), float(np.exp(high[0] - reference)))
        gamma = Interval(estimates[1], float(low[1]), float(high[1]))
        by_profile = profile(resamples, 1)
    else:
        bits_per_param, gamma = (Interval(estimate, np.nan, np.nan) for estimate in estimates)
    return PowerLaw(
        status,
        bits_per_param,
        gamma,
        by_profile,
        float(np.exp(found.theta[2])),
        float(found.noise),
        float(np.exp(reference)),
        len(points),
        num_cells,
        dict(zip((point.trial_id for point in points), found.residuals.tolist(), strict=True)),
        found.theta,
        resamples,
    )


def _arms(points: Sequence[Point], rng: np.random.Generator, num_resamples: int) -> tuple[Arm, ...]:
    """Ratios of capacities between arms, from one proportional law with a factor for each value that differs."""
    names = list(dict.fromkeys(name for point in points for name in point.arms))
    columns, told = [np.ones(len(points))], []
    for name in names:
        values = [point.arms[name] for point in points]
        frequent = sorted(set(values), key=lambda value: (-values.count(value), value))
        for value in frequent[1:]:
            columns.append(np.array([own == value for own in values], dtype=float))
            told.append((name, value, frequent[0], values.count(value)))
    design = np.stack(columns, axis=1) if points else np.ones((0, 1))
    cells = _cells(points)
    if not told or np.linalg.matrix_rank(design) < design.shape[1] or cells.max() + 1 < design.shape[1] + 2:
        return ()
    problem, _ = _problem(points, design, tuple(range(design.shape[1])), bends=False)
    found = fit(problem)
    if not found.converged:
        return ()
    low, high = (
        np.exp(end) for end in Resamples.of(found, cells, num_resamples, rng=rng).interval(lambda theta: theta)
    )
    ratios = np.exp(found.theta)
    return tuple(
        Arm(name, value, baseline, Interval(float(ratios[i]), float(low[i]), float(high[i])), num)
        for i, (name, value, baseline, num) in enumerate(told, start=1)
    )


def _cells(points: Sequence[Point]) -> NDArray[np.int64]:
    """Cells numbered from 0."""
    return np.unique([point.cell for point in points], return_inverse=True)[1].astype(np.int64)
