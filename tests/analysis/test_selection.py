"""Tests of the comparison of readings and of simulated power, on synthetic results with a known true reading."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant, share_curves
from raycap.analysis.power import simulate
from raycap.analysis.readings import Reading
from raycap.analysis.scoring import predictive_bits
from raycap.analysis.selection import (
    Constancy,
    Evidence,
    best_of,
    compare_pairs,
    compare_readings,
    distinct_readings,
    holm,
    in_order,
    paired_bootstrap,
    stacking,
)
from raycap.plan.expand import expand
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import (
    AnalysisSpec,
    Calibration,
    EncodingScheme,
    Kind,
    ModelByWidth,
    NamePools,
    NumHeads,
    ProfilesByCount,
    QuestionsByShare,
    SelectionScheme,
    SweepSpec,
    TrainingSpec,
    TrialSpec,
)
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep
from tests.support.planted import RUN, measured, results, sweep, table

SET, ENUMERATE, INDEPENDENT = (Reading(EncodingScheme.OPTIMAL, selection) for selection in SelectionScheme)


DEFAULT_ANALYSIS = AnalysisSpec()


def planned(
    analysis: AnalysisSpec = DEFAULT_ANALYSIS,
    *,
    relations: tuple[int, ...] = (4,),
    people: tuple[int, ...] = (1000, 2000),
    widths: tuple[int, ...] = (14, 18, 24),
    seeds: int = 1,
    hops: tuple[int, ...] = (1,),
) -> SweepRecord:
    points = [
        GridPoint(
            {
                "profiles.num_relations": r,
                "profiles.num_profiles": n,
                "model.hidden_size": width,
                "training.seed": seed,
            },
            TrialSpec(
                profiles=ProfilesByCount(
                    num_profiles=n, num_relations=r, names=NamePools(first=20, middle=20, last=40)
                ),
                questions=QuestionsByShare(hops=hops),
                model=ModelByWidth(hidden_size=width, num_layers=2, tie_embeddings=True, heads=NumHeads(num_heads=1)),
                training=TrainingSpec(seed=seed),
            ),
            "planted",
        )
        for r in relations
        for n in people
        for width in widths
        for seed in range(seeds)
    ]
    spec = SweepSpec(name="planted", analysis=analysis)
    trials = tuple(expand(LoadedSweep(spec, points, "", "")))
    return SweepRecord(spec=spec, question="Which reading is planted?", spec_yaml="", trials=trials)


def cell_indices(trials: tuple[PlannedTrial, ...]) -> np.ndarray:
    cell_of = cells(trials)
    return np.array([cell_of[trial.trial_id] for trial in trials])


def analysed(record: SweepRecord, truth: Truth, seed: int = 0) -> Analysis:
    spec = record.spec.analysis
    found = plant(record.trials, truth, spec, cell_indices(record.trials), rng=np.random.default_rng(seed))
    return analyse(record, RUN, {result.trial_id: Measured.of(result) for result in found}, {})


@pytest.mark.slow
@pytest.mark.parametrize("truth", [SET, ENUMERATE, INDEPENDENT], ids=str)
def test_varied_numbers_of_relations_identify_the_true_selection(truth: Reading) -> None:
    record = planned(relations=(0, 1, 4, 17))
    analysis = analysed(record, Truth(truth, 1.8, noise=0.03))
    comparison = analysis.comparison
    assert comparison.best == comparison.ahead == truth
    assert in_order(comparison)[0] == truth
    assert comparison.weights[truth] > 0.9
    assert analysis.laws[truth].alpha.estimate == pytest.approx(1.8, rel=0.04)
    constant = {trend.reading for trend in comparison.trends if trend.constancy is Constancy.CONSTANT}
    varies = {trend.reading for trend in comparison.trends if trend.constancy is Constancy.VARIES}
    assert truth in constant - varies
    assert {SET, ENUMERATE, INDEPENDENT} - {truth} <= varies


@pytest.mark.parametrize(
    "truth",
    [pytest.param(each, marks=[pytest.mark.slow] * (each != EncodingScheme.OPTIMAL)) for each in EncodingScheme],
)
def test_the_true_encoding_scheme_of_two_hops_has_the_best_score(truth: EncodingScheme) -> None:
    analysis = AnalysisSpec(schemes=tuple(EncodingScheme), selections=(SelectionScheme.ENUMERATE,))
    # Larger models for the big hash, whose code length is several times that of the other schemes.
    widths = (20, 28, 36) if truth is EncodingScheme.TWO_HOP_BIG_HASH else (14, 18, 24)
    record = planned(analysis, relations=(2, 4, 8), people=(500,), widths=widths, hops=(1, 2))
    comparison = analysed(record, Truth(Reading(truth, SelectionScheme.ENUMERATE), 1.5, noise=0.03)).comparison
    assert len(comparison.readings) == 3
    assert comparison.ahead == Reading(truth, SelectionScheme.ENUMERATE)


def test_encoding_schemes_are_the_same_reading_for_one_hop_questions() -> None:
    analysis = AnalysisSpec(schemes=tuple(EncodingScheme), selections=(SelectionScheme.SET, SelectionScheme.ENUMERATE))
    comparison = analysed(planned(analysis), Truth(ENUMERATE, noise=0.05)).comparison
    assert set(comparison.readings) == {SET, ENUMERATE}
    assert comparison.same[Reading(EncodingScheme.TWO_HOP_DOUBLE, SelectionScheme.SET)] == SET
    assert len(comparison.same) == 4
    assert len(comparison.pairs) == 1


def test_too_few_cells_decide_nothing() -> None:
    comparison = analysed(planned(people=(1000,)), Truth(ENUMERATE, noise=0.01)).comparison
    assert comparison.num_cells == 3
    assert comparison.best is None
    assert comparison.pairs == ()


def test_ignorant_models_decide_nothing() -> None:
    """The loss of names is not measured, so models that know little else are no evidence for a selection scheme."""
    record = sweep([12, 14, 16, 20, 24])
    found = {}
    for trial_id, result in results(record, 1.8).items():
        losses = table(result.populations[0], 0.97)
        evaluations = tuple(e.model_copy(update={"losses": losses}) for e in result.evaluations)
        found[trial_id] = result.model_copy(update={"evaluations": evaluations})
    analysis = analyse(record, RUN, measured(found), {})
    assert set(analysis.law.excluded.values()) == {"answers near chance"}
    assert analysis.comparison.num_trials == 0
    assert analysis.comparison.best is None


def test_diverged_trials_enter_neither_laws_nor_comparison() -> None:
    record = sweep([12, 14, 16, 20, 24])
    found = results(record, 1.8)
    worst = record.trials[2]
    broken = found[worst.trial_id]
    best = broken.final.model_copy(update={"step": 1, "losses": table(broken.populations[0], 0.2)})
    found[worst.trial_id] = broken.model_copy(update={"evaluations": (best, *broken.evaluations[1:])})
    analysis = analyse(record, RUN, measured(found), {})
    assert analysis.law.excluded == {worst.trial_id: "diverged"}
    assert analysis.law.num_trials == analysis.law.power.num_trials == analysis.comparison.num_trials == 4


def test_exhausted_and_ignorant_trials_do_not_enter_the_comparison() -> None:
    record = planned(relations=(0, 4, 17), people=(1000,), widths=(10, 40))
    comparison = analysed(record, Truth(ENUMERATE, 2.0, noise=0.02)).comparison
    assert 0 < comparison.num_trials < len(record.trials)


def test_a_calibration_separates_readings_that_differ_by_a_constant_factor() -> None:
    """With a single population the two readings differ by a nearly constant factor of bits per parameter."""

    def score_difference(calibration: Calibration | None) -> float:
        analysis = AnalysisSpec(
            selections=(SelectionScheme.ENUMERATE, SelectionScheme.INDEPENDENT), calibration=calibration
        )
        record = planned(analysis, people=(1000,), widths=(10, 12, 14, 16), seeds=2)
        found = analysed(record, Truth(ENUMERATE, 2.0, noise=0.05))
        return found.comparison.scores_bits[ENUMERATE] - found.comparison.scores_bits[INDEPENDENT]

    assert score_difference(Calibration(bits_per_param=2.0, standard_error=0.02)) > score_difference(None) + 1


def test_scores_are_densities_of_the_loss() -> None:
    """The density integrates to 1 over all losses of a trial, under every reading."""
    (trial,) = planned(people=(1000,), widths=(14,)).trials
    (curve,) = share_curves([trial], AnalysisSpec())
    params = np.append(np.geomspace(1e4, 2e4, 6), trial.parameters.total)
    others = 2 * params[:-1] * np.array([1, 1.1, 0.9, 1.05, 0.95, 1.0])
    shares = np.geomspace(1e-3, 4, 4001)
    for reading in (SET, ENUMERATE):
        learned = curve.bits_at(reading, shares)
        bits = np.concatenate([np.tile(others, (len(shares), 1)), learned[:, None]], axis=1)
        slopes = np.concatenate([np.ones((len(shares), 6)), curve.slope_bits(reading, shares)[:, None]], axis=1)
        data = np.append(others * 3, curve.learned_bits[reading][0])
        groups = np.array([0, 0, 0, 0, 0, 0, 1])
        found = predictive_bits(bits, data, slopes, params, groups, np.ones(bits.shape, bool))
        density = np.exp2(found[:, -1])
        assert np.trapezoid(density, np.log(shares)) == pytest.approx(1.0, abs=0.05)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_does_not_lower_p_values_and_keeps_their_order(p_values: list[float]) -> None:
    p = np.array(p_values)
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(len(p) * p, 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_holm_agrees_with_a_worked_example() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])


def test_the_paired_bootstrap_has_its_nominal_error_rate_and_coverage() -> None:
    rng = np.random.default_rng(0)
    no_difference = rng.standard_normal((1000, 12))
    p_values, intervals = paired_bootstrap(no_difference, rng=rng, num_resamples=500)
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.025)
    assert ((intervals[:, 0] < 0) & (intervals[:, 1] > 0)).mean() == pytest.approx(0.95, abs=0.03)
    clear, _ = paired_bootstrap(no_difference + 2.0, rng=rng, num_resamples=500)
    assert (clear < 0.05).mean() > 0.95
    same, _ = paired_bootstrap(np.zeros((1, 12)), rng=rng)
    assert same[0] == 1.0


def test_stacking_weights_readings_by_how_well_they_predict() -> None:
    rng = np.random.default_rng(0)
    good = rng.standard_normal(40)
    assert stacking(np.stack([good, good - 3])).tolist() == pytest.approx([1, 0], abs=1e-3)
    each_half = np.where(np.arange(40) < 20, 3.0, -3.0)
    assert stacking(np.stack([each_half, -each_half])).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)


@pytest.mark.parametrize(("by_size", "verdict"), [(1.0, "better"), (-0.1, "undecided"), (None, "better")])
def test_a_verdict_needs_the_same_sign_with_whole_sizes_left_out(by_size: float | None, verdict: str) -> None:
    """A reading that predicts better for known sizes but worse for a new size is undecided."""
    rng = np.random.default_rng(0)
    by_cell = np.stack([3 + 0.1 * rng.standard_normal(12), np.zeros(12)])
    sizes = np.empty(0) if by_size is None else np.stack([np.full(12, by_size), np.zeros(12)])
    (pair,) = compare_pairs((SET, ENUMERATE), by_cell, sizes, rng=rng)
    assert pair.p_value < 0.01
    assert pair.difference_bits.low > 0
    assert pair.verdict == verdict
    (swapped,) = compare_pairs((ENUMERATE, SET), by_cell[::-1], sizes[::-1], rng=rng)
    assert swapped.verdict == {"better": "worse"}.get(verdict, verdict)
    assert best_of((pair,)) == best_of((swapped,)) == (SET if verdict == "better" else None)


def test_constancy_needs_an_interval_within_the_margin() -> None:
    """An exponent near 0 is constant with a narrow interval and undecided with a wide one. An exponent of 0.5 varies."""

    def constancy(exponent: float, noise: float) -> Constancy:
        rng = np.random.default_rng(3)
        params = np.repeat(np.geomspace(1e4, 4e4, 6), 2)
        # The noise is balanced within each size, so that the estimate is exact.
        bits = 2e4 * (params / 1e4) ** (1 + exponent) * np.exp(noise * np.tile([1.0, -1.0], 6))
        evidence = Evidence(params, np.arange(12), {}, {SET: bits}, {SET: params * 9}, {SET: params})
        (trend,) = compare_readings(evidence, rng=rng, num_resamples=100).trends
        return trend.constancy

    assert constancy(0.0, 0.01) is Constancy.CONSTANT
    assert constancy(0.0, 0.4) is Constancy.UNDECIDED
    assert constancy(0.5, 0.05) is Constancy.VARIES


def test_readings_without_code_length_are_not_compared() -> None:
    """Names alone have no bits if names are independent."""
    bits = {SET: np.array([2.0, 3.0]), ENUMERATE: np.array([3.0, 4.0]), INDEPENDENT: np.zeros(2)}
    distinct, same = distinct_readings(bits, {r: 2 * b for r, b in bits.items()})
    assert (distinct, same) == ([SET, ENUMERATE], {})


def test_a_calibration_increases_power() -> None:
    decided = []
    for calibration in (None, Calibration(bits_per_param=1.8, standard_error=0.02)):
        record = planned(AnalysisSpec(calibration=calibration))
        arguments = {"noise": 0.1, "bits_per_param": 1.8, "num_sweeps": 40, "rng": np.random.default_rng(0)}
        decided.append(simulate(record.trials, record.spec.analysis, **arguments).decided.sum())
    assert decided[1] > decided[0]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, pytest.param(0.1, marks=pytest.mark.slow)])
def test_simulated_power_agrees_with_the_comparison(noise: float) -> None:
    """Varied R identifies the selection scheme more often than R = 4 alone (docs/science.md#power)."""
    mixed, alone = (planned(relations=relations) for relations in ((0, 1, 4, 17), (4,)))
    both = [
        simulate(
            record.trials,
            record.spec.analysis,
            noise=noise,
            bits_per_param=1.8,
            num_sweeps=60,
            rng=np.random.default_rng(0),
        )
        for record in (mixed, alone)
    ]
    for power in both:
        assert power.readings == (SET, ENUMERATE, INDEPENDENT)
        assert power.picked.sum(axis=1) == pytest.approx(np.ones(3))  # every sweep had enough cells
        assert (power.decided <= np.diag(power.picked) + 1e-12).all()
        assert power.misled.max() <= 0.1
    right = [np.diag(power.picked) for power in both]
    print(noise, right)
    assert right[0].min() >= 0.95
    assert right[1].mean() < right[0].mean() or noise < 0.05
    wins = sum(analysed(mixed, Truth(SET, 1.8, noise=noise), seed).comparison.ahead == SET for seed in range(5))
    assert wins == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits_per_param", [pytest.param(0.7, marks=pytest.mark.slow), 1.0, pytest.param(1.2, marks=pytest.mark.slow)]
)
def test_capacities_of_planted_losses_are_the_planted_bits(bits_per_param: float) -> None:
    """The analysis recovers the bits per parameter from synthetic losses, also just above chance."""
    analysis = AnalysisSpec(schemes=tuple(EncodingScheme))
    record = planned(analysis, relations=(2,), people=(300,), widths=(8, 10, 14), hops=(1, 2))
    for scheme in EncodingScheme:
        truth = Truth(Reading(scheme, SelectionScheme.ENUMERATE), bits_per_param, noise=0.0, sharpness=60.0)
        found = analysed(record, truth).totals(truth.reading, final=True)
        assert found["bits_per_param"].tolist() == pytest.approx([bits_per_param] * 3, rel=2e-3)
        assert json.dumps(found["kind"].astype(str).tolist()) == json.dumps([str(Kind.TWO_HOP)] * 3)
