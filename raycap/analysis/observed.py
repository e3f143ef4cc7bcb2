"""The reference's accounting: entropies from the distinct values that happen to occur, to compare published numbers with.

Every quirk of the reference is kept here and nowhere else (SCIENCE, 3 and 7): log2 of the distinct values as an entropy,
names made of the observed parts, the set of names without its 1.443 N bits, a set of birth dates charged beside that of
names, learned bits clamped where `incremental`, and every two-hop question charged, trained or not.
"""

import math

import numpy as np
from scipy.special import gammaln

from raycap.analysis.measurements import Floats
from raycap.results import ObservedFacts, PopulationFacts
from raycap.spec import EncodingScheme, SelectionScheme

BIRTH_DATE = "birth_date"
NUM_DAYS = 73_048
"""Days from 1900-01-01 to 2099-12-31, less one."""
ObservedPart = tuple[float, float, Floats]
"""Bits of the data, bits of the names (and birth dates) alone, and learned bits at each evaluation, (E,)."""


def observed_entropies_bits(population: PopulationFacts, *, independent: bool) -> dict[str, float]:
    """log2 of the distinct values of each subject; if answers are independent, of all possible names and days."""
    observed = _observed(population)
    entropies = {subject: math.log2(num) for subject, num in observed.num_values.items()}
    if independent:
        entropies |= {relation: math.log2(num) for relation, num in observed.num_answered_names.items()}
        if BIRTH_DATE in entropies:
            entropies[BIRTH_DATE] = math.log2(NUM_DAYS)
    return entropies


def observed_set_bits(population: PopulationFacts, selection: SelectionScheme) -> tuple[float, float]:
    """Bits for which names, and for which birth dates there are."""
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
    """Capacity by subject, or of "all_questions" from their mean loss alone; what the parts add up to is the total.

    `losses_bits` are mean losses by subject, (E,). `independent` answers go with independent names unless said otherwise
    (in the reference these are two switches). Raises ValueError for `2-hop-double` from a mean loss, as the reference.
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
            raise ValueError("2-hop-double needs the loss of each subject")
        loss = np.mean(list(losses_bits.values()), axis=0) if mean_loss_bits is None else mean_loss_bits
        told = sum(entropies.values())
        known = told - loss * len(entropies)
        learned = _learned(known, copies * num_profiles, num_profiles, names + dates, incremental)
        return {"all_questions": (told * copies * num_profiles + names + dates, names + dates, learned)}
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
    """Bits known of the answers and of the set; below chance the excess is charged once, or not at all."""
    below = 0.0 if incremental else set_bits + known_bits * times_below
    return np.where(known_bits > 0, known_bits * times + set_bits, below)


def _one_of_two_hops(loss_bits: Floats, entropy_bits: float) -> Floats:
    """Loss of a hop from that of two: p2 = p^2 + (1 - p) / n, clamped at uniform."""
    n = 2**entropy_bits
    least = np.minimum(loss_bits, entropy_bits)
    p = (1 / n + np.sqrt(1 / n**2 - 4 * (1 / n - 2**-least))) / 2
    return np.where(loss_bits > entropy_bits, entropy_bits, -np.log2(p))


def _observed(population: PopulationFacts) -> ObservedFacts:
    if population.observed is None:
        raise ValueError("observed accounting needs a population that was drawn; this one's values were not recorded")
    return population.observed
