"""Which question comes when: a pure function of (seed, row number), the same for any number of workers or restarts.

Every k-hop question comes exactly once per epoch of its own, in an order drawn from (seed, k, epoch). Where one- and
two-hop questions are mixed, step b holds floor((b+1) B a) - floor(b B a) one-hop questions, so that the share a is met
at every step to within one question.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raycap.facts.profiles import Profiles
from raycap.facts.questions import num_questions
from raycap.spec import Exposures, QuestionsSpec, Steps, TrainingSpec


@dataclass(frozen=True)
class QuestionOrder:
    """The order of training questions over one population."""

    profiles: Profiles
    one_hop_share: float
    batch_size: int
    seed: int

    @classmethod
    def of(cls, profiles: Profiles, questions: QuestionsSpec, training: TrainingSpec) -> "QuestionOrder":
        """The order a trial trains in."""
        return cls(profiles, questions.one_hop_share, training.batch_size, training.seed)

    def num_asked(self, step: int) -> dict[int, int]:
        """How many questions of each number of hops come before `step`."""
        one_hop = math.floor(step * self.batch_size * self.one_hop_share)
        return {1: one_hop, 2: step * self.batch_size - one_hop}

    def step_ids(self, step: int, rank: int = 0, world_size: int = 1) -> dict[int, NDArray[np.int64]]:
        """Question ids of one step by number of hops: every world_size-th of them, beginning at `rank`."""
        begin, end = self.num_asked(step), self.num_asked(step + 1)
        ids, skipped = {}, 0
        for hops in (1, 2):
            first = (rank - skipped) % world_size  # stride over the whole step, not over each kind
            ids[hops] = self._ids(hops, begin[hops], end[hops])[first::world_size]
            skipped += end[hops] - begin[hops]
        return ids

    def exposures(self, step: int) -> float:
        """Mean number of times a fact has been used before `step`; a k-hop question uses k facts."""
        uses = sum(hops * asked for hops, asked in self.num_asked(step).items())
        return uses / num_questions(self.profiles, 1)

    def _ids(self, hops: int, begin: int, end: int) -> NDArray[np.int64]:
        size = num_questions(self.profiles, hops)
        parts = [np.empty(0, np.int64)]
        while begin < end:
            epoch, offset = divmod(begin, size)
            part = _permutation(self.seed, hops, epoch, size)[offset : offset + end - begin]
            parts.append(part)
            begin += len(part)
        return np.concatenate(parts)


@lru_cache(maxsize=4)
def _permutation(seed: int, hops: int, epoch: int, size: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(seed=[seed, hops, epoch]))
    return generator.permutation(size)


def num_steps(training: TrainingSpec, questions: QuestionsSpec, num_facts: int, mean_tokens: dict[int, float]) -> int:
    """Steps of a training length, rounded up.

    `num_facts` is the number of one-hop questions, `mean_tokens` the mean tokens of a question by number of hops.
    """
    length, share = training.length, {1: questions.one_hop_share, 2: 1 - questions.one_hop_share}
    if isinstance(length, Steps):
        return length.steps
    if isinstance(length, Exposures):
        num = length.exposures * num_facts / sum(hops * share[hops] for hops in share)
    else:
        num = length.tokens / sum(mean_tokens[hops] * share[hops] for hops in questions.hops)
    return max(1, math.ceil(num / training.batch_size))
