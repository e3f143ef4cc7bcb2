"""Tests of the comparison of a sweep with its published results, on planted results."""

import math

import pytest

from raycap.analysis.analyse import Analysis
from raycap.analysis.planted import Truth
from raycap.analysis.readings import Reading
from raycap.analysis.reproduction import Spread, checks, spread
from raycap.spec import EncodingScheme, SelectionScheme
from tests.support import synthetic

READING = Reading(EncodingScheme.OPTIMAL, SelectionScheme.ENUMERATE)
SWEEP = [
    "grid.training.optimizer.lr=[0.01, 0.02]",
    "grid.training.seed=[0, 1]",
    "analysis.compare=[training.optimizer.lr]",
]


def planted(slow: float, fast: float, *, seed: int = 0) -> Analysis:
    """Two learning rates with their bits per parameter, and noise of 2 % that depends on the seed."""
    bits = {0.01: slow, 0.02: fast}
    return synthetic.analysed(
        SWEEP, lambda spec: Truth(READING, bits[spec.training.optimizer.lr], noise=0.02), seed=seed
    )


@pytest.fixture(scope="module")
def published() -> Analysis:
    return planted(2.0, 2.6)


def test_results_with_other_noise_are_reproduced_and_others_are_not(published: Analysis) -> None:
    found = checks(published, published)
    assert {"bits per parameter", "one-hop questions"} == {one.quantity.split(",")[0] for one in found}
    assert any("lr 0.01 minus lr 0.02" in one.quantity for one in found)
    assert all(one.is_reproduced for one in found)
    assert all(one.again == pytest.approx(one.published.estimate) for one in found)
    assert spread(published, published) == Spread(len(published.measured), 0.0, 0.0)

    other = planted(2.0, 2.2, seed=1)
    outside = [one for one in checks(published, other) if not one.is_reproduced]
    assert any(one.again == pytest.approx(2.2, abs=0.1) for one in outside)
    assert 0 < spread(published, other).median < spread(published, other).largest < 0.3


def test_a_law_that_the_new_sweep_lacks_is_not_reproduced(published: Analysis) -> None:
    narrow = synthetic.analysed([*SWEEP, "grid.model.hidden_size=[16]"], lambda spec: Truth(READING, 2.0))
    missing = [one for one in checks(published, narrow) if math.isnan(one.again)]
    assert missing
    assert not any(one.is_reproduced for one in missing)
