"""Tests of the headline: bound or estimate, range over readings, laws of compared values, best settings of training."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycap import pipeline
from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.answer import answer
from raycap.analysis.figures.all import FIGURES
from raycap.analysis.headline import Claim, Headline, headlines
from raycap.analysis.laws import MIN_SIZE_RATIO, FitStatus
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import headline
from raycap.analysis.summary import summary
from raycap.results import RunRecord, SweepRecord
from raycap.spec import AnalysisSpec, TrialSpec
from tests.support import synthetic
from tests.support.planted import RUN, measured, results, sweep

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
    (number,) = headlines(analysis)
    return analysis, number


@pytest.mark.parametrize(("time_constant", "claim"), [(0.1, Claim.ESTIMATE), (0.6, Claim.BOUND)])
def test_a_number_of_trials_that_still_learn_is_a_bound(time_constant: float, claim: Claim) -> None:
    analysis, found = planted(time_constant)
    assert found.claim is claim
    assert found.num_still_learning == (found.num_trials if claim is Claim.BOUND else 0)
    assert found.value.low <= TRUE_BITS <= found.value.high
    assert found.exposures == (100.0, 100.0)
    assert found.value == analysis.law.alpha


def test_the_law_of_points_that_are_no_grid_is_found(tmp_path: Path) -> None:
    """The number of people grows with the width, and the widest models have more seeds."""
    pairs = [(10, 520), (12, 650), (16, 940), (20, 1270)]
    points = [{"model.hidden_size": width, "profiles.num_profiles": people} for width, people in pairs]
    points[-1]["training.seed"] = [0, 1, 2, 3]  # type: ignore[assignment]
    trial = {"profiles": {"num_relations": 2, "names": {"first": 20, "middle": 20, "last": 40}}}
    trial["model"] = {"num_layers": 2, "tie_embeddings": True, "heads": {"num_heads": 1}}
    path = tmp_path / "points.yaml"
    path.write_text(json.dumps({"trial": trial, "points": points, "grid": {"training.seed": [0, 1]}}))
    record, _ = pipeline.prepare(str(path), ())
    assert len(record.trials) == 10
    analysis, found = planted(0.1, record)
    assert found.value.low <= TRUE_BITS <= found.value.high
    assert analysis.law.num_trials == 10
    assert not analysis.arms


def test_the_range_holds_the_interval_of_every_reading_that_is_not_ruled_out() -> None:
    analysis, found = planted(0.1)
    low, high = found.range
    assert analysis.headline in found.readings
    assert all(low <= value.low and value.high <= high for value in found.readings.values())
    assert low == min(value.low for value in found.readings.values())


READING = headline(AnalysisSpec())
SIZES = "grid.model.hidden_size=[10,14,20]"
SEEDS = "grid.training.seed=[0,1,2]"
RATES = {0.01: 1.6, 0.02: 2.0, 0.03: 1.98}
"""Planted bits per parameter by learning rate."""
LAYERS = {1: 2.0, 2: 1.6}
"""Planted bits per parameter by number of layers."""


def of_rates(spec: TrialSpec) -> Truth:
    return Truth(READING, RATES[spec.training.optimizer.lr], noise=0.02)


def of_layers(spec: TrialSpec) -> Truth:
    return Truth(READING, LAYERS[spec.model.num_layers], noise=0.02)


def of_equal_layers(spec: TrialSpec) -> Truth:
    return Truth(READING, 2.0, noise=0.02)


RATE_SWEEP = (SIZES, SEEDS, "grid.training.optimizer.lr=[0.01,0.02,0.03]")
LAYER_SWEEP = ("grid.model.hidden_size=[14,20,28]", SEEDS, "grid.model.num_layers=[1,2]")


def simulated(overrides: tuple[str, ...], truth: Callable[[TrialSpec], Truth], seed: int = 0) -> Analysis:
    return synthetic.analysed(overrides, truth, seed=seed)


def test_only_the_best_learning_rate_of_each_cell_enters_the_law() -> None:
    analysis = simulated(RATE_SWEEP, of_rates)
    (found,) = headlines(analysis)
    assert found.num_trials == 3 * 3
    assert found.value.low < 2.0 < found.value.high
    chosen = {setting.chosen for setting in analysis.best_settings}
    assert len(analysis.best_settings) == 3
    assert "lr 0.01" not in chosen
    assert all(setting.learned_bits >= setting.second_learned_bits for setting in analysis.best_settings)
    left_out = [trial_id for trial_id, why in analysis.law.excluded.items() if "setting" in why]
    assert len(left_out) == 2 * 9
    entries = summary(analysis)["best_settings"]
    assert [entry["chosen"] for entry in entries] == [setting.chosen for setting in analysis.best_settings]


def test_each_compared_value_has_a_law_of_its_own() -> None:
    analysis = simulated(LAYER_SWEEP, of_layers)
    found = {one.arm: one for one in headlines(analysis)}
    assert list(found) == ["num_layers 1", "num_layers 2"]
    for arm, truth in zip(found.values(), LAYERS.values(), strict=True):
        assert arm.num_trials == 9
        assert arm.value.low < truth < arm.value.high
    (ratio,) = analysis.law.ratios
    assert {ratio.value, ratio.baseline} == {"1", "2"}
    truth = LAYERS[int(ratio.value)] / LAYERS[int(ratio.baseline)]
    assert ratio.ratio.low < truth < ratio.ratio.high
    assert all(f"{arm} {one.value.estimate:.2f}" in answer(analysis) for arm, one in found.items())
    assert [arm["arm"] for arm in summary(analysis)["arm_laws"]] == list(found)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_law_is_extrapolated_only_if_the_learning_rate_does_not_decay(schedule: str) -> None:
    time_constant = 0.6
    truth = Truth(READING, TRUE_BITS, noise=0.02, time_constant=time_constant)
    analysis = simulated((SIZES, SEEDS, f"trial.training.optimizer.schedule={schedule}"), lambda spec: truth)
    (found,) = headlines(analysis)
    assert found.claim is Claim.BOUND
    # Planted curves are TRUE_BITS (1 - exp(-x / tau)) / (1 - exp(-1 / tau)) at a share x of all exposures.
    limit = TRUE_BITS / -np.expm1(-1 / time_constant)
    if schedule == "constant":
        assert found.asymptote.low < limit < found.asymptote.high
        assert f"{found.asymptote.estimate:.2f}" in answer(analysis)
        assert summary(analysis)["headlines"][0]["asymptote"] == [*found.asymptote]
    else:
        assert np.isnan(found.asymptote.estimate)


def test_models_of_nearly_one_size_have_no_law() -> None:
    record = sweep([16, 18], seeds=(0, 1))
    sizes = [trial.parameters.total for trial in record.trials]
    assert 1 < max(sizes) / min(sizes) < MIN_SIZE_RATIO
    analysis = analyse(record, RUN, measured(results(record, 2.0)), {})
    assert headlines(analysis) == ()
    assert analysis.law.status is analysis.law.power.status is FitStatus.ONE_SIZE
    assert np.isnan(analysis.law.alpha.estimate)
    assert "learned 2.00 bits per parameter" in answer(analysis)
    assert "nan" not in answer(analysis)
    assert FIGURES["capacity"](analysis)
    assert FIGURES["exposures"](analysis)
    assert FIGURES["law"](analysis) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "truth"), [(RATE_SWEEP, of_rates), (LAYER_SWEEP, of_layers), (LAYER_SWEEP, of_equal_layers)]
)
def test_the_intervals_of_500_sweeps_hold_the_truth(
    overrides: tuple[str, ...], truth: Callable[[TrialSpec], Truth]
) -> None:
    """The interval of each arm holds its truth: the best learning rate's 2.0, or that of the number of layers."""
    held = []
    for seed in range(500):
        analysis = simulated(overrides, truth, seed)
        for arm in analysis.arms or (None,):
            law = analysis.law if arm is None else arm.laws[READING]
            planned = analysis.sweep.trials[min(arm.trials)] if arm else None
            bits = truth(planned.spec).bits_per_param if planned else max(RATES.values())
            held.append(law.alpha.low <= bits <= law.alpha.high)
    print(f"{100 * np.mean(held):.1f} % of {len(held)} intervals hold the truth")
    assert np.mean(held) >= 0.93
