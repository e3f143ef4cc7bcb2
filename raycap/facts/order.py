"""Which text comes when: a pure function of (seed, row number), the same for any number of workers or restarts.

The trained texts of every corpus come exactly once per epoch of its own, in an order drawn from (seed, corpus, epoch).
Where corpora are mixed, the first takes floor(n a_1) of n rows, the second its share of the rest, and so on: no count
ever falls back, and the mix is met at every step to within two texts (one, if two are mixed). Phases of a curriculum
begin at a step, each counted from there.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import Ids, WithoutCaches
from raycap.spec import Exposures, LengthSpec, Steps, Tokens


@dataclass(frozen=True)
class Mix:
    """The share of each corpus from a step on."""

    start_step: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Order(WithoutCaches):
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
        return tuple(self._num_asked(np.array([step]))[0].tolist())

    def step_indices(self, step: int, rank: int = 0, world_size: int = 1) -> list[Ids]:
        """Places in each corpus's list of trained ids, for one step: every world_size-th text from `rank` on."""
        return self.indices(range(step, step + 1), rank, world_size)[0]

    def indices(self, steps: range, rank: int = 0, world_size: int = 1) -> tuple[list[Ids], NDArray[np.int64]]:
        """The places of several steps in a row, and how many are of which step: (steps, corpora)."""
        asked = self._num_asked(np.arange(steps.start, steps.stop + 1))
        counts = np.diff(asked, axis=0)
        if world_size == 1:
            return [
                self._indices(corpus, *asked[[0, -1], corpus].tolist()) for corpus in range(len(self.sizes))
            ], counts
        before = np.cumsum(counts, axis=1) - counts  # texts of other corpora in the same step
        indices, mine = [], np.empty_like(counts)
        for corpus, num in enumerate(counts.T):
            begin, end = asked[[0, -1], corpus].tolist()
            # stride over the whole step, not over each corpus
            in_step = np.arange(begin, end) + np.repeat(before[:, corpus] - asked[:-1, corpus], num)
            chosen = in_step % world_size == rank
            indices.append(self._indices(corpus, begin, end)[chosen])
            mine[:, corpus] = np.bincount(np.repeat(np.arange(len(steps)), num)[chosen], minlength=len(steps))
        return indices, mine

    def _num_asked(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many texts of each corpus come before each of some steps, (steps, corpora)."""
        asked = np.zeros((len(steps), len(self.sizes)), np.int64)
        ends = [mix.start_step for mix in self.mixes[1:]] + [None]
        for mix, end in zip(self.mixes, ends, strict=True):
            rows = (np.clip(steps, mix.start_step, end) - mix.start_step) * self.batch_size
            for corpus, share in enumerate(mix.shares):
                if share > 0:
                    taken = np.floor(rows * (share / sum(mix.shares[corpus:]))).astype(np.int64)
                    asked[:, corpus] += taken
                    rows -= taken
        return asked

    def _indices(self, corpus: int, begin: int, end: int) -> Ids:
        parts: list[NDArray[np.integer]] = [np.empty(0, np.int64)]
        while begin < end:
            epoch, offset = divmod(begin, self.sizes[corpus])
            parts.append(self._permutation(corpus, epoch)[offset : offset + end - begin])
            begin += len(parts[-1])
        return np.concatenate(parts)

    @cached_property
    def _epochs(self) -> dict[int, tuple[int, NDArray[np.integer]]]:
        """The last epoch asked for of each corpus, and its permutation: one can take a gigabyte."""
        return {}

    def _permutation(self, corpus: int, epoch: int) -> NDArray[np.integer]:
        if self._epochs.get(corpus, (None,))[0] != epoch:
            self._epochs.pop(corpus, None)
            size = self.sizes[corpus]
            permutation: NDArray[np.integer] = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
            np.random.Generator(np.random.Philox(seed=[self.seed, self.streams[corpus], epoch])).shuffle(permutation)
            self._epochs[corpus] = epoch, permutation
        return self._epochs[corpus][1]


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
