"""Under muP, changes of features and logits are equal at every width; under the standard parametrization they grow."""

import pytest

from tests.benchmarks.coordinate_check import OPTIMIZERS, QUANTITIES, changes, slope

NUM_STEPS = 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tie_embeddings"), [("adamw", False), ("adamw", True), ("schedule_free", False), ("muon", False)]
)
def test_changes_do_not_depend_on_the_width(kind: str, tie_embeddings: bool) -> None:
    standard, mup = (
        changes(side, OPTIMIZERS[kind], num_steps=NUM_STEPS, seeds=range(2), tie_embeddings=tie_embeddings)
        for side in ("standard", "muP")
    )
    for quantity in QUANTITIES:
        assert slope(standard, quantity, NUM_STEPS) > 0.3
        assert abs(slope(mup, quantity, NUM_STEPS)) < 0.15
