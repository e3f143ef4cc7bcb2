"""Comparison of readings: predictive scores, a paired bootstrap of their differences, stacking and constancy.

Under the right reading bits per parameter are constant (docs/science.md#comparison). So each reading is a model of the
loss: it predicts learned bits as smooth-min(C (P / P0)^gamma, H), and the rest of the code length is lost. Each is fitted
without a cell (or without all models of one size) and scored by the density that it predicts for the losses left out.
All readings are scored on the same trials and the same losses, so their scores are comparable. The readings and the
decision rule are declared before any result is seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raycap.analysis.fitting import Floats
from raycap.analysis.intervals import Interval
from raycap.analysis.readings import Reading
from raycap.analysis.scoring import cell_folds, cell_means, predictive_bits

NUM_RESAMPLES = 4_000
LEVEL = 0.05
MARGIN = 0.1
"""Bits per parameter count as constant in a quantity if the exponent is within this of 0: 7 % for a doubling."""
MIN_CELLS = 4
Ints = NDArray[np.int64]


class Verdict(StrEnum):
    """Result of the comparison of one reading with another."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


class Constancy(StrEnum):
    """Result of the test whether bits per parameter change with a quantity."""

    CONSTANT = "constant"
    """The 90 % interval of the exponent lies within the margin (two one-sided tests at 5 %)."""
    VARIES = "varies"
    """The 95 % interval of the exponent excludes 0."""
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Evidence:
    """Data that all readings are compared on: n trials that are neither exhausted nor ignorant."""

    num_params: Floats
    """Parameters of each trial. This and all other arrays have shape (n,)."""
    cells: Ints
    factors: dict[str, Floats]
    """Values of what else the sweep may vary, such as N and 1 + R, by name."""
    learned_bits: dict[Reading, Floats]
    """Learned bits; they may be negative."""
    dataset_bits: dict[Reading, Floats]
    slopes_bits: dict[Reading, Floats]
    """|d learned bits / d log loss|: decrease of learned bits as all losses are scaled, per unit of the log factor."""

    @property
    def sizes(self) -> Ints:
        """Index of each trial's size, from 0 for the smallest."""
        return np.unique(self.num_params, return_inverse=True)[1].astype(np.int64)


class Pair(NamedTuple):
    """Comparison of two readings."""

    one: Reading
    other: Reading
    difference_bits: Interval
    """Mean difference (`one` less `other`) of log2 predictive scores per cell left out, with its 95 % interval."""
    p_value: float
    """p-value of no difference, with Holm's correction over all pairs."""
    difference_by_size_bits: float
    """Mean difference with all models of one size left out; NaN if there is only one size."""
    verdict: Verdict
    """Verdict on `one`."""


class Trend(NamedTuple):
    """Exponent of bits per parameter as a function of a quantity."""

    reading: Reading
    quantity: str
    exponent: Interval
    constancy: Constancy


@dataclass(frozen=True)
class Comparison:
    """Scores of the readings, tests of all pairs, and trends."""

    readings: tuple[Reading, ...]
    """Readings that differ on these trials."""
    same: dict[Reading, Reading]
    """Readings that are equivalent to an earlier one on these trials, and that earlier one."""
    num_trials: int
    num_cells: int
    num_sizes: int
    scores_bits: dict[Reading, float]
    """Mean log2 predictive density of a cell that is left out."""
    scores_by_size_bits: dict[Reading, float]
    """Mean log2 predictive density of a cell with all models of its size left out."""
    weights: dict[Reading, float]
    """Stacking weights: the mixture of readings that predicts best."""
    pairs: tuple[Pair, ...]
    trends: tuple[Trend, ...]

    @property
    def best(self) -> Reading | None:
        """Reading that is better than every other, or None if undecided."""
        return best_of(self.pairs)

    @property
    def ahead(self) -> Reading | None:
        """Reading with the best score, whether or not the difference is significant."""
        return max(self.scores_bits, key=lambda reading: self.scores_bits[reading], default=None)


def compare_readings(
    evidence: Evidence,
    *,
    rng: np.random.Generator,
    log_scale: tuple[float, float] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Score every reading, test every pair, and test each reading for constancy.

    A pair is decided if its difference is significant at 5 % after Holm's correction and has the same sign with all
    models of one size left out. With fewer than four cells nothing is decided.

    Args:
        evidence: the trials.
        rng: random generator.
        log_scale: calibration: mean and standard deviation of log bits per parameter, from data whose code length is
            the same under all readings.
        num_resamples: number of bootstrap resamples.
    """
    distinct, same = distinct_readings(evidence.learned_bits, evidence.dataset_bits)
    cells = np.unique(evidence.cells, return_inverse=True)[1].astype(np.int64)
    num_cells, num_sizes = int(cells.max(initial=-1)) + 1, len(set(evidence.num_params.tolist()))
    enough = num_cells >= MIN_CELLS and len(distinct) > 0
    folds = cell_folds(cells, rng)
    by_cell = {r: _cell_scores(evidence, r, cells, folds, log_scale) for r in distinct} if enough else {}
    sized = enough and num_sizes > 1
    by_size = {r: _cell_scores(evidence, r, cells, evidence.sizes, log_scale) for r in distinct} if sized else {}
    scores = np.array(list(by_cell.values()))
    pairs = compare_pairs(
        tuple(by_cell), scores, np.array(list(by_size.values())), rng=rng, num_resamples=num_resamples
    )
    weights = stacking(scores) if by_cell else np.empty(0)
    return Comparison(
        tuple(distinct),
        same,
        len(cells),
        num_cells,
        num_sizes,
        {r: float(scores.mean()) for r, scores in by_cell.items()},
        {r: float(scores.mean()) for r, scores in by_size.items()},
        dict(zip(by_cell, weights.tolist(), strict=True)),
        pairs,
        tuple(trend for reading in distinct for trend in _trends(evidence, reading, cells)) if enough else (),
    )


def compare_pairs(
    readings: tuple[Reading, ...],
    by_cell: Floats,
    by_size: Floats,
    *,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[Pair, ...]:
    """Test every pair of readings.

    Args:
        readings: readings that differ.
        by_cell: scores with single cells left out, (readings, cells).
        by_size: scores with all models of one size left out, (readings, cells); empty if there is only one size.
        rng: random generator.
        num_resamples: number of bootstrap resamples.
    """
    indices = [(i, j) for i in range(len(readings)) for j in range(i + 1, len(readings))]
    differences = np.array([by_cell[i] - by_cell[j] for i, j in indices])
    p_values, intervals = paired_bootstrap(differences, rng=rng, num_resamples=num_resamples)
    pairs = []
    for (i, j), difference, p, (low, high) in zip(indices, differences, holm(p_values), intervals, strict=True):
        mean = float(difference.mean())
        mean_by_size = float((by_size[i] - by_size[j]).mean()) if len(by_size) else np.nan
        # A reading can predict well between known sizes and badly beyond them. Then the pair stays undecided.
        decided = p < LEVEL and (not len(by_size) or mean_by_size * mean > 0)
        verdict = Verdict.UNDECIDED if not decided else Verdict.BETTER if mean > 0 else Verdict.WORSE
        interval = Interval(mean, float(low), float(high))
        pairs.append(Pair(readings[i], readings[j], interval, float(p), mean_by_size, verdict))
    return tuple(pairs)


def best_of(pairs: tuple[Pair, ...]) -> Reading | None:
    """Return the reading that is better than every other, or None if undecided."""
    for reading in dict.fromkeys(reading for pair in pairs for reading in pair[:2]):
        if all(verdict_on(pair, reading) is Verdict.BETTER for pair in pairs if reading in pair[:2]):
            return reading
    return None


def verdict_on(pair: Pair, reading: Reading) -> Verdict:
    """Return the verdict of a pair on one of its two readings."""
    if pair.verdict is Verdict.UNDECIDED or reading == pair.one:
        return pair.verdict
    return Verdict.WORSE if pair.verdict is Verdict.BETTER else Verdict.BETTER


def distinct_readings(
    learned_bits: Mapping[Reading, Floats], dataset_bits: Mapping[Reading, Floats]
) -> tuple[list[Reading], dict[Reading, Reading]]:
    """Return the readings that differ on some trial, and a mapping of the others to the earlier one they are equal to.

    All encoding schemes are equal for one-hop questions, for example. A reading under which some code length is 0 (names
    alone with independent names) cannot be scored and is in neither result.
    """
    distinct: list[Reading] = []
    same = {}
    for reading, learned in learned_bits.items():
        if (dataset_bits[reading] <= 0).any():
            continue
        for earlier in distinct:
            bits = np.stack([learned, dataset_bits[reading]])
            if np.allclose(bits, np.stack([learned_bits[earlier], dataset_bits[earlier]]), rtol=1e-9):
                same[reading] = earlier
                break
        else:
            distinct.append(reading)
    return distinct, same


def _cell_scores(
    evidence: Evidence, reading: Reading, cells: Ints, left_out: Ints, log_scale: tuple[float, float] | None
) -> Floats:
    """Return the mean log2 predictive density of each cell, (cells,), with the groups `left_out` (n,) left out."""
    learned, data = evidence.learned_bits[reading][None], evidence.dataset_bits[reading]
    slopes = evidence.slopes_bits[reading][None]
    present = np.ones(learned.shape, bool)
    densities = predictive_bits(learned, data, slopes, evidence.num_params, left_out, present, log_scale)
    scores: Floats = cell_means(densities, cells, present)[0]
    return scores


def paired_bootstrap(
    differences: Floats, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> tuple[Floats, Floats]:
    """Test whether mean differences (pairs, cells) are 0; return p-values (pairs,) and 95 % intervals (pairs, 2).

    This is a paired bootstrap over cells of the studentised mean (bootstrap t), two-sided. Studentising makes it
    conservative for few cells and for differences that a single cell dominates.
    """
    if not differences.size:
        return np.empty(0), np.empty((0, 2))
    num_cells = differences.shape[1]
    drawn = rng.multinomial(num_cells, np.full(num_cells, 1 / num_cells), size=num_resamples).astype(float)
    mean = differences.mean(1)
    error = differences.std(1, ddof=1) / np.sqrt(num_cells)
    # Resamples enter as counts per cell, so means and variances of all resamples are matrix products.
    means = drawn @ differences.T / num_cells  # (resamples, pairs)
    variances = np.maximum(drawn @ (differences**2).T / num_cells - means**2, 0.0) / (num_cells - 1)
    # A resample that repeats one cell has no variance. Its t is infinite, which counts as extreme for the p-value.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(variances > 0, (means - mean) / np.sqrt(variances), np.where(means == mean, 0.0, np.inf))
        observed = np.where(error > 0, mean / error, np.where(mean == 0, 0.0, np.inf))
    p_values = (1 + (np.abs(t) >= np.abs(observed)).sum(0)) / (num_resamples + 1)
    finite = np.where(np.isfinite(t), t, np.nan)
    low, high = np.nanquantile(finite, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return p_values, np.stack([mean - high * error, mean - low * error], axis=1)


def holm(p_values: Floats) -> Floats:
    """Return p-values with Holm's correction for multiple tests.

    The smallest of m is multiplied by m, the next by m - 1 and so on, and the results are made non-decreasing.
    """
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)), 1.0)
    return corrected


def stacking(scores_bits: Floats) -> Floats:
    """Return the weights (readings,) of the mixture with the best summed log score, by expectation maximisation.

    `scores_bits` are log2 densities, (readings, cells).
    """
    densities = np.exp2(scores_bits - scores_bits.max(0))
    weights = np.full(len(densities), 1 / len(densities))
    for _ in range(2_000):
        joint = weights[:, None] * densities
        updated = (joint / joint.sum(0)).mean(1)
        if np.abs(updated - weights).max() < 1e-10:
            break
        weights = updated
    return weights


def _trends(evidence: Evidence, reading: Reading, cells: Ints) -> list[Trend]:
    """Regress log bits per parameter on the logs of P and of every factor that varies, with a jackknife over cells.

    Nothing is returned if bits are not positive, the quantities are collinear, or there are fewer than two cells more
    than coefficients.
    """
    learned = evidence.learned_bits[reading]
    if (learned <= 0).any():
        return []
    quantities = {"P": np.log(evidence.num_params)} | {name: np.log(v) for name, v in evidence.factors.items()}
    varied = {name: values for name, values in quantities.items() if np.ptp(values) > 1e-9}
    design = np.stack([np.ones(len(learned)), *varied.values()], axis=1)
    num_cells, p = int(cells.max()) + 1, design.shape[1]
    if not varied or np.linalg.matrix_rank(design) < p or num_cells < p + 2:
        return []
    y = np.log(learned / evidence.num_params)
    # Leave-one-cell-out estimates for all cells at once: subtract each cell's part of X'X and X'y, then solve the normal
    # equations. The small ridge keeps X'X regular where only one cell has a value.
    of_cell = (cells == np.arange(num_cells)[:, None]).astype(float)  # (cells, n)
    matrix, score = design.T @ design, design.T @ y
    coefficients = np.linalg.solve(matrix, score)
    cell_matrices = (of_cell @ (design[:, :, None] * design[:, None, :]).reshape(len(y), -1)).reshape(-1, p, p)
    rest = matrix - cell_matrices + 1e-9 * np.eye(p)
    left_out = np.linalg.solve(rest, (score - of_cell @ (design * y[:, None]))[..., None])[..., 0]
    errors = np.sqrt((num_cells - 1) / num_cells * ((left_out - left_out.mean(0)) ** 2).sum(0))
    wide, narrow = (stats.t.ppf(level, num_cells - p) for level in (0.975, 0.95))
    trends = []
    for index, name in enumerate(varied, start=1):
        estimate, error = float(coefficients[index]), float(errors[index])
        low, high = estimate - wide * error, estimate + wide * error
        constancy = Constancy.UNDECIDED
        if abs(estimate) + narrow * error < MARGIN:
            constancy = Constancy.CONSTANT
        elif low > 0 or high < 0:
            constancy = Constancy.VARIES
        trends.append(Trend(reading, name, Interval(estimate, low, high), constancy))
    return trends


def in_order(comparison: Comparison) -> Sequence[Reading]:
    """Return the readings sorted by score, the best first."""
    return sorted(comparison.scores_bits, key=lambda reading: -comparison.scores_bits[reading])
