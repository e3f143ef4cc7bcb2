"""How far trials have come, in the storage: every trial by itself, however many train together."""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from raycap.storage import (
    DamagedError,
    Storage,
    checkpoint_path,
    checkpoint_steps,
    forget_checkpoints,
    trial_folder,
)

NUM_KEPT = 2
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of all trials of a storage. A file is the SHA-256 of a state, and the state as torch saves it."""

    storage: Storage

    def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
        """Write the state of a trial after a step, and delete all but the last two."""
        content = io.BytesIO()
        torch.save(state, content)
        data = content.getvalue()
        self.storage.write(checkpoint_path(trial_id, step), hashlib.sha256(data).digest() + data)
        forget_checkpoints(self.storage, trial_id, keep=NUM_KEPT)

    def steps(self, trial_id: str) -> list[int]:
        """The steps after which there is a state of a trial, ascending."""
        return checkpoint_steps(self.storage.names(trial_folder(trial_id)))

    def forget_after(self, trial_id: str, step: int) -> None:
        """Delete the states of a trial after later steps."""
        for later in self.steps(trial_id):
            if later > step:
                self.storage.delete(checkpoint_path(trial_id, later))

    def load(self, trial_id: str, step: int, device: torch.device) -> dict[str, Any]:
        """The state of a trial after a step. Raises DamagedError if it is not as it was written."""
        content = self.storage.read(checkpoint_path(trial_id, step))
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise DamagedError(f"{self.storage.path(checkpoint_path(trial_id, step))} is damaged")
        # Tensors and numbers only: a pickle of anything else could run code.
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)

    def together(self, trial_ids: list[str]) -> list[list[str]]:
        """The trials in groups, each of which has a step after which there is a state of all its trials, or no state at all.

        Trials of a stack move on together, but for those that diverge: they stay behind, and must not hold the others up
        when these are started again.
        """
        steps = {trial_id: set(self.steps(trial_id)) for trial_id in trial_ids}
        groups = []
        while left := [trial_id for trial_id in trial_ids if trial_id in steps]:
            shared = Counter(step for trial_id in left for step in steps[trial_id])
            most = max(shared, key=lambda step: (shared[step], step), default=None)
            group = [trial_id for trial_id in left if most in steps[trial_id] or most is None]
            groups.append(group)
            for trial_id in group:
                del steps[trial_id]
        return groups

    def latest(self, trial_ids: list[str], device: torch.device) -> tuple[int, list[dict[str, Any]]]:
        """The last step after which there is a sound state of every trial, and these; 0 and none if there is no such step.

        Whoever was killed between writing one and the next has left some that are further than others. Damaged ones are
        set aside, and the ones before them taken.
        """
        common = set.intersection(*(set(self.steps(trial_id)) for trial_id in trial_ids))
        for step in sorted(common, reverse=True):
            states = []
            for trial_id in trial_ids:
                try:
                    states.append(self.load(trial_id, step, device))
                except (DamagedError, FileNotFoundError):  # another worker may have been quicker to set it aside
                    self.storage.set_aside(checkpoint_path(trial_id, step))
            if len(states) == len(trial_ids):
                return step, states
        return 0, []
