"""Budgets of runs and the accounting against them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.cluster.budget import Budget, Spending


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget(seconds=90)),
        ("1.5h", Budget(seconds=5400)),
        ("2d", Budget(seconds=172800)),
        ("20gpuh", Budget(gpu_seconds=72000)),
    ],
)
def test_valid_budgets_are_parsed(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    ["", "2", "h", "-1h", "0h", "2 h", "1e3s", "2H", "nanh", "20gpu", "2h\n", "٣h", "1٣h", "２h", "²h", "99999999d"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["9" * 400 + "h", "9" * 400 + "gpuh", "0." + "0" * 400 + "1s", "9" * 400])
def test_numbers_beyond_a_lifetime_are_refused_in_a_short_line(text: str) -> None:
    with pytest.raises(ValueError, match="budget") as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 200


def start(spending: Spending, group: str, *, work: float, now: float) -> None:
    spending.wait(group, work)
    spending.start(group, now)


def test_waiting_groups_take_no_gpu_time_until_they_start() -> None:
    spending = Spending(Budget(gpu_seconds=100), gpus_per_group=1, began=0)
    start(spending, "a", work=10, now=0)
    spending.finish("a", now=10, done=True)  # 1 s per unit of work
    spending.wait("b", 50)
    assert not spending.is_spent(1e6)
    assert spending.allows(40, 1e6)
    assert not spending.allows(41, 1e6)
    spending.start("b", 1e6)
    spending.start("b", 1e6 + 50)  # its workers restart after a failure, which does not reset its start time
    assert spending.is_spent(1e6 + 90)
    spending.wait("c", 10)
    spending.finish("c", now=1e6, done=False)
    assert not spending.is_spent(1e6 + 89)


def test_a_group_that_would_exceed_the_time_is_not_allowed() -> None:
    spending = Spending(Budget(seconds=100), gpus_per_group=0, began=1000)
    assert spending.allows(1e9, 1000)  # the speed is still unknown
    start(spending, "a", work=10, now=1000)
    spending.finish("a", now=1020, done=True)  # 2 s per unit of work
    assert spending.allows(40, 1020)
    assert not spending.allows(41, 1020)
    assert not spending.is_spent(1099)
    assert spending.is_spent(1100)
    assert not spending.allows(0, 1100)


def test_gpu_time_adds_up_over_concurrent_groups() -> None:
    spending = Spending(Budget(gpu_seconds=100), gpus_per_group=2, began=0)
    start(spending, "a", work=10, now=0)
    start(spending, "b", work=10, now=0)
    assert not spending.is_spent(24.9)
    assert spending.is_spent(25)
    spending.finish("a", now=10, done=True)  # 1 s per unit of work; a has spent 20, and so has b
    assert not spending.is_spent(39.9)
    assert spending.is_spent(40)
    spending.finish("b", now=10, done=True)
    assert spending.allows(30, 10)
    assert not spending.allows(31, 10)
    start(spending, "c", work=20, now=10)
    assert spending.allows(10, 10)  # 40 spent, 40 for c, 20 for the new group
    assert not spending.allows(11, 10)


def test_failed_groups_do_not_enter_the_estimated_speed() -> None:
    spending = Spending(Budget(seconds=100), gpus_per_group=0, began=0)
    start(spending, "a", work=10, now=0)
    spending.finish("a", now=90, done=False)
    assert spending.allows(1e9, 90)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 50), st.floats(0.1, 20)), max_size=8),
    st.floats(1, 500),
    st.floats(0.25, 8),
)
def test_spending_is_the_sum_over_groups_and_never_decreases(
    groups: list[tuple[float, float, float]], bound: float, gpus: float
) -> None:
    """`groups` holds (start time, duration, work) of each group."""
    spending = Spending(Budget(gpu_seconds=bound), gpus_per_group=gpus, began=0)
    events = sorted(
        [(start, "start", index) for index, (start, _, _) in enumerate(groups)]
        + [(start + length, "finish", index) for index, (start, length, _) in enumerate(groups)]
    )
    spent_before = False
    for now, event, index in events:
        if event == "start":
            start(spending, str(index), work=groups[index][2], now=now)
        else:
            spending.finish(str(index), now, done=True)
        spent = sum(gpus * max(0.0, min(now - start, length)) for start, length, _ in groups)
        if abs(spent - bound) > 1e-6 * bound:
            assert spending.is_spent(now) == (spent >= bound)
        assert spending.is_spent(now) >= spent_before
        spent_before = spending.is_spent(now)
