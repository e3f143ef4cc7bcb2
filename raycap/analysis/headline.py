"""Headline of a sweep: bits per parameter as an estimate or a lower bound, with its condition and range over readings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from raycap.analysis.analyse import Analysis, ArmLaws
from raycap.analysis.curves import Convergence
from raycap.analysis.intervals import Interval
from raycap.analysis.laws import FitStatus
from raycap.analysis.pooling import BestSetting
from raycap.analysis.readings import Reading
from raycap.analysis.selection import Verdict, verdict_on

MAX_ARMS = 6
"""Most arms in the sentence; the report has all of them."""


class Claim(StrEnum):
    """Relation of the headline's value to the capacity of the models."""

    ESTIMATE = "estimate"
    """All trials of the law have converged."""
    BOUND = "lower bound"
    """Some trial of the law was still learning, or has too few evaluations to know, so more training stores more."""


@dataclass(frozen=True)
class Headline:
    """Bits per parameter of one arm of a sweep, and what the number depends on (docs/science.md#headline)."""

    arm: str
    """Values of the axes that are compared, such as "num_layers 2"; "" if no axis is."""
    claim: Claim
    value: Interval
    """Bits per parameter under the headline reading at the end of training."""
    readings: Mapping[Reading, Interval]
    """The same under each reading that has a law with an interval and that no other reading is better than."""
    range: tuple[float, float]
    """Lowest and highest end of the intervals of `readings`."""
    exposures: tuple[float, float]
    """Fewest and most exposures at the end of a trial of the law."""
    num_trials: int
    num_still_learning: int
    """Trials of the law whose learned bits still grow, or that have too few evaluations to know."""


def headlines(analysis: Analysis) -> tuple[Headline, ...]:
    """Return the headline of each arm whose law under the headline reading has an interval, in the order of the grid.

    A sweep that compares no axis has one arm, which is all of its trials.
    """
    every = ArmLaws("", frozenset(range(len(analysis.sweep.trials))), analysis.laws)
    found = (_headline(analysis, arm) for arm in analysis.arms or (every,))
    return tuple(headline for headline in found if headline)


def _headline(analysis: Analysis, arm: ArmLaws) -> Headline | None:
    """Return the headline of an arm, or None if its law under the headline reading has no interval."""
    law = arm.laws[analysis.headline]
    if law.status is not FitStatus.OK:
        return None
    pairs = analysis.comparison.pairs
    ruled_out = {reading for pair in pairs for reading in pair[:2] if verdict_on(pair, reading) is Verdict.WORSE}
    found = {
        reading: other.alpha
        for reading, other in arm.laws.items()
        if other.status is FitStatus.OK
        and analysis.comparison.same.get(reading, reading) not in ruled_out
        and reading not in analysis.comparison.same
    }
    states = dict(zip(analysis.training["trial"], analysis.training["convergence"], strict=True))
    trials = analysis.tables.trials
    in_law = trials[trials["finished"].astype(bool) & ~trials["trial_id"].isin(law.excluded.keys())]
    in_law = in_law[in_law.index.isin(arm.trials)]
    learning = (Convergence.STILL_LEARNING, Convergence.UNKNOWN)
    num_learning = sum(Convergence(states[index]) in learning for index in in_law.index)
    ends = list(found.values()) or [law.alpha]
    return Headline(
        arm.label,
        Claim.BOUND if num_learning else Claim.ESTIMATE,
        law.alpha,
        found,
        (min(end.low for end in ends), max(end.high for end in ends)),
        (float(np.min(in_law["exposures"])), float(np.max(in_law["exposures"]))),
        law.num_trials,
        num_learning,
    )


def describe(found: Sequence[Headline], reading: Reading, settings: Sequence[BestSetting] = ()) -> str:
    """Return the headlines of a sweep as sentences without the last full stop.

    Args:
        found: headline of each arm, at least one.
        reading: headline reading, under which the values are counted.
        settings: best settings of training.
    """
    num_trials, num_learning = sum(one.num_trials for one in found), sum(one.num_still_learning for one in found)
    at_least = num_learning > 0
    low, high = min(one.exposures[0] for one in found), max(one.exposures[1] for one in found)
    length = f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"
    state = (
        f"{num_learning} of {num_trials} trials were still learning"
        if at_least
        else f"{num_trials} trials, all converged"
    )
    condition = f" after {length} exposures ({state})"
    if settings:
        most = max(setting.num_settings for setting in settings)
        condition += f", with the setting of training that learns most, of {most}, chosen for each cell by learned bits"
    first = "At least " if at_least else ""
    if len(found) > 1 or found[0].arm:
        return f"{first}{_arms_text(found, reading, condition)}"
    (one,) = found
    if set(one.readings) == {reading}:
        return f"{first}{_format(one.value)} bits per parameter{condition}, under {reading}"
    each = "; ".join(f"{other} {_format(value)}" for other, value in one.readings.items())
    return (
        f"{first}{_span(found)} bits per parameter{condition}. This is the range over the readings that are not ruled out, "
        f"each with its 95 % interval: {each}"
    )


def _arms_text(found: Sequence[Headline], reading: Reading, condition: str) -> str:
    shown = sorted(found, key=lambda one: -one.value.estimate)
    each = "; ".join(f"{one.arm} {_format(one.value)}" for one in shown[:MAX_ARMS])
    more = f"; {len(shown) - MAX_ARMS} more in the table of laws" if len(shown) > MAX_ARMS else ""
    return (
        f"{_span(found)} bits per parameter{condition}. This is the range over the compared values and the readings that "
        f"are not ruled out. Under {reading}, with 95 % intervals: {each}{more}"
    )


def _span(found: Sequence[Headline]) -> str:
    return f"{min(one.range[0] for one in found):.2f} to {max(one.range[1] for one in found):.2f}"


def _format(value: Interval) -> str:
    return f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]"
