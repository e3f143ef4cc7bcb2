"""Which trials a law is fitted to: those with the best settings of training, separately for each arm.

Settings of training (`Role.NUISANCE`) decide how well a model is trained. In each cell only the setting with the most
learned bits enters a law. An arm is a combination of values of the axes that are compared (`Role.TREATMENT`), and has a
law of its own. See docs/science.md#pooling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raycap.analysis.axes import Axis, Role, with_role
from raycap.results import PlannedTrial

Coordinates = tuple[int, ...]
"""Indices of values of some axes, in the order of the axes."""


@dataclass(frozen=True)
class BestSetting:
    """The setting of training with the most learned bits among trials that agree in everything else but seeds."""

    elsewhere: str
    """Values of the other axes, such as "hidden_size 16"; "" if there are none."""
    chosen: str
    """Values of the settings of training, such as "lr 0.01"."""
    learned_bits: float
    """Mean over its seeds."""
    second_learned_bits: float
    """Mean of the setting with the second most learned bits."""
    num_settings: int
    num_seeds: int

    @property
    def log_bias(self) -> float:
        """Expected excess of the largest of `num_settings` means over their true value, in standard deviations of a trial.

        This is the excess if all settings are truly equal, which is the worst case: the expected maximum of independent
        normal variables (Blom 1958, Statistical Estimates and Transformed Beta-Variables).
        """
        largest = stats.norm.ppf((self.num_settings - 0.375) / (self.num_settings + 0.25))
        return float(largest / np.sqrt(self.num_seeds))


@dataclass(frozen=True)
class ArmTrials:
    """The trials of one arm."""

    label: str
    """Values of the compared axes, such as "num_layers 2"."""
    coordinates: Coordinates
    trials: frozenset[int]
    """Indices in the plan."""


def best_settings(
    axes: Sequence[Axis], trials: Sequence[PlannedTrial], learned_bits: Mapping[int, float]
) -> tuple[tuple[BestSetting, ...], frozenset[int]]:
    """Return the best setting of training per cell, and the indices of the trials with other settings.

    Args:
        axes: axes of the plan.
        trials: the plan.
        learned_bits: learned bits at the end of training, by index of the trial. Trials without are left out.
    """
    nuisances, seeds = with_role(axes, Role.NUISANCE), with_role(axes, Role.SEED)
    if not nuisances:
        return (), frozenset()
    others = [axis for axis in axes if axis not in nuisances and axis not in seeds]
    members: dict[Coordinates, dict[Coordinates, list[int]]] = {}
    for index in learned_bits:
        elsewhere, setting = (coordinates(some, trials[index]) for some in (others, nuisances))
        members.setdefault(elsewhere, {}).setdefault(setting, []).append(index)
    found, left_out = [], set[int]()
    for elsewhere, by_setting in members.items():
        means = {setting: np.mean([learned_bits[index] for index in of]) for setting, of in by_setting.items()}
        ranked = sorted(means, key=means.__getitem__, reverse=True)
        found.append(
            BestSetting(
                describe(others, elsewhere),
                describe(nuisances, ranked[0]),
                float(means[ranked[0]]),
                float(means[ranked[1]]) if len(ranked) > 1 else float("nan"),
                len(ranked),
                len(by_setting[ranked[0]]),
            )
        )
        left_out.update(index for setting in ranked[1:] for index in by_setting[setting])
    return tuple(found), frozenset(left_out)


def arms_of(axes: Sequence[Axis], trials: Sequence[PlannedTrial]) -> tuple[ArmTrials, ...]:
    """Return the arms of a plan in the order of the grid; none if no axis is compared."""
    compared = with_role(axes, Role.TREATMENT)
    if not compared:
        return ()
    members: dict[Coordinates, list[int]] = {}
    for index, trial in enumerate(trials):
        members.setdefault(coordinates(compared, trial), []).append(index)
    return tuple(ArmTrials(describe(compared, arm), arm, frozenset(of)) for arm, of in sorted(members.items()))


def coordinates(axes: Sequence[Axis], trial: PlannedTrial) -> Coordinates:
    """Return the indices of a trial's values of some axes."""
    return tuple(axis.index(trial) for axis in axes)


def describe(axes: Sequence[Axis], where: Coordinates) -> str:
    """Return the values of some axes as text, such as "num_layers 2, lr 0.01"."""
    return ", ".join(axis.describe(index) for axis, index in zip(axes, where, strict=True))
