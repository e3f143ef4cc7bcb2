"""The order of questions: each once per epoch, the declared mix, the same for any number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.order import QuestionOrder, num_steps
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import num_questions
from raycap.spec import Exposures, NamePools, QuestionsSpec, Steps, Tokens, TrainingSpec

PROFILES = generate(census_schema(NamePools(first=9, middle=9, last=9), 2), 20, seed=0)


def order(share: float = 1.0, batch_size: int = 7, seed: int = 0) -> QuestionOrder:
    return QuestionOrder(PROFILES, share, batch_size, seed)


def asked(questions: QuestionOrder, hops: int, num: int) -> np.ndarray:
    return np.concatenate([questions.step_ids(step)[hops] for step in range(num)])


def test_each_fact_comes_exactly_once_per_epoch() -> None:
    size = num_questions(PROFILES, 1)
    ids = asked(order(), 1, 3 * size)[: 3 * size]
    epochs = ids.reshape(3, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 50), st.integers(1, 5), st.integers(0, 200))
def test_workers_share_a_step_without_overlap_or_loss(share: float, batch_size: int, world: int, step: int) -> None:
    questions = order(share, batch_size)
    whole = questions.step_ids(step)
    parts = [questions.step_ids(step, rank, world) for rank in range(world)]
    for hops in (1, 2):
        assert sorted(np.concatenate([part[hops] for part in parts])) == sorted(whole[hops])
    sizes = [sum(map(len, part.values())) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == batch_size


@given(st.floats(0.0, 1.0), st.integers(1, 300))
def test_the_mix_is_what_was_declared(share: float, steps: int) -> None:
    counts = order(share, 16).num_asked(steps)
    assert sum(counts.values()) == 16 * steps
    assert abs(counts[1] - share * 16 * steps) <= 1


def test_two_hop_questions_are_all_asked_before_any_comes_again() -> None:
    size = num_questions(PROFILES, 2)
    questions = order(0.25, 8)
    ids = asked(questions, 2, size)[:size]
    assert sorted(ids) == list(range(size))


def test_the_order_is_a_function_of_seed_and_step_alone() -> None:
    late = order().step_ids(500)[1]
    assert np.array_equal(late, order().step_ids(500)[1])
    assert not np.array_equal(late, order(seed=1).step_ids(500)[1])


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 11])
def test_a_length_in_exposures_is_reached(share: float) -> None:
    hops = (1,) if share == 1 else (1, 2)
    training = TrainingSpec(length=Exposures(exposures=30), batch_size=7)
    steps = num_steps(
        training, QuestionsSpec(hops=hops, one_hop_share=share), num_questions(PROFILES, 1), {1: 9, 2: 10}
    )
    questions = order(share)
    assert questions.exposures(steps - 1) < 30 <= questions.exposures(steps) + 1e-9


def test_lengths_in_tokens_and_steps() -> None:
    spec = QuestionsSpec()
    assert num_steps(TrainingSpec(length=Steps(steps=12)), spec, 80, {1: 9.0}) == 12
    assert num_steps(TrainingSpec(length=Tokens(tokens=9 * 512 * 3), batch_size=512), spec, 80, {1: 9.0}) == 3
    assert num_steps(TrainingSpec(length=Tokens(tokens=9 * 512 * 3 + 1), batch_size=512), spec, 80, {1: 9.0}) == 4
