"""Which reading fits? Predictive scores of the loss, a paired bootstrap of their differences, and constancy.

Under the right reading bits per parameter are one number (SCIENCE, Which scheme fits). So each reading is a model of
the loss: it predicts learned bits as smooth-min(C (P / P0)^gamma, H), and what is not learned is lost. Each is fitted
without a cell (or without a size) and asked how likely the losses left out were. All readings are scored on the same
trials and the same losses, so that scores compare; the schemes and the rule are declared before anything is seen.
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
from raycap.analysis.scoring import cell_means, folds_of, predictive_bits

NUM_RESAMPLES = 4_000
LEVEL = 0.05
MARGIN = 0.1
"""Bits per parameter are constant in a quantity if they change by less than its 0.1th power: 7 % for a doubling."""
MIN_CELLS = 4
Ints = NDArray[np.int64]


class Verdict(StrEnum):
    """What can be said of one reading against another."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


class Constancy(StrEnum):
    """Whether bits per parameter change with a quantity."""

    CONSTANT = "constant"
    """The 90 % interval lies within the margin (two one-sided tests at 5 %)."""
    VARIES = "varies"
    """The 95 % interval excludes 0."""
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Evidence:
    """What all readings are judged on: n trials, neither exhausted nor ignorant."""

    num_params: Floats
    """(n,), and so are the next."""
    cells: Ints
    factors: dict[str, Floats]
    """What was varied beside the size, such as N and R, by name."""
    learned_bits: dict[Reading, Floats]
    """May be negative."""
    dataset_bits: dict[Reading, Floats]
    slopes_bits: dict[Reading, Floats]
    """Bits not learned for a change of all losses by a factor e."""

    @property
    def sizes(self) -> Ints:
        """Size of each trial, numbered from 0."""
        return np.unique(self.num_params, return_inverse=True)[1].astype(np.int64)


class Pair(NamedTuple):
    """One reading against another."""

    one: Reading
    other: Reading
    difference_bits: Interval
    """Mean difference of log2 predictive scores per cell left out, with its 95 % interval."""
    p_value: float
    """Of no difference, Holm-corrected over all pairs."""
    difference_by_size_bits: float
    """The same with whole sizes left out; NaN if there is one size only."""
    verdict: Verdict


class Trend(NamedTuple):
    """Exponent of bits per parameter in a quantity."""

    reading: Reading
    quantity: str
    exponent: Interval
    constancy: Constancy


@dataclass(frozen=True)
class Comparison:
    """What the trials say about the readings."""

    readings: tuple[Reading, ...]
    """Those that differ on these data."""
    same: dict[Reading, Reading]
    """Readings that say the same as an earlier one, bit for bit."""
    num_trials: int
    num_cells: int
    num_sizes: int
    scores_bits: dict[Reading, float]
    """Mean log2 predictive density of a cell left out."""
    scores_by_size_bits: dict[Reading, float]
    """Of a cell, its whole size left out."""
    weights: dict[Reading, float]
    """Stacking: the mixture of readings that predicts best."""
    pairs: tuple[Pair, ...]
    trends: tuple[Trend, ...]

    @property
    def best(self) -> Reading | None:
        """The reading that is better than every other; None while that is undecided."""
        return best_of(self.pairs)

    @property
    def ahead(self) -> Reading | None:
        """The reading with the best score, decided or not."""
        return max(self.scores_bits, key=lambda reading: self.scores_bits[reading], default=None)


def compare(
    evidence: Evidence,
    *,
    rng: np.random.Generator,
    log_scale: tuple[float, float] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Score every reading, test every pair, and ask each for constancy.

    `log_scale` is a calibration: mean and standard deviation of log bits per parameter, from data that all readings read
    alike. A pair is decided if its difference is significant at 5 % after Holm's correction, and has the same sign when
    whole sizes are left out; with fewer than four cells nothing is.
    """
    distinct, same = distinct_readings(evidence.learned_bits, evidence.dataset_bits)
    cells = np.unique(evidence.cells, return_inverse=True)[1].astype(np.int64)
    num_cells, num_sizes = int(cells.max(initial=-1)) + 1, len(set(evidence.num_params.tolist()))
    enough = num_cells >= MIN_CELLS and len(distinct) > 0
    folds = folds_of(cells, rng)
    by_cell = {r: _cell_scores(evidence, r, cells, folds, log_scale) for r in distinct} if enough else {}
    sized = enough and num_sizes > 1
    by_size = {r: _cell_scores(evidence, r, cells, evidence.sizes, log_scale) for r in distinct} if sized else {}
    scores = np.array(list(by_cell.values()))
    pairs = judged(tuple(by_cell), scores, np.array(list(by_size.values())), rng=rng, num_resamples=num_resamples)
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


def judged(
    readings: tuple[Reading, ...],
    by_cell: Floats,
    by_size: Floats,
    *,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[Pair, ...]:
    """Every pair of readings, from their scores (readings, cells) with cells and with whole sizes left out.

    `by_size` is empty where there is one size only.
    """
    places = [(i, j) for i in range(len(readings)) for j in range(i + 1, len(readings))]
    differences = np.array([by_cell[i] - by_cell[j] for i, j in places])
    p_values, intervals = paired(differences, rng=rng, num_resamples=num_resamples)
    pairs = []
    for (i, j), difference, p, (low, high) in zip(places, differences, holm(p_values), intervals, strict=True):
        mean = float(difference.mean())
        sizes_say = float((by_size[i] - by_size[j]).mean()) if len(by_size) else np.nan
        decided = p < LEVEL and (not len(by_size) or sizes_say * mean > 0)
        verdict = Verdict.UNDECIDED if not decided else Verdict.BETTER if mean > 0 else Verdict.WORSE
        interval = Interval(mean, float(low), float(high))
        pairs.append(Pair(readings[i], readings[j], interval, float(p), sizes_say, verdict))
    return tuple(pairs)


def best_of(pairs: tuple[Pair, ...]) -> Reading | None:
    """The reading that is better than every other; None while that is undecided."""
    for reading in dict.fromkeys(reading for pair in pairs for reading in pair[:2]):
        if all(verdict_on(pair, reading) is Verdict.BETTER for pair in pairs if reading in pair[:2]):
            return reading
    return None


def verdict_on(pair: Pair, reading: Reading) -> Verdict:
    """The verdict from where one of the two stands."""
    if pair.verdict is Verdict.UNDECIDED or reading == pair.one:
        return pair.verdict
    return Verdict.WORSE if pair.verdict is Verdict.BETTER else Verdict.BETTER


def distinct_readings(
    learned_bits: Mapping[Reading, Floats], dataset_bits: Mapping[Reading, Floats]
) -> tuple[list[Reading], dict[Reading, Reading]]:
    """Readings that differ on some trial, and which earlier one the others are the same as.

    Of one-hop questions all encoding schemes say the same. A reading under which some data hold no bits (independent
    names of random strings) says nothing, and is neither.
    """
    distinct: list[Reading] = []
    same = {}
    for reading, learned in learned_bits.items():
        if (dataset_bits[reading] <= 0).any():
            continue
        for earlier in distinct:
            told = np.stack([learned, dataset_bits[reading]])
            if np.allclose(told, np.stack([learned_bits[earlier], dataset_bits[earlier]]), rtol=1e-9):
                same[reading] = earlier
                break
        else:
            distinct.append(reading)
    return distinct, same


def _cell_scores(
    evidence: Evidence, reading: Reading, cells: Ints, left_out: Ints, log_scale: tuple[float, float] | None
) -> Floats:
    learned, data = evidence.learned_bits[reading][None], evidence.dataset_bits[reading]
    slopes = evidence.slopes_bits[reading][None]
    present = np.ones(learned.shape, bool)
    densities = predictive_bits(learned, data, slopes, evidence.num_params, left_out, present, log_scale)
    return cell_means(densities, cells, present)[0]


def paired(
    differences: Floats, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> tuple[Floats, Floats]:
    """Two-sided p-values (pairs,) of a mean of 0, and 95 % intervals (pairs, 2), from differences (pairs, cells).

    A paired bootstrap over cells of the studentised mean: few cells, or a single one that says it all, are not enough.
    """
    if not differences.size:
        return np.empty(0), np.empty((0, 2))
    num_cells = differences.shape[1]
    drawn = rng.multinomial(num_cells, np.full(num_cells, 1 / num_cells), size=num_resamples).astype(float)
    mean = differences.mean(1)
    error = differences.std(1, ddof=1) / np.sqrt(num_cells)
    means = drawn @ differences.T / num_cells  # (resamples, pairs)
    variances = np.maximum(drawn @ (differences**2).T / num_cells - means**2, 0.0) / (num_cells - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(variances > 0, (means - mean) / np.sqrt(variances), np.where(means == mean, 0.0, np.inf))
        observed = np.where(error > 0, mean / error, np.where(mean == 0, 0.0, np.inf))
    p_values = (1 + (np.abs(t) >= np.abs(observed)).sum(0)) / (num_resamples + 1)
    finite = np.where(np.isfinite(t), t, np.nan)
    low, high = np.nanquantile(finite, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return p_values, np.stack([mean - high * error, mean - low * error], axis=1)


def holm(p_values: Floats) -> Floats:
    """Holm's correction: the smallest times their number, the next times one less, and so on, never falling."""
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)), 1.0)
    return corrected


def stacking(scores_bits: Floats) -> Floats:
    """Weights (readings,) of the mixture with the best summed log score (readings, cells); by expectation-maximisation."""
    likely = np.exp2(scores_bits - scores_bits.max(0))
    weights = np.full(len(likely), 1 / len(likely))
    for _ in range(2_000):
        shares = weights[:, None] * likely
        updated = (shares / shares.sum(0)).mean(1)
        if np.abs(updated - weights).max() < 1e-10:
            break
        weights = updated
    return weights


def _trends(evidence: Evidence, reading: Reading, cells: Ints) -> list[Trend]:
    """Exponents of bits per parameter in P and in what else was varied, all at once, with a jackknife over cells."""
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
    own = (cells == np.arange(num_cells)[:, None]).astype(float)  # (cells, n)
    matrix, score = design.T @ design, design.T @ y
    whole = np.linalg.solve(matrix, score)
    of_cells = (own @ (design[:, :, None] * design[:, None, :]).reshape(len(y), -1)).reshape(-1, p, p)
    rest = matrix - of_cells + 1e-9 * np.eye(p)
    left_out = np.linalg.solve(rest, (score - own @ (design * y[:, None]))[..., None])[..., 0]
    errors = np.sqrt((num_cells - 1) / num_cells * ((left_out - left_out.mean(0)) ** 2).sum(0))
    wide, narrow = (stats.t.ppf(level, num_cells - p) for level in (0.975, 0.95))
    trends = []
    for place, name in enumerate(varied, start=1):
        estimate, error = float(whole[place]), float(errors[place])
        low, high = estimate - wide * error, estimate + wide * error
        constancy = Constancy.UNDECIDED
        if abs(estimate) + narrow * error < MARGIN:
            constancy = Constancy.CONSTANT
        elif low > 0 or high < 0:
            constancy = Constancy.VARIES
        trends.append(Trend(reading, name, Interval(estimate, low, high), constancy))
    return trends


def in_order(comparison: Comparison) -> Sequence[Reading]:
    """Readings by score, the best first."""
    return sorted(comparison.scores_bits, key=lambda reading: -comparison.scores_bits[reading])
