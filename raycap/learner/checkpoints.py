"""How far trials have come, in the storage: every trial by itself, however many train together."""

import io
from dataclasses import dataclass
from typing import Any

import torch

from raycap.storage import Storage, checkpoint_path, checkpoint_steps, forget_checkpoints, trial_folder

NUM_KEPT = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of all trials of a storage."""

    storage: Storage

    def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
        """Write the state of a trial after a step, and delete all but the last two."""
        content = io.BytesIO()
        torch.save(state, content)
        self.storage.write(checkpoint_path(trial_id, step), content.getvalue())
        forget_checkpoints(self.storage, trial_id, keep=NUM_KEPT)

    def steps(self, trial_id: str) -> list[int]:
        """The steps after which there is a state of a trial, ascending."""
        return checkpoint_steps(self.storage.names(trial_folder(trial_id)))

    def load(self, trial_id: str, step: int, device: torch.device) -> dict[str, Any]:
        """The state of a trial after a step."""
        content = self.storage.read(checkpoint_path(trial_id, step))
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
