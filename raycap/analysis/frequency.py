"""Learned bits by frequency class: how much a model stores about people who occur often or rarely in the training texts.

The bits of a class are those of its people under the accounting of single hops (docs/science.md#frequencies). They add up to
the bits of the population. Questions of several hops use facts of people of several classes, so only their losses are
divided by class.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from raycap.analysis.capacity import mean_losses
from raycap.analysis.measurements import Floats, Losses
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.entropy import answer_bits, fact_bits, name_loss_floor, name_set_bits
from raycap.results import FrequencyClass
from raycap.spec import Accounting, AnalysisSpec, Kind, SelectionScheme

HALF = 0.5
"""Learned share that defines the threshold of a trial."""
COLUMNS = [
    *(
        "trial",
        "step",
        "exposures",
        "final",
        "kind",
        "selection",
        "population",
        "frequency_class",
        "name",
        "num_people",
    ),
    *("frequency", "class_exposures", "dataset_bits", "learned_bits", "learned_share"),
]


class ClassBits(NamedTuple):
    """Bits of the people of one frequency class, with their names, at E evaluations."""

    kind: Kind
    selection: SelectionScheme
    population: int
    number: int
    people: FrequencyClass
    dataset_bits: float
    learned_bits: Floats
    learned_share: Floats
    """Learned share of the bits whose loss is measured: without names that only questions contain."""


def class_bits(losses: Losses, analysis: AnalysisSpec) -> Iterator[ClassBits]:
    """Yield the bits of every frequency class for the last kind of a single hop, under every selection.

    Encoding schemes do not differ for single hops. Nothing is yielded for populations without frequencies, if all questions
    have several hops, or under observed accounting.
    """
    kinds = [kind for kind in losses.kinds if kind.hops < 2]
    if not kinds or analysis.accounting is Accounting.OBSERVED:
        return
    for population, facts in enumerate(losses.populations):
        for index, people in enumerate(facts.frequencies):
            for selection in analysis.selections:
                bits = _class_bits(losses, kinds[-1], selection, population, index, per_subject=analysis.per_subject)
                yield ClassBits(kinds[-1], selection, population, index, people, *bits)


def _class_bits(
    losses: Losses, kind: Kind, selection: SelectionScheme, number: int, index: int, *, per_subject: bool
) -> tuple[float, Floats, Floats]:
    """Return the dataset bits, the learned bits and the learned share of one class."""
    population = losses.populations[number]
    entropies, facts = answer_bits(population, selection), fact_bits(population, selection)
    asked = [subject for subject in losses.subjects(kind, number) if subject in facts]
    of_class = {s: losses.columns(kind, population=number, subject=s, frequency_class=index) for s in asked}
    of_class = {subject: columns for subject, columns in of_class.items() if columns}
    means = mean_losses(losses, of_class, answer_bits(population, SelectionScheme.SET), per_subject=per_subject)
    dataset, learned = 0.0, np.zeros(losses.num_evaluations)
    for subject, columns in of_class.items():
        every = losses.columns(kind, population=number, subject=subject)
        stored = facts[subject] * losses.num_texts(columns) / losses.num_texts(every)
        dataset += stored
        if entropies[subject]:
            learned += stored / entropies[subject] * (entropies[subject] - means[subject])

    people = population.frequencies[index].num_people
    names = name_set_bits(population, selection) * people / population.num_profiles
    columns = losses.columns(kind, population=number, subject=NAME_SUBJECT, frequency_class=index)
    if columns and selection is not SelectionScheme.INDEPENDENT:
        learned += names - people * (losses.mean_bits(columns) - name_loss_floor(population, selection))
        dataset += names
        names = 0.0
    share = learned / dataset if dataset else np.full(losses.num_evaluations, math.nan)
    return dataset + names, learned + names, share


def class_frame(blocks: list[tuple[pd.DataFrame, Losses]], analysis: AnalysisSpec) -> pd.DataFrame:
    """Return the bits of every class at every evaluation, with COLUMNS.

    class_exposures is the mean number of uses of a fact about the class; NaN for the first population under fill, whose
    exposures are not counted.
    """
    frames = []
    for evaluations, losses in blocks:
        for bits in class_bits(losses, analysis):
            counted = bits.population == len(losses.populations) - 1
            frame = evaluations[["trial", "step", "exposures", "final"]].assign(
                kind=str(bits.kind),
                selection=str(bits.selection),
                population=bits.population,
                frequency_class=bits.number,
                name=bits.people.name,
                num_people=bits.people.num_people,
                frequency=bits.people.frequency,
                class_exposures=evaluations["exposures"] * (bits.people.frequency if counted else math.nan),
                dataset_bits=bits.dataset_bits,
                learned_bits=bits.learned_bits,
                learned_share=bits.learned_share,
            )
            frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(frames).sort_values(["trial", "step"], kind="stable", ignore_index=True)


def final_classes(table: pd.DataFrame, selection: SelectionScheme) -> pd.DataFrame:
    """Return the rows of a `class_frame` at the last evaluation under a selection, of the population with exposures."""
    chosen = table["final"].astype(bool) & (table["selection"] == str(selection)) & table["class_exposures"].notna()
    return table[chosen]


def threshold_exposures(exposures: Floats, learned_share: Floats) -> float:
    """Return the exposures at which half of the bits of facts are learned, between classes of one trial.

    The share is interpolated over the logarithm of the exposures, between the most frequent class with less than half and
    the next more frequent one. The result is NaN if no class, or every class, has less than half.

    Args:
        exposures: Exposures of the classes, descending.
        learned_share: Learned shares of the classes.
    """
    below = np.flatnonzero(learned_share < HALF)
    if not len(below) or below[0] == 0:
        return math.nan
    pair = slice(below[0] - 1, below[0] + 1)
    (high, low), (more, less) = np.log(exposures[pair]), learned_share[pair]
    return float(np.exp(low + (high - low) * (HALF - less) / (more - less)))


def thresholds(table: pd.DataFrame, selection: SelectionScheme) -> "pd.Series[float]":
    """Return the threshold of every trial by its index, for trials with at least two classes."""
    found = {}
    for trial, rows in final_classes(table, selection).groupby("trial"):
        if len(rows) > 1:
            shares = rows["learned_share"].to_numpy(dtype=float)
            found[trial] = threshold_exposures(rows["class_exposures"].to_numpy(dtype=float), shares)
    return pd.Series(found, dtype=float)
