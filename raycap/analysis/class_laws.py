"""Proportional laws of the bits that models store about each frequency class (docs/science.md#frequencies)."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from raycap.analysis.curves import EXHAUSTED_BELOW, IGNORANT_ABOVE
from raycap.analysis.frequency import final_classes
from raycap.analysis.intervals import Interval
from raycap.analysis.laws import FitStatus, Point, fit_law
from raycap.spec import SelectionScheme


class ClassLaw(NamedTuple):
    """Bits per parameter that models store about one frequency class, in one arm of the sweep."""

    arm: str
    """Values of the compared axes; "" if none is compared."""
    name: str
    status: FitStatus
    alpha: Interval
    """Bits about the class per parameter of the model, over trials that neither know the class nor are ignorant of it."""
    num_trials: int


def class_laws(
    trials: pd.DataFrame,
    left_out: Collection[int],
    table: pd.DataFrame,
    selection: SelectionScheme,
    arms: Mapping[str, Collection[int]],
    seed: int,
) -> tuple[ClassLaw, ...]:
    """Fit a proportional law to the bits of every class in every arm.

    A trial enters the law of a class if it has learned at least a twentieth and at most nine tenths of what the class has,
    whatever it has learned of the other classes.

    Args:
        trials: Table of trials, with trial_id, cell and num_params.
        left_out: Indices of trials that enter no law.
        table: Bits by class, see `class_frame`.
        selection: Selection under which bits are counted.
        arms: Indices of the trials of each arm, by label.
        seed: Random seed of the bootstrap.
    """
    rows = final_classes(table, selection)
    usable = rows["learned_share"].between(1 - IGNORANT_ABOVE, 1 - EXHAUSTED_BELOW) & ~rows["trial"].isin(left_out)
    laws = []
    for label, members in arms.items():
        of_arm = rows["trial"].isin(members)
        for name in dict.fromkeys(rows["name"][of_arm]):
            chosen = rows[of_arm & usable & (rows["name"] == name)]
            points = [
                Point(
                    str(trials["trial_id"][trial]),
                    int(trials["cell"][trial]),
                    int(trials["num_params"][trial]),
                    learned_bits,
                    dataset_bits,
                    capacity_limited=True,
                )
                for trial, learned_bits, dataset_bits in zip(
                    chosen["trial"], chosen["learned_bits"], chosen["dataset_bits"], strict=True
                )
            ]
            law = fit_law(points, {}, rng=np.random.default_rng(seed))
            laws.append(ClassLaw(label, name, law.status, law.alpha, law.num_trials))
    return tuple(laws)
