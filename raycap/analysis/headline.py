"""Headline of a sweep: bits per parameter as an estimate or a lower bound, with its condition and range over readings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

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
    asymptote: Interval
    """Bits per parameter under the headline reading, extrapolated to infinitely many exposures; NaN if not identified."""


def arms_or_whole(analysis: Analysis) -> tuple[ArmLaws, ...]:
    """Return the arms of a sweep, or its laws as those of one arm without a label if it compares no axis."""
    every = frozenset(range(len(analysis.sweep.trials)))
    return analysis.arms or (ArmLaws("", every, analysis.laws, analysis.asymptote),)


def claim_of(analysis: Analysis, arm: ArmLaws, reading: Reading | None = None) -> Claim:
    """Return whether the law of an arm is an estimate or a lower bound, under the headline reading by default."""
    return Claim.BOUND if _num_still_learning(analysis, _in_law(analysis, arm, reading)) else Claim.ESTIMATE


def headlines(analysis: Analysis) -> tuple[Headline, ...]:
    """Return the headline of each arm whose law under the headline reading has an interval, in the order of the grid.

    A sweep that compares no axis has one arm, which is all of its trials.
    """
    found = (_headline(analysis, arm) for arm in arms_or_whole(analysis))
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
    in_law = _in_law(analysis, arm)
    num_learning = _num_still_learning(analysis, in_law)
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
        arm.asymptote,
    )


def _in_law(analysis: Analysis, arm: ArmLaws, reading: Reading | None = None) -> pd.DataFrame:
    """Return the rows of the trials in the proportional law of an arm."""
    trials, law = analysis.tables.trials, arm.laws[reading or analysis.headline]
    finished = trials["finished"].astype(bool) & ~trials["trial_id"].isin(law.excluded.keys())
    return trials[finished & trials.index.isin(arm.trials)]


def _num_still_learning(analysis: Analysis, in_law: pd.DataFrame) -> int:
    states = dict(zip(analysis.training["trial"], analysis.training["convergence"], strict=True))
    learning = (Convergence.STILL_LEARNING, Convergence.UNKNOWN)
    return sum(Convergence(states[index]) in learning for index in in_law.index)


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
        return f"{first}{_arms_text(found, reading, condition)}{_asymptotes_text(found, reading)}"
    (one,) = found
    if set(one.readings) == {reading}:
        text = f"{first}{_format(one.value)} bits per parameter{condition}, under {reading}"
    else:
        each = "; ".join(f"{other} {_format(value)}" for other, value in one.readings.items())
        text = (
            f"{first}{_span(found)} bits per parameter{condition}. This is the range over the readings that are not ruled "
            f"out, each with its 95 % interval: {each}"
        )
    return text + _asymptotes_text(found, reading)


def _arms_text(found: Sequence[Headline], reading: Reading, condition: str) -> str:
    shown = sorted(found, key=lambda one: -one.value.estimate)
    each = "; ".join(f"{one.arm} {_format(one.value)}" for one in shown[:MAX_ARMS])
    more = f"; {len(shown) - MAX_ARMS} more in the table of laws" if len(shown) > MAX_ARMS else ""
    return (
        f"{_span(found)} bits per parameter{condition}. This is the range over the compared values and the readings that "
        f"are not ruled out. Under {reading}, with 95 % intervals: {each}{more}"
    )


def _asymptotes_text(found: Sequence[Headline], reading: Reading) -> str:
    """Return a sentence on the asymptotes that are identified, with a full stop in front; "" if none is."""
    known = [one for one in found if np.isfinite(one.asymptote.estimate)]
    if not known:
        return ""
    each = "; ".join(f"{one.arm} {_format(one.asymptote)}".strip() for one in known[:MAX_ARMS])
    return f". Extrapolated to infinitely many exposures, under {reading}: {each} bits per parameter"


def _span(found: Sequence[Headline]) -> str:
    return f"{min(one.range[0] for one in found):.2f} to {max(one.range[1] for one in found):.2f}"


def _format(value: Interval) -> str:
    return f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]"
