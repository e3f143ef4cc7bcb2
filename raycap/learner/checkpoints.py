"""Checkpoints of trials in the storage, one series per trial, also for trials of a stack."""

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from raycap.storage import (
    DamagedError,
    Storage,
    checkpoint_path,
    checkpoint_steps,
    forget_checkpoints,
    record_stack,
    trial_folder,
)

NUM_KEPT = 2
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of all trials in a storage.

    A file is the SHA-256 digest of the rest, followed by the state as torch.save writes it.
    """

    storage: Storage

    def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
        """Write the state of a trial after `step`."""
        content = io.BytesIO()
        torch.save(state, content)
        data = content.getvalue()
        self.storage.write(checkpoint_path(trial_id, step), hashlib.sha256(data).digest() + data)

    def prune(self, trial_ids: list[str]) -> None:
        """Delete all but the last NUM_KEPT checkpoints of each trial of a stack.

        Call it once the last checkpoints of all of them are written: until then, the last step that they have in common
        is among those that would be deleted.
        """
        for trial_id in trial_ids:
            forget_checkpoints(self.storage, trial_id, keep=NUM_KEPT)

    def record_stack(self, trial_ids: list[str]) -> None:
        """Record that these trials train together, so that later runs continue them together."""
        record_stack(self.storage, trial_ids)

    def steps(self, trial_id: str) -> list[int]:
        """Return the steps of the checkpoints of a trial, ascending."""
        return checkpoint_steps(self.storage.names(trial_folder(trial_id)))

    def forget_after(self, trial_id: str, step: int) -> None:
        """Delete the checkpoints of a trial that are later than `step`."""
        for later in self.steps(trial_id):
            if later > step:
                self.storage.delete(checkpoint_path(trial_id, later))

    def forget_before(self, trial_id: str, step: int) -> None:
        """Delete the checkpoints of a trial that are earlier than `step`."""
        for earlier in self.steps(trial_id):
            if earlier < step:
                self.storage.delete(checkpoint_path(trial_id, earlier))

    def load(self, trial_id: str, step: int, device: torch.device) -> dict[str, Any]:
        """Return the state of a trial after `step`, on `device`.

        Raises DamagedError if the checksum does not match, or if the file contains other objects than tensors and numbers.
        """
        content = self.storage.read(checkpoint_path(trial_id, step))
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise DamagedError(f"{self.storage.location(checkpoint_path(trial_id, step))}: the checksum does not match")
        try:
            # weights_only: unpickling arbitrary objects could run code.
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedError(
                f"{self.storage.location(checkpoint_path(trial_id, step))}: is no checkpoint that raycap wrote: {reason}"
            ) from error
        return state

    def latest(self, trial_ids: list[str], device: torch.device) -> tuple[int, list[dict[str, Any]]]:
        """Return the last step with an undamaged checkpoint of every trial, and their states; (0, []) if there is none.

        A crash while the checkpoints of a step are written leaves trials at different steps, so the last common one
        counts. Damaged checkpoints are set aside, and an earlier step is used.
        """
        common = set.intersection(*(set(self.steps(trial_id)) for trial_id in trial_ids))
        for step in sorted(common, reverse=True):
            states = []
            for trial_id in trial_ids:
                try:
                    states.append(self.load(trial_id, step, device))
                except (DamagedError, FileNotFoundError):  # not found: another worker has set it aside
                    self.storage.set_aside(checkpoint_path(trial_id, step))
            if len(states) == len(trial_ids):
                return step, states
        return 0, []
