"""The order of training texts, a pure function of seed and step for any number of workers and after any restart.

Each training text of a corpus occurs exactly once per epoch of that corpus, in a permutation that is drawn from (seed,
corpus, epoch). If the texts have relative frequencies w, with a mean of 1, a text occurs floor(w) or ceil(w) times in an
epoch, and floor(n w + u) times in the first n epochs, where the phase u in [0, 1) is drawn once for each text. An epoch has
as many texts as the corpus on average.

If corpora are mixed with shares a_1, a_2, ..., the first n rows contain floor(n a_1) texts of the first corpus, the second
corpus gets its share of the remaining rows, and so on. These counts never decrease in n, and they differ from n a_i by less
than two texts (by less than one for two corpora). The phases of a curriculum start at given steps, and each is counted from
its start. See docs/science.md#exposures.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import Ids, WithoutCaches
from raycap.facts.frequencies import TextFrequencies
from raycap.spec import Exposures, LengthSpec, Steps, Tokens, TokensPerParam


@dataclass(frozen=True)
class Mix:
    """Shares of the corpora from a step onwards."""

    start_step: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Order(WithoutCaches):
    """The order of training texts from several corpora.

    Texts of a corpus are identified by their index in its list of training texts (corpus.TrainedIds).
    """

    sizes: tuple[int, ...]
    """Number of training texts of each corpus."""
    streams: tuple[int, ...]
    """Number of the random stream of each corpus. A corpus' order does not change when other corpora are added."""
    mixes: tuple[Mix, ...]
    """Mixes in ascending order of start_step. The first starts at 0."""
    batch_size: int
    """Texts per step, over all workers."""
    seed: int
    frequencies: tuple[TextFrequencies | None, ...] = ()
    """Frequencies of the texts of each corpus, None where all are equal; empty if they are in every corpus."""

    def num_texts_before(self, step: int) -> tuple[int, ...]:
        """Return the number of texts of each corpus before `step`."""
        return tuple(self._texts_before(np.array([step]))[0].tolist())

    def step_indices(self, step: int, rank: int = 0, world_size: int = 1) -> list[Ids]:
        """Return the texts of one step for one worker, as indices for each corpus.

        Worker `rank` gets the texts of the step at positions rank, rank + world_size, and so on.
        """
        return self.indices(range(step, step + 1), rank, world_size)[0]

    def indices(self, steps: range, rank: int = 0, world_size: int = 1) -> tuple[list[Ids], NDArray[np.int64]]:
        """Return the texts of consecutive steps for one worker.

        Returns:
            For each corpus the indices of all steps, concatenated; and the number of texts by step and corpus, shape
            (steps, corpora).
        """
        bounds = self._texts_before(np.arange(steps.start, steps.stop + 1))
        counts = np.diff(bounds, axis=0)
        if world_size == 1:
            return [
                self._indices(corpus, *bounds[[0, -1], corpus].tolist()) for corpus in range(len(self.sizes))
            ], counts
        # The texts of a step are ordered by corpus. Worker `rank` takes every world_size-th of them, counted over the
        # whole step: counting within each corpus would give the first workers more texts in total.
        offsets = np.cumsum(counts, axis=1) - counts  # position in the step of the first text of each corpus
        indices, own_counts = [], np.empty_like(counts)
        for corpus, num in enumerate(counts.T):
            begin, end = bounds[[0, -1], corpus].tolist()
            # Position in its step of text t of this corpus: t - (texts of the corpus before the step) + offset.
            position = np.arange(begin, end) + np.repeat(offsets[:, corpus] - bounds[:-1, corpus], num)
            chosen = position % world_size == rank
            indices.append(self._indices(corpus, begin, end)[chosen])
            own_counts[:, corpus] = np.bincount(np.repeat(np.arange(len(steps)), num)[chosen], minlength=len(steps))
        return indices, own_counts

    def _texts_before(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of texts of each corpus before each of some steps, shape (steps, corpora)."""
        totals = np.zeros((len(steps), len(self.sizes)), np.int64)
        ends = [mix.start_step for mix in self.mixes[1:]] + [None]
        for mix, end in zip(self.mixes, ends, strict=True):
            rows = (np.clip(steps, mix.start_step, end) - mix.start_step) * self.batch_size  # rows of this mix so far
            # Each corpus takes the floor of its share of the rows that the corpora before it have left. The last corpus
            # takes all remaining rows (its share of them is exactly 1), so the counts add up to the number of rows.
            for corpus, share in enumerate(mix.shares):
                if share > 0:
                    num = np.floor(rows * (share / sum(mix.shares[corpus:]))).astype(np.int64)
                    totals[:, corpus] += num
                    rows -= num
        return totals

    def _indices(self, corpus: int, begin: int, end: int) -> Ids:
        """Return texts begin .. end - 1 of a corpus, counted from the start of training and across epochs."""
        parts: list[NDArray[np.integer]] = [np.empty(0, np.int64)]
        while begin < end:
            epoch = self._epoch(corpus, begin)
            offset = begin - self._epoch_start(corpus, epoch)
            parts.append(self._permutation(corpus, epoch)[offset : offset + end - begin])
            begin += len(parts[-1])
        return np.concatenate(parts)

    def _epoch(self, corpus: int, text: int) -> int:
        """Return the epoch that contains a text of a corpus, counted from the start of training."""
        epoch = text // self.sizes[corpus]  # correct unless the texts have frequencies: then epochs differ in length
        while self._epoch_start(corpus, epoch) > text:
            epoch -= 1
        while self._epoch_start(corpus, epoch + 1) <= text:
            epoch += 1
        return epoch

    def _epoch_start(self, corpus: int, epoch: int) -> int:
        """Return the number of texts of a corpus before an epoch."""
        if self._frequencies(corpus) is None:
            return epoch * self.sizes[corpus]
        return int(self._occurrences(corpus, epoch).sum())

    def _occurrences(self, corpus: int, epoch: int) -> NDArray[np.int64]:
        """Return how often each text of a corpus with frequencies occurs before an epoch, floor(epoch w + u)."""
        frequencies = self._frequencies(corpus)
        assert frequencies is not None
        return np.floor(epoch * frequencies.values + self._phases[corpus]).astype(np.int64)

    def _frequencies(self, corpus: int) -> TextFrequencies | None:
        return self.frequencies[corpus] if self.frequencies else None

    @cached_property
    def _phases(self) -> tuple[NDArray[np.float64], ...]:
        """Phase u of each text, by corpus.

        Phases are multiples of 2^-20, so that their sum with an integer is exact: with a frequency of 1, a text occurs once
        in each epoch.
        """
        return tuple(
            np.random.default_rng([self.seed, stream, *b"phases"]).integers(2**20, size=size) / 2**20
            for size, stream in zip(self.sizes, self.streams, strict=True)
        )

    @cached_property
    def _epochs(self) -> dict[int, tuple[int, NDArray[np.integer]]]:
        """Epoch and permutation that were last used, by corpus. Only one is kept, since it can take a gigabyte."""
        return {}

    def _permutation(self, corpus: int, epoch: int) -> NDArray[np.integer]:
        """Return the order of all texts of a corpus in an epoch.

        The generator is keyed by (seed, stream, epoch), so any epoch can be drawn without the ones before it.
        """
        if self._epochs.get(corpus, (None,))[0] != epoch:
            self._epochs.pop(corpus, None)  # free the memory before the next permutation is allocated
            size = self.sizes[corpus]
            permutation: NDArray[np.integer] = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
            if self._frequencies(corpus) is not None:
                counts = self._occurrences(corpus, epoch + 1) - self._occurrences(corpus, epoch)
                permutation = np.repeat(permutation, counts)
            np.random.Generator(np.random.Philox(seed=[self.seed, self.streams[corpus], epoch])).shuffle(permutation)
            self._epochs[corpus] = epoch, permutation
        return self._epochs[corpus][1]


@dataclass(frozen=True)
class Rates:
    """Mean exposures and tokens per text of a mix, for converting training lengths to steps."""

    exposures: float
    """Uses per fact of the population whose exposures are counted, per text."""
    tokens: float
    """Tokens per text."""

    def amount(self, length: LengthSpec, batch_size: int) -> tuple[float, float]:
        """Return a length as a number, and the amount that one text adds to it. A length in steps is given in texts."""
        match length:
            case Exposures():
                return length.exposures, self.exposures
            case Tokens():
                return length.tokens, self.tokens
            case Steps():
                return length.steps * batch_size, 1.0
            case TokensPerParam():
                raise AssertionError("unresolved length; use plan.expand")

    def num_steps(self, length: LengthSpec, batch_size: int) -> int:
        """Return the number of steps of a length, rounded up."""
        amount, per_text = self.amount(length, batch_size)
        return max(1, math.ceil(amount / per_text / batch_size))
