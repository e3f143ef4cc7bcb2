"""Contrasts: the values of each axis of the grid, compared at equal everything else (docs/science.md#contrasts).

A *setting* is a combination of values of all other axes except seeds. Within a setting the values of an axis differ in
nothing else, so the difference of their means over seeds is the effect of the axis. Effects are averaged over settings.
Where the grid also varies settings of training, the values of every other axis are compared at the best setting of each.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from raycap.analysis.axes import Axis, Role, with_role
from raycap.analysis.intervals import LEVEL, Interval
from raycap.analysis.tables import Tables
from raycap.results import Part, PlannedTrial
from raycap.spec import Kind, Split

ALPHA = 1 - LEVEL
NEARLY_EQUAL = 1.05
"""Largest ratio of the numbers of parameters of models that count as equal in size."""
ROUNDING = 1e-9
"""Differences below this share of the outcomes are rounding errors."""


class Outcome(NamedTuple):
    """A measured quantity that values of an axis are compared in."""

    kind: Kind | None
    """Kind of questions whose loss it is, or None for learned bits per parameter."""
    split: Split
    population: int

    @property
    def is_loss(self) -> bool:
        """Whether smaller values are better."""
        return self.kind is not None


BITS_PER_PARAM = Outcome(None, Split.TRAIN, 0)


class Effect(StrEnum):
    """Verdict on a value of an axis."""

    BETTER = "better"
    """It is the best value: all others are worse."""
    WORSE = "worse"
    """Another value is better."""
    UNDECIDED = "undecided"
    """The data do not exclude that it is the best value."""


@dataclass(frozen=True)
class Contrast:
    """One value of an axis, compared with the value that has the best mean, in one outcome."""

    axis: Axis
    outcome: Outcome
    value: int
    """Index of the value in those of the axis."""
    mean: float
    """Mean over settings and seeds."""
    best: int
    """Index of the value with the best mean."""
    difference: Interval
    """Mean of this value minus that of the best one, with its 95 % interval over seeds; NaN without an interval."""
    p_value: float
    """Two-sided, multiplied by the number of comparisons; NaN without an interval."""
    effect: Effect
    num_settings: int
    num_seeds: int
    """Fewest seeds of a cell."""
    paired: bool
    """Whether all cells have the same seeds, so that differences are taken seed by seed."""
    equal_sizes: bool
    """Whether the compared models have the same number of parameters, up to NEARLY_EQUAL."""
    mixed: bool
    """Whether the difference has the other sign in some setting, by more than its interval there."""


def contrasts(
    found_axes: Sequence[Axis],
    trials: Sequence[PlannedTrial],
    tables: Tables,
    totals: pd.DataFrame,
    left_out: Collection[int],
) -> tuple[Contrast, ...]:
    """Return the contrasts of the axes of the grid that are no seeds, one per outcome and value: first those of axes that
    are compared, then those of settings of training and of sizes. Sizes are compared in bits per parameter only.

    p-values are multiplied by the number of all comparisons (Bonferroni), so that all verdicts of a sweep are right at
    once with a probability of at least 95 %. Each value is compared with the one that has the best mean only. That the
    same data choose this value needs no further correction, because a verdict says that a value is not the best one
    (multiple comparisons with the best; Hsu 1996).

    Args:
        found_axes: axes of the plan.
        trials: the plan.
        tables: tables of its measured trials.
        totals: totals of the headline reading at the last evaluation, of the trials that did not exhaust their data.
        left_out: trials whose setting of training is not the best of their cell. Only axes of settings of training are
            compared in them.
    """
    drafts: list[Contrast] = []
    for axis in compared_axes(found_axes):
        design = design_of(axis, found_axes, trials).assign(num_params=tables.trials["num_params"])
        for outcome, values in outcomes(tables, totals).items():
            if not (axis.role is Role.SIZE and outcome.is_loss):
                drafts += _of_outcome(design, axis, outcome, compared_values(axis, values, left_out))
    return tuple(_decided(drafts))


def compared_axes(found_axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Return the axes that are no seeds: those that are compared first, then settings of training, then sizes."""
    return tuple(axis for role in (Role.TREATMENT, Role.NUISANCE, Role.SIZE) for axis in with_role(found_axes, role))


def compared_values(axis: Axis, values: "pd.Series[float]", left_out: Collection[int]) -> "pd.Series[float]":
    """Return the values of an outcome by trial in which an axis is compared: axes that are no settings of training only in
    trials that are not left out."""
    known = values.dropna()
    return known if axis.role is Role.NUISANCE else known.drop(known.index.intersection(list(left_out)))


def design_of(axis: Axis, found_axes: Sequence[Axis], trials: Sequence[PlannedTrial]) -> pd.DataFrame:
    """Return the index of each trial's value of an axis (`level`) and numbers of its setting and of its seeds.

    Trials of one setting differ in the axis and in seeds only; for axes that are no settings of training, also in the
    settings of training.
    """
    seeds = with_role(found_axes, Role.SEED)
    ignored = seeds if axis.role is Role.NUISANCE else seeds + with_role(found_axes, Role.NUISANCE)
    others = [other for other in found_axes if other != axis and other not in ignored]
    return pd.DataFrame(
        {
            "level": [axis.index(trial) for trial in trials],
            "setting": _codes(others, trials),
            "seed": _codes(seeds, trials),
        }
    )


def _codes(some_axes: Sequence[Axis], trials: Sequence[PlannedTrial]) -> list[int]:
    """Return a number per trial that trials with the same values of some axes share."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(tuple(axis.index(trial) for axis in some_axes), len(numbers)) for trial in trials]


def outcomes(tables: Tables, totals: pd.DataFrame) -> "dict[Outcome, pd.Series[float]]":
    """Return the final outcomes by trial. Series lack trials where an outcome was not measured.

    The loss of a question with a chain of thought is that of the chain and the answer together. It bounds the loss of the
    answer from above, and can be compared with the loss of an answer without a chain.
    """
    losses, splits = tables.losses, tables.splits
    if totals.empty:
        return {}
    found: dict[Outcome, pd.Series[float]] = {BITS_PER_PARAM: totals.set_index("trial")["bits_per_param"]}
    trained = losses[losses["final"].astype(bool) & (losses["part"] == str(Part.ANSWER))]
    for kind in reversed(Kind):
        for population in sorted(set(splits["population"])):
            # All single hops are trained, whatever component they belong to.
            table = splits if kind.hops > 1 else trained.assign(split=str(Split.TRAIN))
            table = table[(table["kind"] == str(kind)) & (table["population"] == population)]
            for split in Split:
                values = table[table["split"] == str(split)].groupby("trial")["loss_bits"].sum()
                if len(values):
                    found[Outcome(kind, split, population)] = values
    return found


def _of_outcome(design: pd.DataFrame, axis: Axis, outcome: Outcome, values: "pd.Series[float]") -> Iterator[Contrast]:
    """Yield the contrasts of one axis in one outcome, with p-values that are not corrected yet."""
    rows = design.loc[values.index].assign(outcome=values)
    num_levels = rows["level"].nunique()
    complete = rows.groupby("setting")["level"].nunique() == num_levels
    rows = rows[rows["setting"].isin(complete.index[complete])]
    if num_levels < 2 or rows.empty:
        return
    cells = rows.pivot(index=["setting", "seed"], columns="level", values="outcome")
    means = cells.groupby("setting").mean().mean()
    best = int(means.idxmin() if outcome.is_loss else means.idxmax())
    sizes = rows.groupby("setting")["num_params"]
    equal_sizes = bool((sizes.max() / sizes.min() <= NEARLY_EQUAL).all())
    paired = bool(cells.notna().all(axis=None))
    num_seeds = int(cells.groupby("setting").count().min(axis=None))
    for level in cells:
        difference, p_value, mixed = _difference(cells, level, best, paired=paired)
        yield Contrast(
            axis, outcome, int(level), float(means[level]), best, difference, p_value, Effect.UNDECIDED,
            int(complete.sum()), num_seeds, paired, equal_sizes, mixed,
        )  # fmt: skip


def _difference(cells: pd.DataFrame, value: int, best: int, *, paired: bool) -> tuple[Interval, float, bool]:
    """Return the mean over settings of one value minus another, its p-value, and whether settings contradict it.

    The variance between seeds is pooled over settings (and over both values, if their seeds differ).

    Args:
        cells: outcomes by setting and seed, one column per value.
        value: the first value.
        best: the second value.
        paired: whether differences are taken seed by seed.
    """
    if value == best:
        return Interval(0.0, 0.0, 0.0), np.nan, False
    samples = [cells[value] - cells[best]] if paired else [cells[value], -cells[best]]
    groups = [sample.groupby("setting") for sample in samples]
    by_setting = sum(group.mean() for group in groups)
    freedom = sum(int((group.count() - 1).sum()) for group in groups)
    estimate = float(by_setting.mean())
    if not freedom:
        return Interval(estimate, np.nan, np.nan), np.nan, False
    squares = sum(
        float(((sample - group.transform("mean")) ** 2).sum()) for sample, group in zip(samples, groups, strict=True)
    )
    errors = np.sqrt(squares / freedom * sum(1 / group.count() for group in groups))  # of each setting's difference
    error = max(float(np.sqrt((errors**2).sum())) / len(errors), ROUNDING * float(cells.abs().max(axis=None)))
    t = float(stats.t.ppf(1 - ALPHA / 2, freedom))
    p_value = float(2 * stats.t.sf(abs(estimate) / error, freedom)) if error else 1.0
    mixed = bool(((by_setting * np.sign(estimate)) < -t * errors).any())
    return Interval(estimate, estimate - t * error, estimate + t * error), p_value, mixed


def _decided(drafts: list[Contrast]) -> Iterator[Contrast]:
    """Yield contrasts with corrected p-values and verdicts."""
    num_comparisons = sum(draft.value != draft.best for draft in drafts)
    corrected = [replace(draft, p_value=min(draft.p_value * num_comparisons, 1.0)) for draft in drafts]
    for _, members in groupby(corrected, lambda one: (one.axis.path, one.outcome)):
        compared = list(members)
        is_worse = [one.p_value < ALPHA and not one.mixed for one in compared]
        is_best = [one.value == one.best for one in compared]
        decided = all(worse or best for worse, best in zip(is_worse, is_best, strict=True))
        for one, worse, best in zip(compared, is_worse, is_best, strict=True):
            effect = Effect.WORSE if worse else Effect.BETTER if best and decided else Effect.UNDECIDED
            yield replace(one, effect=effect)
