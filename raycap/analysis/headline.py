"""Headline of a sweep: bits per parameter as an estimate or a lower bound, with its condition and range over readings."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from raycap.analysis.analyse import Analysis
from raycap.analysis.axes import Role, axes_of, with_role
from raycap.analysis.curves import Convergence
from raycap.analysis.intervals import Interval
from raycap.analysis.laws import FitStatus
from raycap.analysis.readings import Reading
from raycap.analysis.selection import Verdict, verdict_on


class Claim(StrEnum):
    """Relation of the headline's value to the capacity of the models."""

    ESTIMATE = "estimate"
    """All trials of the law have converged."""
    BOUND = "lower bound"
    """Some trial of the law was still learning, or has too few evaluations to know, so more training stores more."""


@dataclass(frozen=True)
class Headline:
    """Bits per parameter of a sweep, and what the number depends on (docs/science.md#headline)."""

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
    pooled: tuple[str, ...]
    """Axes that are settings of training or are compared, and over which the law is pooled."""


def headline_of(analysis: Analysis) -> Headline | None:
    """Return the headline of a sweep, or None if the law of the headline reading has no interval."""
    law = analysis.law
    if law.status is not FitStatus.OK:
        return None
    pairs = analysis.comparison.pairs
    ruled_out = {reading for pair in pairs for reading in pair[:2] if verdict_on(pair, reading) is Verdict.WORSE}
    found = {
        reading: other.alpha
        for reading, other in analysis.laws.items()
        if other.status is FitStatus.OK
        and analysis.comparison.same.get(reading, reading) not in ruled_out
        and reading not in analysis.comparison.same
    }
    states = dict(zip(analysis.training["trial"], analysis.training["convergence"], strict=True))
    trials = analysis.tables.trials
    in_law = trials[trials["finished"].astype(bool) & ~trials["trial_id"].isin(law.excluded.keys())]
    learning = (Convergence.STILL_LEARNING, Convergence.UNKNOWN)
    num_learning = sum(Convergence(states[index]) in learning for index in in_law.index)
    axes = axes_of(analysis.sweep)
    pooled = (axis.path for axis in (*with_role(axes, Role.NUISANCE), *with_role(axes, Role.TREATMENT)))
    ends = list(found.values()) or [law.alpha]
    return Headline(
        Claim.BOUND if num_learning else Claim.ESTIMATE,
        law.alpha,
        found,
        (min(end.low for end in ends), max(end.high for end in ends)),
        (float(np.min(in_law["exposures"])), float(np.max(in_law["exposures"]))),
        law.num_trials,
        num_learning,
        tuple(pooled),
    )


def describe(headline: Headline, reading: Reading) -> str:
    """Return the headline as a sentence without its full stop; `reading` is the one that the value is counted under."""
    low, high = headline.exposures
    length = f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"
    at_least = headline.claim is Claim.BOUND
    condition = f" after {length} exposures"
    if at_least:
        condition += f" ({headline.num_still_learning} of {headline.num_trials} trials were still learning)"
    else:
        condition += f" ({headline.num_trials} trials, all converged)"
    pooled = f", pooled over {', '.join(headline.pooled)}" if headline.pooled else ""
    others = {one: value for one, value in headline.readings.items() if one != reading}
    first = "At least " if at_least else ""
    if not others and reading in headline.readings:
        return f"{first}{_format(headline.value)} bits per parameter{condition}{pooled}, under {reading}"
    span = f"{headline.range[0]:.2f} to {headline.range[1]:.2f}"
    each = "; ".join(f"{one} {_format(value)}" for one, value in headline.readings.items())
    return (
        f"{first}{span} bits per parameter{condition}{pooled}. This is the range over the readings that are not ruled out, "
        f"each with its 95 % interval: {each}"
    )


def _format(value: Interval) -> str:
    return f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]"
