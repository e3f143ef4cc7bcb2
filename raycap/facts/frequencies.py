"""Relative frequencies of people in the training texts, and the classes of frequency by which results are reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycap.results import FrequencyClass
from raycap.spec.frequencies import MAX_RATIO, FrequenciesSpec, FrequencyClasses

MAX_DISTINCT = 16
"""Largest number of different weights of a column each of which is a class. Otherwise classes are octaves."""


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Frequency and class of every person of a population."""

    values: NDArray[np.float64]
    """Relative frequency of the texts about each person, with a mean of 1, shape (N,)."""
    class_of: NDArray[np.uint8]
    """Class of each person, from the most frequent class, shape (N,)."""
    names: tuple[str, ...]
    """Name of each class."""
    in_data: bool = False
    """Whether the data state the frequencies, so that they are part of the data's identity."""

    @property
    def classes(self) -> tuple[FrequencyClass, ...]:
        """The classes with their numbers of people and mean frequencies."""
        counts = np.bincount(self.class_of, minlength=len(self.names))
        totals = np.bincount(self.class_of, self.values, minlength=len(self.names))
        return tuple(
            FrequencyClass(name=name, num_people=num, frequency=total / num)
            for name, num, total in zip(self.names, counts.tolist(), totals.tolist(), strict=True)
        )


@dataclass(frozen=True, eq=False)
class TextFrequencies:
    """Relative frequencies of the training texts of a corpus."""

    values: NDArray[np.float64]
    """Frequency of each text, with a mean of 1, shape (texts,)."""


def draw_frequencies(spec: FrequenciesSpec, num_people: int) -> Frequencies:
    """Return the frequencies of a population. Ranks and classes are assigned to people at random, with the spec's seed.

    Raises ValueError if a class has no people.
    """
    order = np.random.default_rng([spec.seed, *b"frequencies"]).permutation(num_people)
    if isinstance(spec, FrequencyClasses):
        ranked, classes, names = _by_class(spec, num_people)
    else:
        ranks = np.arange(1, num_people + 1)
        ranked = ranks.astype(float) ** -spec.exponent
        classes, names = _octaves(ranked, "rank", ranks.tolist())
    values, class_of = np.empty(num_people), np.empty(num_people, np.uint8)
    values[order], class_of[order] = ranked / ranked.mean(), classes
    return Frequencies(values, class_of, names)


def frequencies_of_weights(weights: NDArray[np.float64]) -> Frequencies:
    """Return the frequencies that a column of positive weights states.

    Raises ValueError if two weights differ by more than a factor of MAX_RATIO.
    """
    if weights.max() > MAX_RATIO * weights.min():
        raise ValueError(
            f"frequencies must differ by at most a factor of {MAX_RATIO:g}, got {weights.min():g} to {weights.max():g}"
        )
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    distinct = np.unique(ranked)[::-1]
    if len(distinct) <= MAX_DISTINCT:
        classes, names = np.searchsorted(-distinct, -ranked), tuple(f"weight {value:g}" for value in distinct)
    else:
        classes, names = _octaves(ranked, "weight", [f"{value:g}" for value in ranked])
    class_of = np.empty(len(weights), np.uint8)
    class_of[order] = classes
    return Frequencies(weights / weights.mean(), class_of, names, in_data=True)


def _by_class(
    spec: FrequencyClasses, num_people: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], tuple[str, ...]]:
    """Return the multiplicity and the class of people in order of class, from the highest multiplicity, and the names."""
    chosen = sorted(spec.classes, key=lambda each: -each.multiplicity)
    ends = np.round(np.cumsum([each.share for each in chosen]) * num_people).astype(np.int64)
    sizes = np.diff(ends, prepend=0)
    for each, size in zip(chosen, sizes.tolist(), strict=True):
        if not size:
            raise ValueError(
                f"profiles.frequencies.classes: {each.name} has none of {num_people} people; increase its share or the "
                "number of people"
            )
    multiplicities = np.repeat([each.multiplicity for each in chosen], sizes)
    return multiplicities, np.repeat(np.arange(len(chosen)), sizes), tuple(each.name for each in chosen)


def _octaves(
    ranked: NDArray[np.float64], what: str, texts: Sequence[object]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class of each of some descending frequencies by octave, numbered without gaps, and the names."""
    octave = np.floor(np.log2(ranked[0] / ranked) + 1e-9)
    starts = np.flatnonzero(np.diff(octave, prepend=-1))
    ends = np.append(starts[1:], len(ranked)) - 1
    names = tuple(
        f"{what} {texts[start]}" if texts[start] == texts[end] else f"{what}s {texts[start]} to {texts[end]}"
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=len(ranked))), names
