"""Tests of training curves: asymptotes that are recovered or refused, verdicts, gains and derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.analysis.curves import Convergence, asymptote, convergence, derivative, gain

EXPOSURES = 100 * 0.5 ** np.arange(8)[::-1]


def approach(end: float, tau: float, exposures: np.ndarray = EXPOSURES) -> np.ndarray:
    return end * (1 - np.exp(-exposures / tau))


@settings(deadline=None)
@given(st.floats(1e3, 1e7), st.floats(5, 60))
def test_an_exponential_approach_is_recovered(end: float, tau: float) -> None:
    limit = asymptote(EXPOSURES, approach(end, tau))
    assert limit.refused == ""
    assert limit.learned_bits.estimate == pytest.approx(end, rel=5e-3)
    assert limit.learned_bits.low <= end * (1 + 1e-3)
    assert limit.learned_bits.high >= end * (1 - 1e-3)


def test_intervals_of_noisy_curves_cover_the_asymptote_at_their_level() -> None:
    rng = np.random.default_rng(0)
    exposures = np.linspace(5, 100, 20)
    covered = []
    for _ in range(300):
        limit = asymptote(exposures, approach(1e5, 30.0, exposures) + 1e3 * rng.standard_normal(20))
        assert not limit.refused
        covered.append(limit.learned_bits.low <= 1e5 <= limit.learned_bits.high)
    assert 0.92 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("learned", "why"),
    [
        (1e3 * EXPOSURES, "straight line"),
        (approach(1e5, 2000.0), "straight line"),
        (np.where(EXPOSURES > 20, approach(1e5, 20.0), -1.0), "fewer than 5"),
        (1e5 + 1e5 * np.exp(-EXPOSURES / 10), "fall"),
    ],
)
def test_asymptotes_that_the_curve_does_not_determine_are_refused(learned: np.ndarray, why: str) -> None:
    limit = asymptote(EXPOSURES, learned)
    assert why in limit.refused
    assert np.isnan(limit.learned_bits.estimate)


LOST = np.linspace(0.9, 0.5, 8)


@pytest.mark.parametrize(
    ("learned", "lost", "verdict"),
    [
        (approach(1e5, 10.0), LOST, Convergence.CONVERGED),
        (approach(1e5, 60.0), LOST, Convergence.STILL_LEARNING),
        (approach(1e5, 60.0), LOST - 0.45, Convergence.EXHAUSTED),
        (approach(1e5, 10.0), LOST[::-1], Convergence.DIVERGED),
        (approach(1e5, 10.0), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.5, 0.6]), Convergence.DIVERGED),
        (approach(1e5, 10.0), np.append(LOST[:-1], LOST[-2] + 0.01), Convergence.CONVERGED),
        (np.full(8, -1.0), np.full(8, 1.0), Convergence.STILL_LEARNING),
    ],
)
def test_the_first_rule_that_holds_decides_the_verdict(
    learned: np.ndarray, lost: np.ndarray, verdict: Convergence
) -> None:
    assert convergence(EXPOSURES, learned, lost) is verdict


def test_convergence_is_unknown_without_an_evaluation_at_half_of_the_exposures() -> None:
    one = np.array([100.0])
    assert convergence(one, np.array([1e5]), np.array([0.5])) is Convergence.UNKNOWN
    late = np.array([80.0, 100.0])
    assert convergence(late, np.array([9e4, 1e5]), np.array([0.6, 0.5])) is Convergence.UNKNOWN


def test_gain_is_the_share_of_the_last_doubling() -> None:
    exposures = np.array([10.0, 25.0, 100.0])
    learned = np.array([0.0, 40.0, 100.0])  # 70 at 50 exposures, halfway between 25 and 100 on a log scale
    assert gain(exposures, learned) == pytest.approx(0.3)


def test_derivatives_are_per_doubling_of_exposures() -> None:
    loss = 8 - 0.75 * np.log2(EXPOSURES)
    assert derivative(EXPOSURES, loss) == pytest.approx(np.full(7, 0.75))
