"""Tests of the early stopping rule on results from a known law."""

from raycap.cluster.early_stopping import ends_early
from raycap.results import Evaluation, PlannedTrial
from raycap.spec import AnalysisSpec, EarlyStop
from tests.support.planted import results, sweep

EXHAUSTED, PLATEAU = EarlyStop.EXHAUSTED, EarlyStop.PLATEAU


def planted(bits_per_param: float) -> tuple[PlannedTrial, tuple[Evaluation, ...]]:
    """Return a trial of 100 steps and its evaluations at steps 10 and 100, at which it has learned nothing and the rest."""
    record = sweep([16])
    (trial,), (result,) = record.trials, results(record, bits_per_param).values()
    return trial.model_copy(update={"steps": 100}), result.evaluations


def reasons_met(trial: PlannedTrial, evaluations: tuple[Evaluation, ...]) -> list[EarlyStop]:
    return [reason for reason in EarlyStop if ends_early(trial, AnalysisSpec(), (reason,), evaluations)]


def test_a_trial_that_has_learned_its_data_is_exhausted() -> None:
    trial, evaluations = planted(1.0)
    everything = trial.dataset_bits["enumerate"] / trial.parameters.total
    assert reasons_met(trial, evaluations) == []
    assert reasons_met(trial, planted(0.999 * everything)[1]) == [EXHAUSTED]
    assert reasons_met(trial, evaluations[:1]) == []


def test_a_trial_that_learned_nothing_during_a_doubling_is_on_a_plateau() -> None:
    trial, (first, last) = planted(1.0)
    before = last.model_copy(update={"step": 40, "exposures": 40.0})
    assert reasons_met(trial, (first, before, last)) == [PLATEAU]
    longer = trial.model_copy(update={"steps": 1000})  # only a tenth of the training is done
    assert reasons_met(longer, (first, before, last)) == []
