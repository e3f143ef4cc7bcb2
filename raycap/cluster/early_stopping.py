"""Early stop across trials: a Tune scheduler that ends trials which can no longer matter.

Workers report what every evaluation says, through Ray Train and the driver, to this scheduler; it lets every trial go on,
but wishes the END of those that are done. Such a trial measures where it is, and leaves a result like any other, with its
reason: nothing that it has learned is thrown away, as it would be if Tune killed it.
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

EXHAUSTED_BELOW = 0.01
"""A trial that loses less than this share of its answers' entropy has learned its data."""
PLATEAU_BELOW = 0.01
"""A trial whose learned bits grew by less than this share while its exposures doubled has arrived."""
PLATEAU_FROM = 0.25
"""But not before this share of its length: many stand still for a while before they find out how facts are stored."""


def evaluation_metrics(planned: PlannedTrial, analysis: AnalysisSpec, evaluation: Evaluation) -> dict[str, Any]:
    """What the scheduler must know of an evaluation."""
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
    """Ends trials for the reasons that are asked for."""

    def __init__(self, reasons: tuple[EarlyStop, ...]) -> None:
        super().__init__()
        self._reasons = reasons
        self._curves: dict[str, list[tuple[float, float]]] = defaultdict(list)  # exposures, learned bits

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Note an evaluation; always CONTINUE, since trials end by themselves."""
        if "learned_bits" in result:
            curve = self._curves[result["trial"]]
            curve.append((result["exposures"], result["learned_bits"]))
            exhausted = result["lost_share"] < EXHAUSTED_BELOW
            arrived = result["trained_share"] >= PLATEAU_FROM and _stands_still(*np.array(curve).T)
            if (exhausted and EarlyStop.EXHAUSTED in self._reasons) or (arrived and EarlyStop.PLATEAU in self._reasons):
                send_signal(Signal.STOP, result["trial"])
        return FIFOScheduler.CONTINUE


def _stands_still(exposures: Floats, learned_bits: Floats) -> bool:
    """Whether a doubling of exposures brought next to nothing, (E,) each; never where no doubling was seen."""
    return bool(exposures[0] <= exposures[-1] / 2 and gain(exposures, learned_bits) < PLATEAU_BELOW)
