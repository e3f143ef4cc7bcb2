"""Analyses of the demo's sweep with other settings, whose results are planted instead of trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant, with_mean_losses
from raycap.plan.expand import expand
from raycap.results import LossRow, RunRecord, SweepRecord
from raycap.spec import TrialSpec
from raycap.spec.file import load_sweep

SPEC = str(Path(__file__).parents[2] / "sweeps" / "specs" / "grid.yaml")
RUN = RunRecord(wall_seconds=1.0, slots=1)
HELD_OUT = "trial.questions.held_out={first_people: 0.05, tuples: 0.1}"
CHAIN = (
    "trial.questions.hops=[1,2]",
    HELD_OUT,
    "grid.questions.chain_of_thought=[false,true]",
    "grid.model.hidden_size=[20,28]",
)
"""Overrides of a sweep with and without a chain of thought, which also varies the width."""


def planned(overrides: Sequence[str]) -> SweepRecord:
    """The plan of the demo's sweep with overrides."""
    loaded = load_sweep(SPEC, tuple(overrides))
    trials = tuple(expand(loaded))
    return SweepRecord(spec=loaded.spec, question=loaded.question, spec_yaml=loaded.text, trials=trials)


def results(
    record: SweepRecord,
    truth: Callable[[TrialSpec], Truth],
    *,
    mean_bits: Callable[[TrialSpec, LossRow], float | None] = lambda spec, row: None,
    seed: int = 0,
) -> dict[str, Measured]:
    """Results that follow the truth of each trial, by trial_id.

    Args:
        record: the plan.
        truth: law that a trial follows.
        mean_bits: mean loss of a row in every evaluation, or None to keep the loss that follows from the truth.
        seed: seed of the noise.
    """
    numbers = cells(record.trials)
    rng = np.random.default_rng(seed)
    found = {}
    for each in dict.fromkeys(truth(trial.spec) for trial in record.trials):
        members = [trial for trial in record.trials if truth(trial.spec) == each]
        of_cell = np.array([numbers[trial.trial_id] for trial in members])
        for result in plant(members, each, record.spec.analysis, of_cell, rng=rng):
            found[result.trial_id] = Measured.of(with_mean_losses(result, mean_bits))
    return found


def analysed(
    overrides: Sequence[str],
    truth: Callable[[TrialSpec], Truth],
    *,
    mean_bits: Callable[[TrialSpec, LossRow], float | None] = lambda spec, row: None,
    seed: int = 0,
) -> Analysis:
    """The analysis of `results` for the plan with overrides."""
    record = planned(overrides)
    return analyse(record, RUN, results(record, truth, mean_bits=mean_bits, seed=seed), {})
