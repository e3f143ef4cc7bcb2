"""When trials pause to look around while they train: whether it is time to save, and whether something is wished of them.

Wishes come from outside and at any time; all workers of a trial must heed them after the same step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from raycap.learner.replica import WorkerContext
from raycap.learner.signals import Signal

POLL_INTERVAL_S = 1.0
"""About so often, however long a step takes, unless one takes longer."""


@dataclass(frozen=True)
class PauseActions:
    """What to do at a pause."""

    save: bool
    signal: Signal


class PauseSchedule:
    """Says when to pause and what to do then. The first worker decides, the others follow."""

    def __init__(
        self, save_every_s: float, poll_signal: Callable[[], Signal], context: WorkerContext, step: int
    ) -> None:
        self._save_every_s, self._poll_signal, self._context = save_every_s, poll_signal, context
        self._step, self._next_step = step, step + 1
        self.expected: set[int] = set()
        """Steps after which training must pause in any case."""
        self._looked = self._saved = time.monotonic()

    def pauses_after(self, step: int) -> bool:
        """Whether to pause after a step."""
        return step == self._next_step or step in self.expected

    def poll(self, step: int) -> PauseActions:
        """What to do after `step`, at which all workers call this."""
        now, steps = time.monotonic(), step - self._step
        stretch = max(1, min(2 * steps, int(POLL_INTERVAL_S * steps / max(now - self._looked, 1e-9))))
        told = [stretch, now - self._saved >= self._save_every_s, self._poll_signal() if self._context.rank == 0 else 0]
        if self._context.world_size > 1:
            shared = torch.tensor(told, device=self._context.device)
            dist.broadcast(shared, src=0)
            told = shared.tolist()
        self._step, self._looked = step, now
        self._next_step = step + int(told[0])
        return PauseActions(save=bool(told[1]), signal=Signal(told[2]))

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._saved = time.monotonic()
