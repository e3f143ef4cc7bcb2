"""The order of training texts: one use per epoch, the declared mix, and independence of the number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from raycap.facts.order import Mix, Order, Rates
from raycap.spec import Exposures, Steps, Tokens

ONE_HOP, TWO_HOP = 120, 240


def order(share: float = 1.0, batch_size: int = 7, seed: int = 0) -> Order:
    return Order((ONE_HOP, TWO_HOP), (1, 2), (Mix(0, (share, 1 - share)),), batch_size, seed)


def indices_of(texts: Order, corpus: int, num: int) -> np.ndarray:
    return np.concatenate([texts.step_indices(step)[corpus] for step in range(num)])


def test_each_text_occurs_exactly_once_per_epoch() -> None:
    epochs = indices_of(order(), 0, 3 * ONE_HOP)[: 3 * ONE_HOP].reshape(3, ONE_HOP)
    assert all(sorted(epoch) == list(range(ONE_HOP)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(1, 50), st.integers(1, 5), st.integers(0, 200))
def test_workers_partition_the_texts_of_a_step(weights: list[float], batch_size: int, world: int, step: int) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    texts = Order(tuple(range(50, 50 + len(shares))), tuple(range(len(shares))), (Mix(0, shares),), batch_size, 0)
    whole = texts.step_indices(step)
    parts = [texts.step_indices(step, rank, world) for rank in range(world)]
    for corpus, indices in enumerate(whole):
        assert sorted(np.concatenate([part[corpus] for part in parts])) == sorted(indices)
        assert texts.num_texts_before(step + 1)[corpus] - texts.num_texts_before(step)[corpus] == len(indices)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == batch_size


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 4), st.integers(0, 3), st.floats(0, 1))
def test_several_steps_equal_the_single_steps(first: int, num: int, world: int, rank: int, share: float) -> None:
    mixes = (Mix(0, (1.0, 0.0)), Mix(30, (share, 1 - share)))
    texts = Order((ONE_HOP, TWO_HOP), (1, 2), mixes, 7, 0)
    indices, counts = texts.indices(range(first, first + num), rank % world, world)
    steps = [texts.step_indices(step, rank % world, world) for step in range(first, first + num)]
    assert counts.tolist() == [[len(part) for part in step] for step in steps]
    for corpus in range(2):
        assert np.array_equal(indices[corpus], np.concatenate([step[corpus] for step in steps]))


@given(st.lists(st.floats(0.0, 1), min_size=1, max_size=4).filter(lambda w: sum(w) > 0.01), st.integers(1, 300))
def test_the_numbers_of_texts_follow_the_declared_mix(weights: list[float], steps: int) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    texts = Order((100,) * len(shares), tuple(range(len(shares))), (Mix(0, shares),), 16, 0)
    counts = texts.num_texts_before(steps)
    assert sum(counts) == 16 * steps
    # Numbers are rounded down by less than one text, and the last corpus gets what all others leave.
    assert all(abs(count - share * 16 * steps) < len(shares) for count, share in zip(counts, shares, strict=True))


def test_sampled_texts_follow_the_mix_and_are_uniform_within_a_corpus() -> None:
    """Chi-square tests of the sampled texts instead of the planned counts."""
    shares = (1 / 11, 6 / 11, 4 / 11)
    texts = Order((40, 60, 50), (1, 2, 3), (Mix(0, shares),), 64, 5)
    indices = [np.concatenate(step) for step in zip(*(texts.step_indices(s) for s in range(500)), strict=True)]
    counts = np.array([len(part) for part in indices])
    assert chisquare(counts, counts.sum() * np.array(shares)).pvalue > 0.01
    for part, size in zip(indices, texts.sizes, strict=True):
        within = np.bincount(part, minlength=size)
        assert within.max() - within.min() <= 1  # no text is repeated before all have occurred
    one_step = [len(part) for part in texts.step_indices(7)]
    assert all(abs(n - share * 64) <= 2 for n, share in zip(one_step, shares, strict=True))


def test_phases_start_at_their_steps() -> None:
    mixes = (Mix(0, (1.0, 0.0)), Mix(10, (0.0, 1.0)), Mix(15, (0.5, 0.5)))
    texts = Order((ONE_HOP, TWO_HOP), (1, 2), mixes, 8, 0)
    counts = [tuple(map(len, texts.step_indices(step))) for step in range(20)]
    assert counts == [(8, 0)] * 10 + [(0, 8)] * 5 + [(4, 4)] * 5
    later = Order((ONE_HOP, TWO_HOP), (1, 2), mixes[:1], 8, 0)  # later phases do not change earlier steps
    for step in range(10):
        for a, b in zip(texts.step_indices(step), later.step_indices(step), strict=True):
            assert np.array_equal(a, b)
    assert len(set(indices_of(texts, 0, 25))) == 10 * 8 + 10 * 4  # no text is repeated before all have occurred


def test_adding_a_corpus_does_not_change_the_order_of_another() -> None:
    alone = Order((ONE_HOP,), (1,), (Mix(0, (1.0,)),), 8, 0)
    mixed = Order((ONE_HOP, TWO_HOP), (1, 2), (Mix(0, (0.5, 0.5)),), 16, 0)
    for step in range(30):
        assert np.array_equal(alone.step_indices(step)[0], mixed.step_indices(step)[0])


def test_the_order_depends_only_on_seed_and_step() -> None:
    late = order().step_indices(500)[0]
    assert np.array_equal(late, order().step_indices(500)[0])
    assert not np.array_equal(late, order(seed=1).step_indices(500)[0])


def test_orders_do_not_change_between_releases() -> None:
    """Stored results depend on these numbers: the first indices of three steps in a mix."""
    texts = Order((ONE_HOP, TWO_HOP), (1, 2), (Mix(0, (0.3, 0.7)),), 10, 0)
    assert [texts.step_indices(step)[0][0] for step in (0, 40, 80)] == [93, 117, 91]
    assert [texts.step_indices(step)[1][0] for step in (0, 40, 80)] == [39, 50, 167]


def test_lengths_are_converted_to_steps() -> None:
    rates = Rates(exposures=1 / 80, tokens=9.0)
    assert rates.num_steps(Steps(steps=12), 512) == 12
    assert rates.num_steps(Tokens(tokens=9 * 512 * 3), 512) == 3
    assert rates.num_steps(Tokens(tokens=9 * 512 * 3 + 1), 512) == 4
    assert rates.num_steps(Exposures(exposures=64), 512) == 10
    assert rates.num_steps(Exposures(exposures=0.001), 512) == 1


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 11])
def test_a_length_in_exposures_is_reached(share: float) -> None:
    exposures_per_text = (share + 2 * (1 - share)) / ONE_HOP
    steps = Rates(exposures_per_text, 9.0).num_steps(Exposures(exposures=30), 7)
    counts = {step: order(share).num_texts_before(step) for step in (steps - 1, steps)}
    uses = {step: (one + 2 * two) / ONE_HOP for step, (one, two) in counts.items()}
    assert uses[steps - 1] < 30 <= uses[steps] + 2 / ONE_HOP
