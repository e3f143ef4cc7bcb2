"""Tests of the headline: bound or estimate, range over readings, and condition, as fields of the dataclass."""

import numpy as np
import pytest

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.headline import Claim, Headline, headline_of
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import headline
from raycap.results import RunRecord, SweepRecord
from tests.support.planted import sweep

TRUE_BITS = 2.0


def planted(time_constant: float, record: SweepRecord | None = None) -> tuple[Analysis, Headline]:
    """Analyse a planted sweep whose trials approach their end with a time constant in units of all exposures."""
    record = record or sweep([10, 12, 16, 20], seeds=(0, 1))
    trials, spec = record.trials, record.spec.analysis
    cell_of = cells(trials)
    found = plant(
        trials,
        Truth(headline(spec), TRUE_BITS, noise=0.02, time_constant=time_constant),
        spec,
        np.array([cell_of[trial.trial_id] for trial in trials]),
        rng=np.random.default_rng(0),
    )
    results = {result.trial_id: Measured.of(result) for result in found}
    analysis = analyse(record, RunRecord(wall_seconds=1.0, slots=1), results, {})
    number = headline_of(analysis)
    assert number is not None
    return analysis, number


@pytest.mark.parametrize(("time_constant", "claim"), [(0.1, Claim.ESTIMATE), (0.6, Claim.BOUND)])
def test_a_number_of_trials_that_still_learn_is_a_bound(time_constant: float, claim: Claim) -> None:
    analysis, found = planted(time_constant)
    assert found.claim is claim
    assert found.num_still_learning == (found.num_trials if claim is Claim.BOUND else 0)
    assert found.value.low <= TRUE_BITS <= found.value.high
    assert found.exposures == (100.0, 100.0)
    assert found.value == analysis.law.alpha


def test_the_range_holds_the_interval_of_every_reading_that_is_not_ruled_out() -> None:
    analysis, found = planted(0.1)
    low, high = found.range
    assert analysis.headline in found.readings
    assert all(low <= value.low and value.high <= high for value in found.readings.values())
    assert low == min(value.low for value in found.readings.values())
