"""A Ray Tune scheduler that ends trials early once more training cannot change their result.

Workers report the metrics of every evaluation through Ray Train and the driver to this scheduler. The scheduler never asks
Tune to stop a trial, because Tune would kill it and its result would be lost. It sends `Signal.STOP` instead: the trial then
evaluates, stores a result like any other, and records that it was stopped early.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

from raycap.analysis.capacity import TOTAL, capacities, lost_share
from raycap.analysis.curves import gain
from raycap.analysis.measurements import Floats, Losses
from raycap.analysis.readings import headline
from raycap.cluster.signals import send_signal
from raycap.learner.signals import Signal
from raycap.results import Evaluation, PlannedTrial
from raycap.spec import AnalysisSpec, EarlyStop

EXHAUSTED_LOST_SHARE = 0.01
"""A trial is exhausted if its loss is below this share of the entropy of its answers: it has learned its data."""
PLATEAU_GAIN = 0.01
"""A trial is on a plateau if its learned bits grew by less than this share while its exposures doubled."""
PLATEAU_MIN_TRAINED_SHARE = 0.25
"""A plateau counts only after this share of the training: many trials pass through an early plateau."""


def evaluation_metrics(planned: PlannedTrial, analysis: AnalysisSpec, evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of one evaluation that the scheduler needs."""
    losses = Losses.of(planned.spec, planned.populations, [evaluation])
    (learned,) = (
        capacity.learned_bits[0]
        for capacity in capacities(losses, analysis)
        if capacity.subject == TOTAL
        and capacity.reading == headline(analysis)
        and capacity.is_headline(losses, analysis)
    )
    return {
        "trial": planned.trial_id,
        "exposures": evaluation.exposures,
        "trained_share": evaluation.step / planned.steps,
        "learned_bits": float(learned),
        "lost_share": float(lost_share(losses)[0]),
    }


class EarlyStopping(FIFOScheduler):
    """FIFO scheduler that sends `Signal.STOP` to trials for the given reasons."""

    def __init__(self, reasons: tuple[EarlyStop, ...]) -> None:
        super().__init__()
        self._reasons = reasons
        self._curves: dict[str, list[tuple[float, float]]] = defaultdict(list)  # exposures, learned bits

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record an evaluation. Always returns CONTINUE, since a signalled trial ends by itself."""
        if "learned_bits" in result:
            curve = self._curves[result["trial"]]
            curve.append((result["exposures"], result["learned_bits"]))
            exhausted = result["lost_share"] < EXHAUSTED_LOST_SHARE
            plateau = result["trained_share"] >= PLATEAU_MIN_TRAINED_SHARE and _on_plateau(*np.array(curve).T)
            if (exhausted and EarlyStop.EXHAUSTED in self._reasons) or (plateau and EarlyStop.PLATEAU in self._reasons):
                send_signal(Signal.STOP, result["trial"])
        decision: str = FIFOScheduler.CONTINUE
        return decision


def _on_plateau(exposures: Floats, learned_bits: Floats) -> bool:
    """Whether the last doubling of the exposures added almost no learned bits.

    Both arrays have shape (E,), one element per evaluation. False if the evaluations do not span a doubling.
    """
    return bool(exposures[0] <= exposures[-1] / 2 and gain(exposures, learned_bits) < PLATEAU_GAIN)
