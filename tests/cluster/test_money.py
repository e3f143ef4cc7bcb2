"""Cost of machines, budgets in money, and what is stored and shown of them."""

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.cluster.budget import Budget, Spending
from raycap.cluster.money import POLL_INTERVAL_S, Meter, refuse_without_price
from raycap.errors import CannotRunError
from raycap.results import CostRecord

PRICES = {"a10g": 0.6, "head": 0.06}
HOUR = 3600.0


def machines_at(times: dict[float, list[str]], clock: list[float]) -> Callable[[], list[str]]:
    """Return a function that lists the machines that exist at the time in `clock`."""
    return lambda: times[max(time for time in times if time <= clock[0])]


@given(
    st.lists(st.tuples(st.floats(10, 900), st.lists(st.sampled_from(["a10g", "head"]), max_size=4)), min_size=1),
    st.floats(0, 10),
)
def test_the_cost_is_the_integral_of_the_prices(phases: list[tuple[float, list[str]]], before: float) -> None:
    """`phases` holds the duration and the machines of each phase; the meter is polled where a phase begins."""
    clock, times, expected, now = [0.0], dict[float, list[str]](), before, 0.0
    for seconds, machines in phases:
        times[now] = machines
        expected += seconds / HOUR * sum(PRICES[machine] for machine in machines)
        now += seconds
    times[now] = []
    meter = Meter(PRICES, 0.0, machines_at(times, clock), spent_before_usd=before)
    for time in sorted(times):
        clock[0] = time
        meter.poll(time)
    assert meter.spent_usd(now) == pytest.approx(expected)


def test_machines_are_listed_at_intervals_and_the_sum_is_stored() -> None:
    listed, saved = [0], list[float]()

    def machines() -> list[str]:
        listed[0] += 1
        return ["a10g", "unknown"]  # without a price: counts as the most expensive type

    meter = Meter(PRICES, 0.0, machines, saved.append)
    for step in range(100):
        meter.poll(step * POLL_INTERVAL_S / 10)
    assert listed[0] == 10
    meter.save(HOUR)
    assert saved[-1] == pytest.approx(1.2)
    assert pickle.loads(pickle.dumps(meter)).spent_usd(HOUR) == pytest.approx(1.2)


def test_a_budget_of_money_counts_all_runs_and_bounds_what_starts() -> None:
    assert Budget.parse("2h,50usd") == Budget(seconds=7200, usd=50)
    for text in ("1usd,2usd", "0usd", "50eur", "50 usd", "1e3usd", ",50usd", "9999999999usd"):
        with pytest.raises(ValueError, match="budget"):
            Budget.parse(text)

    def new_spending() -> Spending:
        meter = Meter(PRICES, 0.0, lambda: ["a10g", "a10g"], spent_before_usd=1.0)
        return Spending(Budget(usd=2.2), gpus_per_group=1, began=0.0, meter=meter)

    spending = new_spending()
    assert not spending.is_spent(HOUR - 1)
    assert spending.is_spent(HOUR + 1)
    spending = new_spending()
    spending.wait("a", 10)
    spending.start("a", 0)
    spending.finish("a", now=600, done=True)  # 60 s per unit of work, and 0.2 USD in all so far
    assert spending.allows(49, 600)
    assert not spending.allows(51, 600)


def test_types_without_a_price_are_refused_unless_there_is_a_default() -> None:
    refuse_without_price(["a10g", "head"], PRICES)
    refuse_without_price(["a10g", "other"], PRICES | {"default": 1.0})
    with pytest.raises(CannotRunError) as caught:
        refuse_without_price(["a10g", "p5", "default"], PRICES)
    assert "default, p5" in caught.value.problem


def test_what_is_left_is_never_negative() -> None:
    assert CostRecord(spent_usd=3).left_usd is None
    assert CostRecord(spent_usd=3, budget_usd=5).left_usd == 2
    assert CostRecord(spent_usd=6, budget_usd=5).left_usd == 0
