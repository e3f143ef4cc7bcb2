"""What a run may spend, and what it has spent."""

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
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0h", "2 h", "1e3s", "2H", "nanh", "20gpu", "2h\n"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a budget is a time such as 30m, 2h or 1d, or GPU hours"):
        Budget.parse(text)


def start(spending: Spending, group: str, *, work: float, now: float) -> None:
    spending.wait(group, work)
    spending.start(group, now)


def test_who_waits_for_room_takes_no_gpu_but_will() -> None:
    spending = Spending(Budget(gpu_seconds=100), gpus_per_group=1, began=0)
    start(spending, "a", work=10, now=0)
    spending.finish("a", now=10, done=True)  # a second each
    spending.wait("b", 50)
    assert not spending.is_spent(1e6)
    assert spending.allows(40, 1e6)
    assert not spending.allows(41, 1e6)
    spending.start("b", 1e6)
    spending.start("b", 1e6 + 50)  # again, after a failure: it is not younger by that
    assert spending.is_spent(1e6 + 90)
    spending.wait("c", 10)
    spending.finish("c", now=1e6, done=False)
    assert not spending.is_spent(1e6 + 89)


def test_nothing_starts_that_would_not_end_in_time() -> None:
    spending = Spending(Budget(seconds=100), gpus_per_group=0, began=1000)
    assert spending.allows(1e9, 1000)  # nobody knows yet how long work takes
    start(spending, "a", work=10, now=1000)
    spending.finish("a", now=1020, done=True)  # two seconds each
    assert spending.allows(40, 1020)
    assert not spending.allows(41, 1020)
    assert not spending.is_spent(1099)
    assert spending.is_spent(1100)
    assert not spending.allows(0, 1100)


def test_gpu_hours_are_those_of_all_that_run_at_once() -> None:
    spending = Spending(Budget(gpu_seconds=100), gpus_per_group=2, began=0)
    start(spending, "a", work=10, now=0)
    start(spending, "b", work=10, now=0)
    assert not spending.is_spent(24.9)
    assert spending.is_spent(25)
    spending.finish("a", now=10, done=True)  # a second each; 20 spent, and b has spent as much
    assert not spending.is_spent(39.9)
    assert spending.is_spent(40)
    spending.finish("b", now=10, done=True)
    assert spending.allows(30, 10)
    assert not spending.allows(31, 10)
    start(spending, "c", work=20, now=10)
    assert spending.allows(10, 10)  # 40 spent, 40 to come, 20 asked
    assert not spending.allows(11, 10)


def test_what_failed_tells_nothing_of_how_long_work_takes() -> None:
    spending = Spending(Budget(seconds=100), gpus_per_group=0, began=0)
    start(spending, "a", work=10, now=0)
    spending.finish("a", now=90, done=False)
    assert spending.allows(1e9, 90)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 50), st.floats(0.1, 20)), max_size=8),
    st.floats(1, 500),
    st.floats(0.25, 8),
)
def test_what_is_spent_only_grows(groups: list[tuple[float, float, float]], bound: float, gpus: float) -> None:
    """Groups that start at a time and last a while: GPU seconds are the sum of theirs, whenever one looks."""
    spending = Spending(Budget(gpu_seconds=bound), gpus_per_group=gpus, began=0)
    moments = sorted(
        [(start, "start", number) for number, (start, _, _) in enumerate(groups)]
        + [(start + length, "finish", number) for number, (start, length, _) in enumerate(groups)]
    )
    spent_before = False
    for now, what, number in moments:
        if what == "start":
            start(spending, str(number), work=groups[number][2], now=now)
        else:
            spending.finish(str(number), now, done=True)
        spent = sum(gpus * max(0.0, min(now - start, length)) for start, length, _ in groups)
        if abs(spent - bound) > 1e-6 * bound:
            assert spending.is_spent(now) == (spent >= bound)
        assert spending.is_spent(now) >= spent_before
        spent_before = spending.is_spent(now)
