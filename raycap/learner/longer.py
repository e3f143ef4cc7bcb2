"""Continuation of shorter trials: trials that differ only in length share the steps before the learning rate decays.

After its last step with a constant learning rate, the state of a stack is saved in the storage, under a key of everything
that determines these steps. A longer stack with the same key starts from it. See docs/clusters.md#longer.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.curriculum import LOSS_UNIT_BITS
from raycap.learner.replica import Replica, WorkerContext
from raycap.results import Evaluation
from raycap.spec import Schedule, ScheduleFree, TrainingSpec
from raycap.storage import DamagedError

EndsEarly = Callable[[str, Sequence[Evaluation]], bool]
"""Called after each evaluation with a trial id and all evaluations of the trial; returns whether it may end here."""
KEY_DIGITS = 12
OBSERVING_FIELDS = ("length", "num_evaluations", "evaluate_at")
"""Fields of the training that change no step before the learning rate decays."""


def num_stable_steps(training: TrainingSpec, num_steps: int) -> int:
    """Return the number of first steps that a longer training shares: those before the learning rate begins to decay.

    It is 0 for schedules that depend on the number of steps from the warm-up on.
    """
    optimizer = training.optimizer
    if isinstance(optimizer, ScheduleFree) or optimizer.schedule is Schedule.CONSTANT:
        return num_steps
    if optimizer.schedule is not Schedule.WSD:
        return 0
    warmup_steps = min(optimizer.warmup_steps, num_steps // 2)
    # The learning rate of step i, counted from 0, is the peak while num_steps - i is at least the length of the decay.
    return math.floor(num_steps - min(optimizer.decay_share * num_steps, num_steps - warmup_steps)) + 1


@dataclass(frozen=True)
class StableCheckpoints:
    """The saved states of stacks at the end of their stable steps; at most one for each key."""

    checkpoints: Checkpoints
    key: str
    """Hash of the stack's specs without the fields that only observe, with the warm-up that takes effect."""
    num_steps: int
    """Number of stable steps of this stack; 0 if there are none."""

    @classmethod
    def of(cls, checkpoints: Checkpoints, replicas: Sequence[Replica], num_steps: int) -> "StableCheckpoints":
        """Return the stable checkpoints of a stack with a number of steps."""
        trees = []
        for spec in (replica.spec for replica in replicas):
            training = {name: v for name, v in spec.identity["training"].items() if name not in OBSERVING_FIELDS}
            warmup_steps = min(spec.training.optimizer.warmup_steps, num_steps // 2)
            training["optimizer"] = training["optimizer"] | {"warmup_steps": warmup_steps}
            trees.append(spec.identity | {"training": training})
        digest = hashlib.sha256(json.dumps(trees, sort_keys=True).encode()).hexdigest()
        return cls(checkpoints, digest[:KEY_DIGITS], num_stable_steps(replicas[0].spec.training, num_steps))

    def save_if_due(self, replicas: Sequence[Replica], state_of: Callable[[int], dict[str, Any]]) -> None:
        """Write the states of all replicas if these are their stable steps, and delete those of shorter stacks.

        Stacks with a diverged replica are not saved. `state_of` returns the state of the replica with an index.
        """
        if replicas[0].state.step != self.num_steps or any(replica.error for replica in replicas):
            return
        for index in range(len(replicas)):
            self.checkpoints.save(self._series(index), self.num_steps, state_of(index))
        for index in range(len(replicas)):
            self.checkpoints.forget_before(self._series(index), self.num_steps)

    def continue_replicas(
        self,
        replicas: Sequence[Replica],
        evaluation_steps: set[int],
        ends_early: EndsEarly,
        context: WorkerContext,
    ) -> tuple[int, list[dict[str, Any]]]:
        """Let the replicas go on from the longest shorter stack, and return its last step and its states.

        Returns (0, []), with unchanged replicas, if there is none, or if one of its trials was not evaluated at a step at
        which its replica is, or would have ended early.

        Args:
            replicas: The replicas, which have not been trained.
            evaluation_steps: Steps after which they are evaluated.
            ends_early: Early stopping rule.
            context: Worker; rank 0 searches for all of them, because another trial may save meanwhile.
        """
        step, found = self._find(replicas, evaluation_steps, ends_early, context) if context.rank == 0 else (0, [])
        if context.world_size > 1:
            of_rank_0 = [step]
            dist.broadcast_object_list(of_rank_0)
            (step,) = of_rank_0
            if step and context.rank > 0:
                found = self._load(replicas, step, evaluation_steps, ends_early, context) or []
                assert found, "workers read different states"
        for replica, (saved, history) in zip(replicas, found, strict=False):
            replica.resume(
                saved["counters"], json.dumps([evaluation.model_dump(mode="json") for evaluation in history])
            )
        return step, [saved for saved, _ in found]

    def _find(
        self, replicas: Sequence[Replica], evaluation_steps: set[int], ends_early: EndsEarly, context: WorkerContext
    ) -> tuple[int, list[tuple[dict[str, Any], list[Evaluation]]]]:
        """Return the last step that a shorter stack has saved and this one shares, with what `_load` returns for it."""
        steps = (set(self.checkpoints.steps(self._series(index))) for index in range(len(replicas)))
        step = max((saved for saved in set.intersection(*steps) if saved < self.num_steps), default=0)
        try:
            found = self._load(replicas, step, evaluation_steps, ends_early, context) if step else None
        except (DamagedError, FileNotFoundError):  # not found: the state of a longer stack has replaced it
            found = None
        return (step, found) if found else (0, [])

    def _load(
        self,
        replicas: Sequence[Replica],
        step: int,
        evaluation_steps: set[int],
        ends_early: EndsEarly,
        context: WorkerContext,
    ) -> list[tuple[dict[str, Any], list[Evaluation]]] | None:
        """Return the saved state and the evaluations of every replica; None if one of them cannot go on from it."""
        found = []
        for index, replica in enumerate(replicas):
            saved = self.checkpoints.load(self._series(index), step, context.device)
            history = continued_evaluations(saved, evaluation_steps)
            if history is None:
                return None
            if any(ends_early(replica.spec.trial_id, history[: end + 1]) for end in range(len(history))):
                return None
            found.append((saved, history))
        return found

    def _series(self, index: int) -> str:
        return f"stable/{self.key}-{index}"


def continued_evaluations(saved: dict[str, Any], expected: set[int]) -> list[Evaluation] | None:
    """Return the evaluations of a longer trial up to the step of a saved state, or None if the shorter trial lacks one.

    The mean training loss since the previous evaluation is computed again, because a trial of another length has other
    evaluations between them. The totals in `saved` become those at the evaluations that are returned.

    Args:
        saved: State of the shorter trial.
        expected: Steps after which the longer trial is evaluated.
    """
    counters, history = (
        saved["counters"],
        [Evaluation.model_validate(each) for each in json.loads(saved["evaluations"])],
    )
    if len(counters["evaluated"]) != len(history):
        return None  # it was begun by an older version, which did not store the totals
    pairs = zip(history, counters["evaluated"], strict=True)
    kept = [(evaluation, total) for evaluation, total in pairs if evaluation.step in expected]
    if {evaluation.step for evaluation, _ in kept} != {step for step in expected if step <= counters["step"]}:
        return None
    found, (units_before, texts_before) = [], (0, 0)
    for evaluation, (units, num_texts) in kept:
        loss_bits = (units - units_before) * LOSS_UNIT_BITS / (num_texts - texts_before)
        found.append(evaluation.model_copy(update={"train_loss_bits": loss_bits}))
        units_before, texts_before = units, num_texts
    counters["evaluated"] = [total for _, total in kept]
    return found
