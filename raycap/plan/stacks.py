"""Grouping of trials into stacks of replicas: models of one shape that one worker trains together."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from raycap.results import PlannedTrial
from raycap.spec import OnePerRow, Precision, Tokens

REPLICA_FIELDS: dict[str, Any] = {
    "profiles": {"seed"},
    "training": {"seed": True, "order_seed": True, "optimizer": {"lr", "muon_lr", "weight_decay"}},
}
"""Fields in which the replicas of a stack may differ."""


def replica_groups(
    trials: Iterable[PlannedTrial], num_replicas: int, steps_done: Mapping[str, int]
) -> list[tuple[PlannedTrial, ...]]:
    """Return the trials in groups of at most `num_replicas` that can train as one stack, ordered by first members.

    `steps_done` has the steps of the last checkpoints, by trial_id. Only trials at the same step resume together.
    """
    if num_replicas == 1:
        return [(trial,) for trial in trials]
    alike: dict[str, list[PlannedTrial]] = defaultdict(list)
    for trial in trials:
        alike[_kind(trial, steps_done.get(trial.trial_id, 0))].append(trial)
    return [
        tuple(members[begin : begin + num_replicas])
        for members in alike.values()
        for begin in range(0, len(members), num_replicas)
    ]


def _kind(trial: PlannedTrial, step: int) -> str:
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
    return json.dumps([shared, trial.steps, trial.parameters.total, step], sort_keys=True)
