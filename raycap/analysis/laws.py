"""Scaling laws across trials: bits per parameter, the exponent, and ratios between arms, with intervals and status.

Two laws are fitted (docs/science.md#two-laws). The proportional law, learned_bits = alpha P, is fitted to
capacity-limited trials, and alpha is the headline number. The power law, learned_bits = smooth-min(C (P / P0)^gamma, H),
is fitted to all trials that learned something. It bends where the data H are exhausted, so exhausted trials need not be
left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.analysis.fitting import MAX_LOG, Fit, Floats, Prior, Problem, fit
from raycap.analysis.intervals import NOTHING, Interval, Resamples, profile
from raycap.analysis.outliers import find_outliers

NUM_RESAMPLES = 4_000
MIN_SIZE_RATIO = 1.5
"""A law needs models whose parameters differ by at least this factor."""
GAMMA_RANGE = (-1.0, 3.0)
"""Learned bits that fall faster than 1 / P or grow faster than P^3 are a failed fit and no law."""


class FitStatus(StrEnum):
    """Outcome of a fit: what it gives an estimate and an interval of."""

    OK = "ok"
    """There are an estimate and an interval."""
    TOO_FEW = "too few cells"
    """There are too few cells for an interval: there is only an estimate."""
    ONE_SIZE = "one size"
    """The largest model is less than `MIN_SIZE_RATIO` times the smallest, so there is no law."""
    UNDETERMINED = "exponent undetermined"
    """The exponent is outside `GAMMA_RANGE` or its interval is wider than that: the data do not determine it."""
    NOT_CONVERGED = "not converged"
    """The optimiser did not converge, so there is no estimate."""
    NO_TRIALS = "no trials"
    """No trial enters the law, so there is no estimate."""


@dataclass(frozen=True)
class Point:
    """A trial as a data point of a law."""

    trial_id: str
    cell: int
    """Index of its cell. Trials of one cell differ only in their seeds."""
    num_params: int
    learned_bits: float
    dataset_bits: float
    capacity_limited: bool
    """Whether its data were not exhausted."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """Values of the compared axes, by axis."""


@dataclass(frozen=True)
class PowerLaw:
    """learned_bits = smooth-min(C (P / P0)^gamma, H). NaN where there is no number; `status` says why."""

    status: FitStatus
    bits_per_param: Interval
    """C / P0: the capacity at the reference size, divided by that size."""
    gamma: Interval
    """Exponent, with the interval of the bootstrap over cells."""
    profile: tuple[float, float]
    """95 % interval of gamma by its profile likelihood, adjusted for the correlation within cells."""
    sharpness: float
    """Sharpness s of the bend; the larger, the closer to a corner."""
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
    fit: Fit | None = None
    """None where there is no estimate."""

    def learned_bits(self, num_params: Floats, dataset_bits: Floats | float = np.inf) -> Floats:
        """Return the learned bits that the law predicts at some sizes."""
        return np.exp(self._problem(num_params, dataset_bits).predict(self.theta)[0])

    def band(self, num_params: Floats, dataset_bits: Floats | float = np.inf) -> tuple[Floats, Floats]:
        """Return the ends of the pointwise 95 % band of the law at some sizes. `resamples` must not be None."""
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


class ArmRatio(NamedTuple):
    """Ratio of the capacity under one value of a compared axis to that under its most frequent value, all else equal."""

    name: str
    value: str
    baseline: str
    ratio: Interval
    num_trials: int


@dataclass(frozen=True)
class Law:
    """Both laws and the ratios between arms under one reading."""

    status: FitStatus
    """Status of alpha."""
    alpha: Interval
    """Bits per parameter: learned_bits = alpha P over capacity-limited trials."""
    noise: float
    """Robust standard deviation of log residuals of the proportional law."""
    num_trials: int
    """Number of capacity-limited trials."""
    num_cells: int
    power: PowerLaw
    ratios: tuple[ArmRatio, ...]
    outliers: Mapping[str, float]
    """Learned bits over those that the law without them predicts, by trial_id, for trials that noise does not explain, the
    largest first. They are in the laws, and the intervals are wider for them."""
    excluded: Mapping[str, str]
    """Reason why a trial does not enter the proportional law, or neither law, by trial_id."""


def fit_law(
    points: Sequence[Point],
    excluded: Mapping[str, str],
    *,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    choice_bias: float = 0.0,
) -> Law:
    """Fit both laws and the ratios between arms. See `raycap.analysis.intervals` for the intervals.

    Args:
        points: trials with positive learned bits. Trials in `excluded` are not among them, except those with exhausted
            data, which enter the power law only.
        excluded: reasons by trial_id, copied to the result.
        rng: generator of the resamples.
        num_resamples: number of bootstrap resamples.
        choice_bias: largest bias of a cell that was chosen because it learned most, in standard deviations of a trial. The
            interval of alpha begins lower by as much.
    """
    limited = [point for point in points if point.capacity_limited]
    alpha, status, noise, proportional = _proportional(limited, rng, num_resamples)
    alpha = alpha._replace(low=alpha.low * float(np.exp(-choice_bias * noise)) if choice_bias else alpha.low)
    power = _power(points, rng, num_resamples)
    outliers = _outliers(points, power.fit) if power.fit else _outliers(limited, proportional)
    return Law(
        status=status,
        alpha=alpha,
        noise=noise,
        num_trials=len(limited),
        num_cells=len({point.cell for point in limited}),
        power=power,
        ratios=_ratios(limited, rng, num_resamples),
        outliers=outliers,
        excluded=dict(excluded),
    )


def _problem(points: Sequence[Point], arms: Floats, free: tuple[int, ...], *, bends: bool) -> tuple[Problem, float]:
    """Return the problem of a law and log P0. Unless it `bends`, the data are taken to be unlimited.

    Sizes are centred on P0, their geometric mean, which makes the estimates of scale and exponent nearly uncorrelated.
    """
    log_params = np.log([point.num_params for point in points])
    reference = float(log_params.mean())
    data = np.log([point.dataset_bits for point in points]) if bends else np.full(len(points), MAX_LOG)
    log_bits = np.log([point.learned_bits for point in points])
    return Problem(log_bits, log_params - reference, data, arms, Prior.of(arms.shape[1]), free), reference


def _proportional(
    points: Sequence[Point], rng: np.random.Generator, num_resamples: int
) -> tuple[Interval, FitStatus, float, Fit | None]:
    """Return alpha, its status, the noise and the fit of the proportional law: the power law with gamma = 1, no bend."""
    if not points:
        return NOTHING, FitStatus.NO_TRIALS, np.nan, None
    if _size_ratio(points) < MIN_SIZE_RATIO:
        return NOTHING, FitStatus.ONE_SIZE, np.nan, None
    problem, reference = _problem(points, np.ones((len(points), 1)), (0,), bends=False)
    found = fit(problem)
    if not found.converged:
        return NOTHING, FitStatus.NOT_CONVERGED, np.nan, None
    alpha = float(np.exp(found.theta[0] - reference))
    cells = _cells(points)
    if cells.max() < 2:  # a variance between two cells has one degree of freedom: no useful interval
        return Interval(alpha, np.nan, np.nan), FitStatus.TOO_FEW, float(found.noise), found
    low, high = Resamples.of(found, cells, num_resamples, rng=rng).interval(lambda theta: theta - reference)
    return Interval(alpha, float(np.exp(low[0])), float(np.exp(high[0]))), FitStatus.OK, float(found.noise), found


def _power(points: Sequence[Point], rng: np.random.Generator, num_resamples: int) -> PowerLaw:
    """Fit the power law that is bent by the data."""
    cells = _cells(points)
    num_cells = int(cells.max(initial=-1)) + 1

    def without_estimate(status: FitStatus) -> PowerLaw:
        return PowerLaw(status, NOTHING, NOTHING, (np.nan, np.nan), np.nan, np.nan, np.nan, len(points), num_cells)

    if not points:
        return without_estimate(FitStatus.NO_TRIALS)
    if _size_ratio(points) < MIN_SIZE_RATIO:
        return without_estimate(FitStatus.ONE_SIZE)
    problem, reference = _problem(points, np.ones((len(points), 1)), (0, 1, 2), bends=True)
    found = fit(problem)
    if not found.converged:
        return without_estimate(FitStatus.NOT_CONVERGED)
    status = FitStatus.OK if num_cells > 2 else FitStatus.TOO_FEW
    resamples, by_profile = None, (np.nan, np.nan)
    estimates = float(np.exp(found.theta[0] - reference)), float(found.theta[1])
    if not GAMMA_RANGE[0] <= estimates[1] <= GAMMA_RANGE[1]:
        return without_estimate(FitStatus.UNDETERMINED)
    if status is FitStatus.OK:
        resamples = Resamples.of(found, cells, num_resamples, rng=rng)
        low, high = resamples.interval(lambda theta: theta)
        bits_per_param = Interval(estimates[0], float(np.exp(low[0] - reference)), float(np.exp(high[0] - reference)))
        gamma = Interval(estimates[1], float(low[1]), float(high[1]))
        if high[1] - low[1] > GAMMA_RANGE[1] - GAMMA_RANGE[0]:
            return without_estimate(FitStatus.UNDETERMINED)
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
        found,
    )


def _outliers(points: Sequence[Point], found: Fit | None) -> dict[str, float]:
    """Return learned over predicted bits of the outliers of a fit, by trial_id."""
    if found is None:
        return {}
    return {points[index].trial_id: float(np.exp(log)) for index, log in find_outliers(found, _cells(points)).items()}


def _ratios(points: Sequence[Point], rng: np.random.Generator, num_resamples: int) -> tuple[ArmRatio, ...]:
    """Return the ratios of capacities between arms (docs/science.md#arms).

    One proportional law is fitted to all trials, with a factor for every value of every covariate except its most
    frequent one, so that each ratio is adjusted for the other covariates. Nothing is returned if no covariate varies, if
    the covariates are collinear, or if there are fewer than two cells more than parameters.
    """
    names = list(dict.fromkeys(name for point in points for name in point.arms))
    columns, coded = [np.ones(len(points))], []
    for name in names:
        values = [point.arms[name] for point in points]
        frequent = sorted(set(values), key=lambda value: (-values.count(value), value))
        for value in frequent[1:]:
            columns.append(np.array([other == value for other in values], dtype=float))
            coded.append((name, value, frequent[0], values.count(value)))
    design = np.stack(columns, axis=1) if points else np.ones((0, 1))
    cells = _cells(points)
    if not coded or np.linalg.matrix_rank(design) < design.shape[1] or cells.max() + 1 < design.shape[1] + 2:
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
        ArmRatio(name, value, baseline, Interval(float(ratios[i]), float(low[i]), float(high[i])), num)
        for i, (name, value, baseline, num) in enumerate(coded, start=1)
    )


def _size_ratio(points: Sequence[Point]) -> float:
    """Return the parameters of the largest model divided by those of the smallest."""
    sizes = [point.num_params for point in points]
    return max(sizes) / min(sizes)


def _cells(points: Sequence[Point]) -> NDArray[np.int64]:
    """Return the index of each point's cell, renumbered from 0 without gaps, (n,)."""
    return np.unique([point.cell for point in points], return_inverse=True)[1].astype(np.int64)
