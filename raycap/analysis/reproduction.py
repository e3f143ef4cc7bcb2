"""Comparison of a sweep that was run again with the results that were published for it.

A number is reproduced if it lies within the 95 % interval that was published with it. Numbers without an interval, such as
the learned bits of single trials, are shown beside each other and decide nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raycap.analysis.analyse import Analysis
from raycap.analysis.contrasts import Contrast
from raycap.analysis.headline import arms_or_whole
from raycap.analysis.intervals import Interval
from raycap.analysis.laws import FitStatus
from raycap.analysis.wording import outcome_text


@dataclass(frozen=True)
class Check:
    """One published number with its interval, and the number of the sweep that was run again."""

    quantity: str
    published: Interval
    again: float

    @property
    def is_reproduced(self) -> bool:
        """Whether the new number lies within the published interval."""
        return self.published.low <= self.again <= self.published.high


@dataclass(frozen=True)
class Spread:
    """Relative differences of the learned bits of trials that both sweeps have finished, under the headline reading."""

    num_trials: int
    median: float
    largest: float


def checks(published: Analysis, again: Analysis) -> tuple[Check, ...]:
    """Return a check of every published law and difference between compared values that has an interval.

    A law or difference that the new sweep lacks has NaN as its number, and is not reproduced.
    """
    return (*_laws(published, again), *_differences(published, again))


def _laws(published: Analysis, again: Analysis) -> Iterator[Check]:
    new = {arm.label: arm.laws for arm in arms_or_whole(again)}
    for arm in arms_or_whole(published):
        for reading, law in arm.laws.items():
            if law.status is FitStatus.OK and np.isfinite(law.alpha.low):
                other = new.get(arm.label, {}).get(reading)
                alpha = other.alpha.estimate if other is not None and other.status is FitStatus.OK else np.nan
                quantity = ", ".join(filter(None, ("bits per parameter", arm.label, str(reading))))
                yield Check(quantity, law.alpha, alpha)


def _differences(published: Analysis, again: Analysis) -> Iterator[Check]:
    means = {_key(one, one.value): one.mean for one in again.contrasts}
    for one in published.contrasts:
        if one.value != one.best and np.isfinite(one.difference.low):
            value, best = means.get(_key(one, one.value), np.nan), means.get(_key(one, one.best), np.nan)
            names = f"{one.axis.describe(one.value)} minus {one.axis.describe(one.best)}"
            yield Check(f"{outcome_text(one.outcome)}, {one.axis.path}: {names}", one.difference, value - best)


def _key(one: Contrast, value: int) -> tuple[object, ...]:
    return one.axis.path, one.outcome, value


def spread(published: Analysis, again: Analysis) -> Spread:
    """Return how much the learned bits of the same trials differ."""
    bits = [analysis.totals(final=True).set_index("trial")["bits_per_param"] for analysis in (published, again)]
    relative = (bits[1] / bits[0] - 1).abs().dropna()
    if relative.empty:
        return Spread(0, np.nan, np.nan)
    return Spread(len(relative), float(relative.median()), float(relative.max()))
