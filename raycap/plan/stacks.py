"""Grouping of trials into stacks of replicas: models of one shape that one worker trains together.

The numbers of a replica depend slightly on the others of its stack, because batches are padded to common shapes. Who
trains together must therefore not depend on when a run was interrupted. A stack that has begun is continued as it began:
its trials are recorded with each of them (`InventoryEntry.stack`).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raycap.plan.inventory import InventoryEntry, TrialState
from raycap.results import PlannedTrial
from raycap.spec import OnePerRow, Precision, Tokens

REPLICA_FIELDS: dict[str, Any] = {
    "profiles": {"seed"},
    "training": {"seed": True, "order_seed": True, "optimizer": {"lr", "muon_lr", "weight_decay"}},
}
"""Fields in which the replicas of a stack may differ."""

StackGroup = tuple[PlannedTrial, ...]
"""The trials that train together."""


def planned_stacks(trials: Iterable[PlannedTrial], num_replicas: int) -> list[StackGroup]:
    """Return the trials in stacks of at most `num_replicas` that can train together, ordered by first members."""
    alike: dict[str, list[PlannedTrial]] = defaultdict(list)
    for trial in trials:
        alike[_kind(trial) if num_replicas > 1 else trial.trial_id].append(trial)
    return [
        tuple(members[begin : begin + num_replicas])
        for members in alike.values()
        for begin in range(0, len(members), num_replicas)
    ]


def stacks_to_train(
    missing: Iterable[PlannedTrial],
    trials: Sequence[PlannedTrial],
    states: Mapping[str, InventoryEntry],
    num_replicas: int,
) -> list[StackGroup]:
    """Return the stacks in which a run trains the missing trials, each of at most `num_replicas` trials.

    - Trials that have not begun train in their planned stack, without those of its trials that have begun elsewhere.
    - Trials of a stack that has begun train in it again. Its finished trials train along, and their results stay as they
      are: without them the numbers of the others would differ from those of an undisturbed run.
    - If a begun stack cannot be restored, because some of its unfinished trials are not to be run, because some finished
      in another stack, or because it is larger than `num_replicas`, the missing ones continue without the others.

    Args:
        missing: Trials to train.
        trials: All trials of the sweep, in the order of the plan.
        states: Stored state of each trial, by trial_id.
        num_replicas: Maximum number of trials in a stack.
    """
    missing_ids = {trial.trial_id for trial in missing}
    planned = {trial.trial_id: trial for trial in trials}
    recorded_with: dict[str, tuple[str, ...]] = {}
    for trial in trials:
        for trial_id in states[trial.trial_id].stack:
            recorded_with.setdefault(trial_id, states[trial.trial_id].stack)
    begun: dict[tuple[str, ...], list[PlannedTrial]] = defaultdict(list)
    stacks: list[StackGroup] = []
    for stack in planned_stacks(trials, num_replicas):
        fresh = []
        for trial in stack:
            trial_id, entry = trial.trial_id, states[trial.trial_id]
            if trial_id not in missing_ids:
                continue
            # A trial without a record of its own, for example with a damaged result, is found in those of the others.
            if ids := entry.stack or recorded_with.get(trial_id, (trial_id,) if entry.checkpoints else ()):
                begun[ids].append(trial)
            else:
                fresh.append(trial)
        stacks += [tuple(fresh)] if fresh else []
    for ids, members in begun.items():
        member_ids = {trial.trial_id for trial in members}
        whole = tuple(
            planned[trial_id]
            for trial_id in ids
            if trial_id in member_ids or (trial_id in planned and _finished_in(ids, states[trial_id]))
        )
        restorable = len(whole) == len(ids) <= num_replicas and len({_kind(trial) for trial in whole}) == 1
        if restorable and (resume_step(whole, states) or not all(_is_trained(trial, states) for trial in members)):
            stacks.append(whole)
        else:
            stacks += planned_stacks(members, num_replicas)
    order = {trial.trial_id: index for index, trial in enumerate(trials)}
    return sorted(stacks, key=lambda stack: min(order[trial.trial_id] for trial in stack))


def resume_step(stack: Sequence[PlannedTrial], states: Mapping[str, InventoryEntry]) -> int:
    """Return the last step of which every trial of a stack has a checkpoint, from which it resumes; 0 if there is none."""
    return max(set.intersection(*(set(states[trial.trial_id].checkpoints) for trial in stack)), default=0)


def _finished_in(ids: tuple[str, ...], entry: InventoryEntry) -> bool:
    return entry.state is TrialState.FINISHED and entry.stack == ids


def _is_trained(trial: PlannedTrial, states: Mapping[str, InventoryEntry]) -> bool:
    """Whether a trial has a checkpoint of its last step, so that only its result is missing."""
    return trial.steps in states[trial.trial_id].checkpoints


def _kind(trial: PlannedTrial) -> str:
    """Return a key that is equal for trials that can train together; the trial_id for those that train alone."""
    spec, training = trial.spec, trial.spec.training
    # These train alone: curricula with phases that end by loss, and plateaus, happen at different steps in each trial;
    # fp16 has one loss scale for the whole stack; a fill parent has one set of weights; windows differ in their texts.
    alone = training.curriculum or training.stop or spec.fill or training.precision is Precision.FP16
    if alone or not isinstance(training.packing, OnePerRow):
        return trial.trial_id
    varying = dict(REPLICA_FIELDS)
    if isinstance(training.length, Tokens):  # tokens depend on the names, so other people need another number of steps
        del varying["profiles"]
    shared = spec.model_dump(mode="json", exclude=varying)
    return json.dumps([shared, trial.steps, trial.parameters.total], sort_keys=True)
