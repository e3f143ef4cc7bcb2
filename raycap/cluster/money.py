"""Money that the machines of a cluster cost while a sweep runs, from a price for each type of machine.

The type of a machine is its label `machine-type` in Ray; a machine without this label has the type `default`.
"""

from collections.abc import Callable, Iterable, Mapping

from raycap.errors import CannotRunError

MACHINE_TYPE = "machine-type"
"""Label of Ray's nodes with the type of the machine."""
DEFAULT = "default"
POLL_INTERVAL_S, SAVE_INTERVAL_S = 5.0, 30.0
"""Intervals at which the machines are listed, and the amount is stored."""


def machine_types() -> list[str]:
    """Return the type of each machine of the connected cluster."""
    import ray

    return [node["Labels"].get(MACHINE_TYPE, DEFAULT) for node in ray.nodes() if node["Alive"]]


def refuse_without_price(types: Iterable[str], prices: Mapping[str, float]) -> None:
    """Raise CannotRunError if a price is missing."""
    if missing := sorted(set(types) - prices.keys()) if DEFAULT not in prices else []:
        raise CannotRunError(
            f"execution.prices: has no price for machines of type {', '.join(missing)}, got {', '.join(prices)}",
            f"add dollars per hour for this type, or for {DEFAULT}, which is the type of all others",
        )


class Meter:
    """Integrates the prices of the machines over time.

    The caller supplies all times, in seconds of a monotonic clock. `list_machines` returns the types of the machines that
    exist now. `save` stores the sum.
    """

    def __init__(
        self,
        prices: Mapping[str, float],
        began: float,
        list_machines: Callable[[], list[str]] = list,
        save: Callable[[float], None] = lambda spent_usd: None,
        spent_before_usd: float = 0.0,
    ) -> None:
        self._prices, self._list_machines, self._save = prices, list_machines, save
        self._spent_usd, self._at = spent_before_usd, began
        self.usd_per_hour = self._rate()
        self._saved_at = -SAVE_INTERVAL_S

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the functions, which cannot be pickled."""
        return vars(self) | {"_list_machines": None, "_save": None}

    def poll(self, now: float) -> None:
        """Add the cost since the last call, and list the machines again after `POLL_INTERVAL_S`."""
        if not self._prices or now - self._at < POLL_INTERVAL_S:
            return
        self._spent_usd, self._at = self.spent_usd(now), now
        self.usd_per_hour = self._rate()
        if now - self._saved_at >= SAVE_INTERVAL_S:
            self.save(now)

    def save(self, now: float) -> None:
        """Store the amount."""
        if self._prices:
            self._saved_at = now
            self._save(self.spent_usd(now))

    def spent_usd(self, now: float) -> float:
        """Return the sum of all runs of the sweep up to now."""
        return self._spent_usd + self.usd_per_hour * max(0.0, now - self._at) / 3600

    def _rate(self) -> float:
        """Return the price of all machines per hour. One without a price counts as the most expensive type."""
        if not self._prices:
            return 0.0
        otherwise = self._prices.get(DEFAULT, max(self._prices.values()))
        return sum(self._prices.get(kind, otherwise) for kind in self._list_machines())
