"""Observed accounting: capacities as the reference implementation computes them, to compare with published numbers.

The peculiarities of the reference [2502.03490] exist in this module only: log2 of the number of distinct values that
occur as an entropy, a pool of names made of the parts that occur, a set of names that lacks 1.443 N bits, a set of birth
dates charged beside that of the names, negative information charged once or dropped, and every two-hop question charged
to the big hash, trained or not. See docs/science.md#observed and docs/science.md#reference-mistakes.
"""

import math

import numpy as np
from scipy.special import gammaln

from raycap.analysis.measurements import Floats
from raycap.results import ObservedFacts, PopulationFacts
from raycap.spec import EncodingScheme, SelectionScheme

BIRTH_DATE = "birth_date"
NUM_DAYS = 73_048
"""Days from 1900-01-01 to 2099-12-30, as in the reference."""
ObservedPart = tuple[float, float, Floats]
"""Code length in bits, bits of the sets of names and birth dates alone, and learned bits at each evaluation, (E,)."""


def observed_entropies_bits(population: PopulationFacts, *, independent: bool) -> dict[str, float]:
    """Return log2 of the number of distinct values of each subject.

    If `independent`, the number of all possible names replaces that of a relation, and the number of all days that of
    birth dates.
    """
    observed = _observed(population)
    entropies = {subject: math.log2(num) for subject, num in observed.num_values.items()}
    if independent:
        entropies |= {relation: math.log2(num) for relation, num in observed.num_answered_names.items()}
        if BIRTH_DATE in entropies:
            entropies[BIRTH_DATE] = math.log2(NUM_DAYS)
    return entropies


def observed_set_bits(population: PopulationFacts, selection: SelectionScheme) -> tuple[float, float]:
    """Return the bits that encode the set of names and the set of birth dates."""
    observed, num_profiles = _observed(population), population.num_profiles
    if selection is SelectionScheme.INDEPENDENT:
        return 0.0, 0.0
    names = num_profiles * math.log2(observed.num_names)
    if selection is SelectionScheme.SET:
        names -= num_profiles * math.log2(num_profiles)
    num_dates = observed.num_values.get(BIRTH_DATE, 0)
    dates = gammaln(NUM_DAYS + 1) - gammaln(num_dates + 1) - gammaln(NUM_DAYS - num_dates + 1)
    return names, float(dates) / math.log(2)


def observed_parts(
    population: PopulationFacts,
    losses_bits: dict[str, Floats],
    hops: int,
    scheme: EncodingScheme,
    selection: SelectionScheme,
    *,
    incremental: bool = False,
    per_subject: bool = True,
    independent: bool | None = None,
    mean_loss_bits: Floats | None = None,
) -> dict[str, ObservedPart]:
    """Return capacities by subject, or of "all_questions" if not `per_subject`. Their sum is the total.

    Args:
        population: numbers of the population, with its observed values.
        losses_bits: mean losses by subject, each (E,).
        hops: hops of the questions.
        scheme: encoding scheme.
        selection: selection scheme.
        incremental: whether the names are known already and negative information is dropped.
        per_subject: whether each subject is read from its own loss.
        independent: whether the entropies are those of independent answers. By default they are if the names are
            independent; the reference has two separate switches.
        mean_loss_bits: loss of all questions, (E,), used if not `per_subject`; by default the mean over subjects.

    Raises:
        ValueError: for `2-hop-double` without `per_subject`, as in the reference.
    """
    if independent is None:
        independent = selection is SelectionScheme.INDEPENDENT
    entropies = observed_entropies_bits(population, independent=independent)
    names, dates = (0.0, 0.0) if incremental else observed_set_bits(population, selection)
    num_profiles, num_relations = population.num_profiles, len(population.relations)
    double = scheme is EncodingScheme.TWO_HOP_DOUBLE
    copies = num_relations if scheme is EncodingScheme.TWO_HOP_BIG_HASH and hops == 2 else 1
    if not per_subject:
        if double:
            raise ValueError("scheme 2-hop-double: needs the loss of each subject; set per_subject to true")
        loss = np.mean(list(losses_bits.values()), axis=0) if mean_loss_bits is None else mean_loss_bits
        entropy_sum = sum(entropies.values())
        known = entropy_sum - loss * len(entropies)
        learned = _learned(known, copies * num_profiles, num_profiles, names + dates, incremental)
        return {"all_questions": (entropy_sum * copies * num_profiles + names + dates, names + dates, learned)}
    parts: dict[str, ObservedPart] = {}
    for subject, entropy in entropies.items():
        loss = np.asarray(losses_bits[subject], dtype=float)
        times = copies
        if double and hops == 2:
            loss = _one_of_two_hops(loss, entropy)
            times = 2 if subject in population.relations else 1
        charged = entropy * times * num_profiles
        if subject in population.relations:
            share = names / num_relations
            learned = _learned(entropy - loss, times * num_profiles, num_profiles / num_relations, share, incremental)
            parts[subject] = charged + share, share, learned
        elif subject == BIRTH_DATE:
            learned = _learned(entropy - loss, times * num_profiles, num_profiles, dates, incremental)
            parts[subject] = charged + dates, dates, learned
        else:
            parts[subject] = charged, 0.0, (entropy - loss) * times * num_profiles
    return parts


def _learned(known_bits: Floats, times: float, times_below: float, set_bits: float, incremental: bool) -> Floats:
    """Return the bits known of the answers and of the set, (E,).

    Negative information is multiplied by `times_below` instead of `times`, or dropped with the set if `incremental`.
    """
    below = 0.0 if incremental else set_bits + known_bits * times_below
    return np.where(known_bits > 0, known_bits * times + set_bits, below)


def _one_of_two_hops(loss_bits: Floats, entropy_bits: float) -> Floats:
    """Return the loss of one hop from that of two by solving p2 = p^2 + (1 - p) / n for p, clamped at uniform."""
    n = 2**entropy_bits
    clamped = np.minimum(loss_bits, entropy_bits)
    p = (1 / n + np.sqrt(1 / n**2 - 4 * (1 / n - 2**-clamped))) / 2
    return np.where(loss_bits > entropy_bits, entropy_bits, -np.log2(p))


def _observed(population: PopulationFacts) -> ObservedFacts:
    if population.observed is None:
        raise ValueError(
            "observed accounting needs the values of a population that was drawn; this one has none recorded: set "
            "analysis.accounting: exact"
        )
    return population.observed
