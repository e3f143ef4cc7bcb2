"""Which trials train together: models of one shape that differ in what a stack of replicas may differ in."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from raycap.results import PlannedTrial
from raycap.spec import OnePerRow, Precision, Tokens

OWN: dict[str, Any] = {
    "profiles": {"seed"},
    "training": {"seed": True, "order_seed": True, "optimizer": {"lr", "muon_lr", "weight_decay"}},
}
"""What replicas may differ in."""


def replica_groups(
    trials: Iterable[PlannedTrial], num_replicas: int, steps_done: Mapping[str, int]
) -> list[tuple[PlannedTrial, ...]]:
    """The trials in groups of at most `num_replicas` that may train as one stack, in the order of their first members.

    `steps_done` is how far those have come that go on from a checkpoint, by trial_id: only trials that are equally far
    go on together.
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
    """The same for trials that may train together."""
    spec, training = trial.spec, trial.spec.training
    # Phases that end by loss and plateaus come at steps of their own, a loss is scaled for all alike, a parent has one
    # set of weights, and windows are filled one by one.
    alone = training.curriculum or training.stop or spec.fill or training.precision is Precision.FP16
    if alone or not isinstance(training.packing, OnePerRow):
        return trial.trial_id
    own = dict(OWN)
    if isinstance(training.length, Tokens):  # other people have other names, and tokens are counted over them
        del own["profiles"]
    shared = spec.model_dump(mode="json", exclude=own)
    return json.dumps([shared, trial.steps, trial.parameters.total, step], sort_keys=True)
