"""Grouping of trials into stacks of replicas: models of one shape that one worker trains together.

The numbers of a replica depend slightly on the other replicas of its stack, because batches are padded to common shapes. The
composition of a stack must therefore not depend on when a run was interrupted. Every trial of a stack that has begun stores
the ids of all of its trials (`InventoryEntry.stack`), and later runs continue the stack with the same trials.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raycap.plan.inventory import InventoryEntry, TrialState
from raycap.results import PlannedTrial
from raycap.spec import ModelByWidth, OnePerRow, Precision, Tokens

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

    - Trials that have not begun train in their planned stack, without those of its trials that have begun in another one.
    - Trials of a stack that has begun train in it again. Its finished trials are trained again with them, without a change
      of their results: without them, the numbers of the others would differ from those of an uninterrupted run.
    - If a begun stack cannot be restored (see `_restored_stack`), its missing trials are grouped without the others.

    Args:
        missing: Trials to train.
        trials: All trials of the sweep, in the order of the plan.
        states: Stored state of each trial, by trial_id.
        num_replicas: Maximum number of trials in a stack.
    """
    missing_ids = {trial.trial_id for trial in missing}
    begun_stacks = _begun_stacks(trials, states)
    begun: dict[tuple[str, ...], list[PlannedTrial]] = defaultdict(list)
    stacks: list[StackGroup] = []
    for stack in planned_stacks(trials, num_replicas):
        to_train = [trial for trial in stack if trial.trial_id in missing_ids]
        for trial in to_train:
            if ids := begun_stacks.get(trial.trial_id):
                begun[ids].append(trial)
        if new := tuple(trial for trial in to_train if trial.trial_id not in begun_stacks):
            stacks.append(new)
    planned = {trial.trial_id: trial for trial in trials}
    for ids, members in begun.items():
        restored = _restored_stack(ids, members, planned, states, num_replicas)
        stacks += [restored] if restored else planned_stacks(members, num_replicas)
    order = {trial.trial_id: index for index, trial in enumerate(trials)}
    return sorted(stacks, key=lambda stack: min(order[trial.trial_id] for trial in stack))


def _begun_stacks(trials: Sequence[PlannedTrial], states: Mapping[str, InventoryEntry]) -> dict[str, tuple[str, ...]]:
    """Return the ids of the stack that each trial has begun to train in, by trial_id, without trials that have not begun.

    A trial without a record of its own, for example with a damaged result, is found in the records of the others.
    """
    begun: dict[str, tuple[str, ...]] = {}
    for trial in trials:
        for trial_id in states[trial.trial_id].stack:
            begun.setdefault(trial_id, states[trial.trial_id].stack)
    for trial in trials:
        trial_id, entry = trial.trial_id, states[trial.trial_id]
        if entry.stack:
            begun[trial_id] = entry.stack
        elif entry.checkpoints:
            begun.setdefault(trial_id, (trial_id,))
    return begun


def _restored_stack(
    ids: tuple[str, ...],
    members: list[PlannedTrial],
    planned: Mapping[str, PlannedTrial],
    states: Mapping[str, InventoryEntry],
    num_replicas: int,
) -> StackGroup | None:
    """Return all trials of a begun stack of which `members` are missing, or None if it cannot be restored.

    It cannot if some of its unfinished trials are not to be run, if some finished in another stack, or if it is larger than
    `num_replicas`. It is not restored either if all members are trained, so that only their results are missing, but the
    stack has no common checkpoint: it would be trained again from the start.
    """
    member_ids = {trial.trial_id for trial in members}
    stack = tuple(
        planned[trial_id]
        for trial_id in ids
        if trial_id in member_ids or (trial_id in planned and _finished_in(ids, states[trial_id]))
    )
    if len(stack) != len(ids) or len(ids) > num_replicas or len({_kind(trial) for trial in stack}) > 1:
        return None
    is_trained = all(_is_trained(trial, states) for trial in members)
    return None if is_trained and not resume_step(stack, states) else stack


def resume_step(stack: Sequence[PlannedTrial], states: Mapping[str, InventoryEntry]) -> int:
    """Return the step from which a stack resumes: the last of which all trials have a checkpoint, or 0 if there is none."""
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
    # fp16 has one loss scale for the whole stack; a fill parent has one set of weights; windows differ in their texts;
    # models of transformers have no axis of replicas.
    alone = training.curriculum or training.stop or spec.fill or training.precision is Precision.FP16
    if alone or not isinstance(training.packing, OnePerRow) or not isinstance(spec.model, ModelByWidth):
        return trial.trial_id
    varying = dict(REPLICA_FIELDS)
    if isinstance(training.length, Tokens):  # tokens depend on the names, so other people need another number of steps
        del varying["profiles"]
    shared = spec.model_dump(mode="json", exclude=varying)
    return json.dumps([shared, trial.steps, trial.parameters.total], sort_keys=True)
