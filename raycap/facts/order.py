"""Which text comes when: a pure function of (seed, row number), the same for any number of workers or restarts.

The trained texts of every corpus come exactly once per epoch of its own, in an order drawn from (seed, corpus, epoch).
Where corpora are mixed, the first takes floor(n a_1) of n rows, the second its share of the rest, and so on: no count
ever falls back, and the mix is met at every step to within two texts (one, if two are mixed). Phases of a curriculum
begin at a step, each counted from there.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycap.spec import Exposures, LengthSpec, Steps, Tokens


@dataclass(frozen=True)
class Mix:
    """The share of each corpus from a step on."""

    start_step: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Order:
    """The order of training texts over some corpora."""

    sizes: tuple[int, ...]
    """Trained texts of each corpus."""
    streams: tuple[int, ...]
    """A number for each corpus that its random stream follows from, so that others come and go without moving it."""
    mixes: tuple[Mix, ...]
    """In ascending order of their steps, the first at 0."""
    batch_size: int
    seed: int

    def num_asked(self, step: int) -> tuple[int, ...]:
        """How many texts of each corpus come before `step`."""
        asked = [0] * len(self.sizes)
        for place, mix in enumerate(self.mixes):
            end = min(step, self.mixes[place + 1].start_step) if place + 1 < len(self.mixes) else step
            rows = max(0, end - mix.start_step) * self.batch_size
            for corpus, share in enumerate(mix.shares):
                taken = math.floor(rows * (share / sum(mix.shares[corpus:]))) if share > 0 else 0
                asked[corpus] += taken
                rows -= taken
        return tuple(asked)

    def step_places(self, step: int, rank: int = 0, world_size: int = 1) -> list[NDArray[np.int64]]:
        """Places in each corpus's list of trained ids, for one step: every world_size-th text from `rank` on."""
        places, skipped = [], 0
        for corpus, (begin, end) in enumerate(zip(self.num_asked(step), self.num_asked(step + 1), strict=True)):
            first = (rank - skipped) % world_size  # stride over the whole step, not over each corpus
            places.append(self._places(corpus, begin, end)[first::world_size])
            skipped += end - begin
        return places

    def _places(self, corpus: int, begin: int, end: int) -> NDArray[np.int64]:
        parts: list[NDArray[np.integer]] = [np.empty(0, np.int64)]
        while begin < end:
            epoch, offset = divmod(begin, self.sizes[corpus])
            order = _permutation(self.seed, self.streams[corpus], epoch, self.sizes[corpus])
            parts.append(order[offset : offset + end - begin])
            begin += len(parts[-1])
        return np.concatenate(parts)


_epochs: dict[tuple[int, int, int], dict[int, NDArray[np.integer]]] = {}
"""The last two epochs of the streams in use: a permutation can take a gigabyte."""
MAX_STREAMS_KEPT = 16


def _permutation(seed: int, stream: int, epoch: int, size: int) -> NDArray[np.integer]:
    key = seed, stream, size
    if key not in _epochs and len(_epochs) >= MAX_STREAMS_KEPT:
        _epochs.clear()
    kept = _epochs.setdefault(key, {})
    if epoch not in kept:
        for older in sorted(kept)[:-1]:
            del kept[older]
        generator = np.random.Generator(np.random.Philox(seed=[seed, stream, epoch]))
        kept[epoch] = generator.permutation(np.arange(size, dtype=np.int32 if size < 2**31 else np.int64))
    return kept[epoch]


@dataclass(frozen=True)
class Rates:
    """What one text of a mix is on average: how lengths in exposures, tokens and steps are turned into each other."""

    exposures: float
    """Uses per fact of the population that exposures are counted of."""
    tokens: float

    def amount(self, length: LengthSpec, batch_size: int) -> tuple[float, float]:
        """A length, and what one text adds to it; steps are counted in texts."""
        match length:
            case Exposures():
                return length.exposures, self.exposures
            case Tokens():
                return length.tokens, self.tokens
            case Steps():
                return length.steps * batch_size, 1.0

    def num_steps(self, length: LengthSpec, batch_size: int) -> int:
        """Steps of a length, rounded up."""
        amount, per_text = self.amount(length, batch_size)
        return max(1, math.ceil(amount / per_text / batch_size))
