"""Tests of the grouping of trials into stacks."""

import json

import pytest

from raycap.plan.expand import expand
from raycap.plan.inventory import InventoryEntry, TrialState
from raycap.plan.stacks import planned_stacks, resume_step, stacks_to_train
from raycap.results import PlannedTrial
from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep


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


def sizes(trials: list[PlannedTrial], num_replicas: int = 8) -> list[int]:
    groups = planned_stacks(trials, num_replicas)
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


SEEDS = planned(*({"training": {"length": {"steps": 20}, "batch_size": 16, "seed": seed}} for seed in range(6)))
IDS = tuple(trial.trial_id for trial in SEEDS)
NEW = InventoryEntry(TrialState.NEW)


def begun(stack: str, *steps: int, state: TrialState = TrialState.RESUMABLE) -> InventoryEntry:
    """Return the entry of a trial whose stack has the seeds that are the digits of `stack`."""
    return InventoryEntry(state, "", steps, tuple(IDS[int(seed)] for seed in stack))


def finished(stack: str, *steps: int) -> InventoryEntry:
    return begun(stack, *steps, state=TrialState.FINISHED)


def to_train(*entries: InventoryEntry, num_replicas: int = 4, only: str = "012345") -> list[str]:
    """Return the seeds of each stack as a word, given the entries of the first trials."""
    states = dict(zip(IDS, [*entries, *[NEW] * (len(IDS) - len(entries))], strict=True))
    missing = [SEEDS[int(seed)] for seed in only if states[IDS[int(seed)]].state is not TrialState.FINISHED]
    stacks = stacks_to_train(missing, SEEDS, states, num_replicas)
    return ["".join(str(IDS.index(trial.trial_id)) for trial in stack) for stack in stacks]


def test_a_torn_stack_is_continued_whole() -> None:
    whole = ["0123", "45"]
    assert to_train() == whole
    assert to_train(*[begun("0123", 10)] * 4) == whole
    assert to_train(begun("0123", 10, 12), begun("0123", 8, 10), begun("0123", 10), begun("0123", 10)) == whole
    assert to_train(begun("0123", 10), begun("0123", 5), begun("0123"), NEW) == whole  # no common step
    assert to_train(NEW, begun("0123", 5), begun("0123", 5, state=TrialState.FAILED)) == whole
    assert to_train(NEW, NEW, NEW, NEW, begun("45", 10), begun("45", 12)) == whole


def test_finished_trials_of_a_torn_stack_train_along() -> None:
    left, damaged = begun("0123", 19), InventoryEntry(TrialState.DAMAGED)
    assert to_train(finished("0123"), left, left, finished("0123")) == ["0123", "45"]
    assert to_train(finished("0123"), finished("0123"), damaged, finished("0123"), only="0123") == ["0123"]
    # Only the results of trained trials are missing.
    assert to_train(*[finished("0123", 20)] * 2, *[begun("0123", 20)] * 2, only="0123") == ["0123"]
    assert to_train(*[finished("0123")] * 2, *[begun("0123", 20)] * 2, only="0123") == ["23"]


def test_a_stack_of_which_some_trials_are_chosen_continues_without_the_others() -> None:
    assert to_train(only="02") == ["02"]
    assert to_train(*[begun("0123", 10)] * 4, only="02") == ["02"]
    # The chosen ones went on by themselves and are finished, or not.
    assert to_train(finished("02"), begun("0123", 10), finished("02"), begun("0123", 10)) == ["13", "45"]
    assert to_train(begun("02", 12), begun("0123", 10), begun("02", 12), begun("0123", 10)) == ["02", "13", "45"]
    # A trial began alone, which is not recorded.
    assert to_train(InventoryEntry(TrialState.RESUMABLE, "", (5,))) == ["0", "123", "45"]


def test_stacks_of_another_size_continue_apart() -> None:
    assert to_train(*[begun("0123", 10)] * 4, num_replicas=2) == ["01", "23", "45"]
    assert to_train(*[begun("01", 10)] * 2, *[begun("23", 8)] * 2) == ["01", "23", "45"]
    assert to_train(*[finished("0123")] * 3, begun("0123", 10), num_replicas=1) == ["3", "4", "5"]


def test_an_added_trial_does_not_train_finished_ones() -> None:
    assert to_train(*[finished("012")] * 3) == ["3", "45"]


def test_a_stack_resumes_from_its_last_common_step() -> None:
    states = dict(zip(IDS, (begun("01", 5, 10), begun("01", 10, 15)), strict=False))
    assert resume_step(SEEDS[:2], states) == 10
    states[IDS[1]] = begun("01", 15)
    assert resume_step(SEEDS[:2], states) == 0


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
