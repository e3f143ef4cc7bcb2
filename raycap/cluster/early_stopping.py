"""The early stopping rule, which ends trials once more training would hardly change their result.

Workers apply the rule to every evaluation before they continue training. So a trial ends at the evaluation that meets the
rule, and the same spec ends at the same step in every run. A trial that ends early stores a result like any other, with the
reason.
"""

from collections.abc import Sequence

import numpy as np

from raycap.analysis.capacity import headline_bits, lost_share
from raycap.analysis.curves import gain
from raycap.analysis.measurements import Floats, Losses
from raycap.results import Evaluation, PlannedTrial
from raycap.spec import AnalysisSpec, EarlyStop

EXHAUSTED_LOST_SHARE = 0.01
"""A trial is exhausted if its loss is below this share of the entropy of its answers: it has learned its data."""
PLATEAU_GAIN = 0.01
"""A trial is on a plateau if its learned bits grew by less than this share while its exposures doubled."""
PLATEAU_MIN_TRAINED_SHARE = 0.25
"""A plateau counts only after this share of the training: many trials pass through an early plateau."""


def ends_early(
    planned: PlannedTrial, analysis: AnalysisSpec, reasons: tuple[EarlyStop, ...], evaluations: Sequence[Evaluation]
) -> bool:
    """Return whether a trial may end at the last of its evaluations so far, for one of the given reasons."""
    losses = Losses.of(planned.spec, planned.populations, evaluations)
    learned_bits = headline_bits(losses, analysis)
    exposures = np.array([evaluation.exposures for evaluation in evaluations])
    exhausted = bool(lost_share(losses)[-1] < EXHAUSTED_LOST_SHARE)
    trained_share = evaluations[-1].step / planned.steps
    plateau = trained_share >= PLATEAU_MIN_TRAINED_SHARE and _on_plateau(exposures, learned_bits)
    return (exhausted and EarlyStop.EXHAUSTED in reasons) or (plateau and EarlyStop.PLATEAU in reasons)


def _on_plateau(exposures: Floats, learned_bits: Floats) -> bool:
    """Whether the last doubling of the exposures added almost no learned bits.

    Both arrays have shape (E,), one element per evaluation. False if the evaluations do not span a doubling.
    """
    return bool(exposures[0] <= exposures[-1] / 2 and gain(exposures, learned_bits) < PLATEAU_GAIN)
