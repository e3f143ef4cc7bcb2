"""Tests of the grouping of trials into stacks."""

import json

import pytest

from raycap.plan.expand import expand
from raycap.plan.stacks import replica_groups
from raycap.results import PlannedTrial
from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.file import GridPoint, LoadedSweep


def planned(*trees: dict) -> list[PlannedTrial]:
    base = {
        "profiles": {"num_profiles": 60, "num_relations": 2, "names": {"first": 8, "middle": 8, "last": 8}},
        "model": {"hidden_size": 16, "num_layers": 1},
        "training": {"length": {"steps": 20}, "batch_size": 16},
    }
    points = []
    for tree in trees:
        merged = {name: base.get(name, {}) | tree.get(name, {}) for name in {*base, *tree}}
        points.append(GridPoint({}, TrialSpec.model_validate_json(json.dumps(merged)), "here"))
    return expand(LoadedSweep(SweepSpec(name="some"), points, "", ""))


def sizes(trials: list[PlannedTrial], num_replicas: int = 8, **steps_done: int) -> list[int]:
    groups = replica_groups(trials, num_replicas, steps_done)
    assert [
        trial for group in groups for trial in group
    ] == trials  # the trials of these tests are already in the order of their groups
    return [len(group) for group in groups]


def test_replicas_may_differ_in_seeds_rates_decay_and_people() -> None:
    trials = planned(
        {"training": {"length": {"steps": 20}, "seed": 1}},
        {"training": {"length": {"steps": 20}, "order_seed": 7}},
        {"training": {"length": {"steps": 20}, "optimizer": {"lr": 0.1}}},
        {"training": {"length": {"steps": 20}, "optimizer": {"weight_decay": 0.3}}},
        {"profiles": {"seed": 5}},
    )
    assert sizes(trials) == [5]
    assert sizes(trials, 2) == [2, 2, 1]
    assert sizes(trials, 1) == [1] * 5


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"hidden_size": 32, "num_layers": 1}},
        {"profiles": {"num_profiles": 61}},
        {"training": {"length": {"steps": 21}}},
        {"training": {"length": {"steps": 20}, "batch_size": 17}},
        {"training": {"length": {"steps": 20}, "optimizer": {"betas": [0.9, 0.95]}}},
        {"questions": {"hops": [1, 2]}},
    ],
    ids=str,
)
def test_replicas_may_differ_in_nothing_else(other: dict) -> None:
    assert sizes(planned({}, other)) == [1, 1]


def test_trials_resume_together_only_from_the_same_step() -> None:
    trials = planned(*({"training": {"length": {"steps": 20}, "seed": seed}} for seed in range(4)))
    ids = [trial.trial_id for trial in trials]
    assert sizes(trials, **{ids[0]: 10, ids[1]: 10}) == [2, 2]
    assert sizes(trials, **dict(zip(ids, (5, 10, 15, 20), strict=True))) == [1] * 4


@pytest.mark.parametrize(
    "alone",
    [
        {"packing": {"kind": "windows", "length": 64}},
        {"stop": {"window_exposures": 1}, "optimizer": {"schedule": "constant"}, "length": {"steps": 2000}},
    ],
    ids=str,
)
def test_windows_and_plateaus_train_alone(alone: dict) -> None:
    trees = [{"training": {"length": {"steps": 20}, "batch_size": 16, **alone, "seed": seed}} for seed in range(2)]
    assert sizes(planned(*trees)) == [1, 1]


def test_with_a_length_in_tokens_other_people_train_apart() -> None:
    trees = [
        {"training": {"length": {"tokens": 5000}, "seed": seed}, "profiles": {"seed": people}}
        for seed, people in ((0, 0), (1, 0), (0, 1))
    ]
    assert sizes(planned(*trees)) == [2, 1]
