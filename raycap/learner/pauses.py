"""The schedule of pauses in training, at which trials save checkpoints and poll for signals.

Signals can arrive at any time. All workers of a trial must pause, save and act on a signal after the same step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from raycap.learner.replica import WorkerContext
from raycap.learner.signals import Signal

POLL_INTERVAL_S = 1.0
"""Approximate time between polls; longer if a single step takes longer."""


@dataclass(frozen=True)
class PauseActions:
    """Actions to take at a pause."""

    save: bool
    signal: Signal


class PauseSchedule:
    """Decides when to pause and what to do at a pause. Rank 0 decides and broadcasts to the other ranks."""

    def __init__(
        self, save_every_s: float, poll_signal: Callable[[], Signal], context: WorkerContext, step: int
    ) -> None:
        self._save_every_s, self._poll_signal, self._context = save_every_s, poll_signal, context
        self._step, self._next_step = step, step + 1
        self.expected: set[int] = set()
        """Steps after which training must pause, whatever the time."""
        self._polled_at = self._saved_at = time.monotonic()

    def pauses_after(self, step: int) -> bool:
        """Return whether to pause after `step`."""
        return step == self._next_step or step in self.expected

    def poll(self, step: int) -> PauseActions:
        """Return the actions to take after `step`. All workers must call this after the same steps."""
        now, steps = time.monotonic(), step - self._step
        # Steps until the next pause: as many as fit into the interval at the speed since the last pause, but at most twice
        # as many as last time, because the first steps are slow and their time is a poor estimate.
        num_steps = max(1, min(2 * steps, int(POLL_INTERVAL_S * steps / max(now - self._polled_at, 1e-9))))
        save = now - self._saved_at >= self._save_every_s
        decision = [num_steps, save, self._poll_signal() if self._context.rank == 0 else Signal.CONTINUE]
        if self._context.world_size > 1:
            shared = torch.tensor(decision, device=self._context.device)
            dist.broadcast(shared, src=0)
            decision = shared.tolist()
        self._step, self._polled_at = step, now
        self._next_step = step + int(decision[0])
        return PauseActions(save=bool(decision[1]), signal=Signal(decision[2]))

    def saved(self) -> None:
        """Record that a checkpoint was written now."""
        self._saved_at = time.monotonic()
