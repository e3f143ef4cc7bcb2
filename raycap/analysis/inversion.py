"""Losses of single hops from those of questions of several hops (docs/science.md#inversion)."""

import numpy as np

from raycap.analysis.measurements import Floats


def hop_loss_bits(loss_bits: Floats, uniform_bits: float, hops: int) -> Floats:
    """Return the loss of one hop, given the mean loss of k-hop questions about a subject (docs/science.md#inversion).

    If a hop is right with probability p, and the answer is uniform over n values once a hop before the last was wrong,
    the answer is right with probability p_k = p^k + (1 - p^(k-1)) / n, for two hops p^2 + (1 - p) / n. This is solved
    for p, and the result is -log2 p. Losses at or above uniform are returned unchanged, so that a model worse than
    chance is charged for it. Just below uniform the curve is steep: at n = 1,000, knowing a thousandth of the entropy of
    two hops reads as a sixth of one hop.

    Args:
        loss_bits: mean losses of the final answer, of any shape.
        uniform_bits: log2 n.
        hops: k, at least 2.
    """
    loss_bits = np.asarray(loss_bits, dtype=float)
    answer, chance = 2**-loss_bits, 2**-uniform_bits
    # p_k increases with p for p above 1/n, so bisection converges; three Newton steps then refine its result.
    low, high = np.full_like(answer, chance), np.ones_like(answer)
    for _ in range(30):
        midpoint = (low + high) / 2
        above = midpoint**hops + (1 - midpoint ** (hops - 1)) * chance > answer
        low, high = np.where(above, low, midpoint), np.where(above, midpoint, high)
    p = (low + high) / 2

    for _ in range(3):
        steepness = hops * p ** (hops - 1) - (hops - 1) * p ** (hops - 2) * chance
        p = np.clip(p - (p**hops + (1 - p ** (hops - 1)) * chance - answer) / steepness, chance, 1.0)
    return np.where(loss_bits >= uniform_bits, loss_bits, -np.log2(p))
