"""Choice of the distribution of loaded facts: a list that they were presumably drawn from, or their own frequencies.

The data do not state how they were drawn. Uniform draws from a list of values (raycap's cities, all people of the
population) are assumed unless the data are much more regular, that is, unless a code that states the frequencies of the
values is more than `MARGIN_BITS` shorter than the code of the list. By Kraft's inequality, the probability that this code
saves this much on draws from the list is at most 2^-MARGIN_BITS. See docs/science.md#loaded.
"""

import math

import numpy as np
from numpy.typing import NDArray

MARGIN_BITS = 20.0
"""Largest saving of the code with own frequencies for which the list is still assumed."""


def own_code_bits(counts: NDArray[np.integer], num_possible: int) -> float:
    """Return the length of a code for a column that first states its frequencies and then the order of its values.

    It is `frequencies_bits` and log2 n! / prod n_i! for the order of n rows.

    Args:
        counts: Number of rows with each value that occurs, all positive.
        num_possible: K, the number of possible values.
    """
    order = _log2_factorial(int(counts.sum())) - sum(map(_log2_factorial, counts.tolist()))
    return frequencies_bits(counts, num_possible) + order


def frequencies_bits(counts: NDArray[np.integer], num_possible: int | None = None) -> float:
    """Return the bits that state the frequencies of a column with n rows and d different values.

    They are log2 C(n - 1, d - 1) for the numbers of rows with each value. If it is not known which of K possible values
    occur, log2 min(n, K) for d and log2 C(K, d) for the values are added.

    Args:
        counts: Number of rows with each value that occurs, all positive.
        num_possible: K, or None if the values that occur are known.
    """
    num_rows, num_values = int(counts.sum()), len(counts)
    numbers = _log2_binomial(num_rows - 1, num_values - 1)
    if num_possible is None:
        return numbers
    return math.log2(min(num_rows, num_possible)) + _log2_binomial(num_possible, num_values) + numbers


def given_bits(counts: NDArray[np.integer], probabilities: NDArray[np.float64]) -> float:
    """Return the mean bits per row of a column under given probabilities, sum_i n_i / n (-log2 p_i).

    It is the cross-entropy of the frequencies and not the entropy of the probabilities, so a model that knows only the
    probabilities has learned exactly 0 bits of these rows.
    """
    return float(-(counts * np.log2(probabilities)).sum() / counts.sum())


def fits(own_bits: float, list_bits: float) -> bool:
    """Whether a column may have been drawn from a list, given the lengths of its own code and of the list's code."""
    return own_bits >= list_bits - MARGIN_BITS


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Return the entropy of frequencies in bits, which is exactly 0 for a single value."""
    if len(counts) == 1:
        return 0.0
    total = int(counts.sum())
    return float(np.log2(total) - (counts * np.log2(counts)).sum() / total)


def _log2_factorial(num: int) -> float:
    return math.lgamma(num + 1) / math.log(2)


def _log2_binomial(num: int, chosen: int) -> float:
    return _log2_factorial(num) - _log2_factorial(chosen) - _log2_factorial(num - chosen)
