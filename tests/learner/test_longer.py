"""Trials that differ only in length continue the shorter one, bit-equal to a trial that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.kept_models import ModelKeeper
from raycap.learner.longer import num_stable_steps
from raycap.learner.optim import schedule_factor
from raycap.learner.trial import TrainedTrial, run_trials
from raycap.spec import (
    AdamW,
    EvaluationPlaces,
    KeptModels,
    NamePools,
    NumHeads,
    Schedule,
    ScheduleFree,
    Steps,
    TrialSpec,
)
from raycap.storage import Storage
from tests.support.tiny import TINY, weights

SMALL = TINY.model_copy(
    update={
        "profiles": TINY.profiles.model_copy(
            update={"num_profiles": 12, "names": NamePools(first=4, middle=4, last=4)}
        ),
        "model": TINY.model.model_copy(update={"num_layers": 1, "hidden_size": 16, "heads": NumHeads(num_heads=1)}),
    }
)
CONSTANT = AdamW(lr=0.01, warmup_steps=5, weight_decay=0.0, schedule=Schedule.CONSTANT)


def spec(steps: int, seed: int = 0, **training: Any) -> TrialSpec:
    fields = {
        "length": Steps(steps=steps),
        "optimizer": CONSTANT,
        "num_evaluations": 3,
        "seed": seed,
        "order_seed": seed,
    }
    return SMALL.model_copy(update={"training": SMALL.training.model_copy(update=fields | training)})


def run(specs: list[TrialSpec], storage: Path | None, **options: Any) -> tuple[int, list[TrainedTrial]]:
    """Return the step at which training started, and the trained trials."""
    starts: list[int] = []
    checkpoints = Checkpoints(Storage.at(str(storage))) if storage else None
    options |= {"on_step": starts.append, "checkpoints": checkpoints, "source_commit": "test"}
    trained = run_trials(tuple(specs), **options)
    return starts[0], trained


def assert_equal(found: list[TrainedTrial], expected: list[TrainedTrial]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
        timeless = [
            [e.model_copy(update={"train_seconds": 0.0}) for e in trial.result.evaluations] for trial in (one, other)
        ]
        assert timeless[0] == timeless[1]


SCHEDULES = {
    "constant": (CONSTANT, 12),
    "schedule-free": (ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=5), 12),
    "wsd": (CONSTANT.model_copy(update={"schedule": Schedule.WSD, "decay_share": 0.25}), 10),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seeds", [[0], [0, 1]], ids=["alone", "stack"])
def test_a_longer_trial_continues_a_shorter_one_bit_equal(schedule: str, seeds: list[int], tmp_path: Path) -> None:
    optimizer, shared = SCHEDULES[schedule]
    short, long = ([spec(steps, seed, optimizer=optimizer) for seed in seeds] for steps in (12, 24))
    assert num_stable_steps(short[0].training, 12) == shared
    # The shorter trial has one more evaluation at the beginning, where sums of losses must not begin again.
    short = [
        each.model_copy(update={"training": each.training.model_copy(update={"num_evaluations": 4})}) for each in short
    ]
    run(short, tmp_path)
    reported: list[tuple[str, int]] = []
    start, continued = run(
        long, tmp_path, report=lambda trial_id, evaluation: reported.append((trial_id, evaluation.step))
    )
    never, whole = run(long, None)
    assert (start, never) == (shared, 0)
    assert_equal(continued, whole)
    evaluated = [(each.trial_id, evaluation.step) for each in long for evaluation in whole[0].result.evaluations]
    assert sorted(reported) == sorted(evaluated)
    (earlier,) = continued[0].result.provenance.earlier_stacks
    assert (earlier.until_step, list(earlier.trial_ids)) == (shared, [each.trial_id for each in short])


def test_a_trial_that_is_longer_still_continues_the_longest(tmp_path: Path) -> None:
    for steps, expected in ((12, 0), (24, 12), (48, 24), (24, 0)):
        start, trained = run([spec(steps, evaluate_at=(0.5,))], tmp_path / "runs")
        if steps != 24 or expected:
            assert start == expected
    assert_equal(trained, run([spec(24, evaluate_at=(0.5,))], None)[1])
    assert [len(names) for names in Storage.at(str(tmp_path / "runs")).folders("trials/stable").values()] == [1]


UNEQUAL: dict[str, dict[str, Any]] = {
    "another seed": {"seed": 1},
    "another learning rate": {"optimizer": CONSTANT.model_copy(update={"lr": 0.02})},
    "a schedule that depends on the length": {"optimizer": CONSTANT.model_copy(update={"schedule": Schedule.LINEAR})},
    "a warm-up that is cut differently": {"optimizer": CONSTANT.model_copy(update={"warmup_steps": 12})},
    "evaluations that the shorter one lacks": {"evaluate_at": EvaluationPlaces.LINEAR, "num_evaluations": 12},
}


@pytest.mark.parametrize("change", UNEQUAL)
def test_trials_that_differ_in_more_than_length_begin_at_the_start(change: str, tmp_path: Path) -> None:
    first = spec(12) if change in ("another seed", "another learning rate") else spec(12, **UNEQUAL[change])
    if "evaluations" in change:
        first = spec(12)
    run([first], tmp_path)
    start, trained = run([spec(24, **UNEQUAL[change])], tmp_path)
    assert start == 0
    assert not trained[0].result.provenance.earlier_stacks


def test_a_trial_whose_models_are_stored_is_not_continued(tmp_path: Path) -> None:
    """The models of the first steps would be missing."""
    run([spec(12)], tmp_path)
    keeper = ModelKeeper(Storage.at(str(tmp_path)), KeptModels.EVALUATIONS)
    assert run([spec(24)], tmp_path, keeper=keeper)[0] == 0


def test_a_trial_that_would_have_ended_early_is_not_continued(tmp_path: Path) -> None:
    run([spec(12)], tmp_path)
    long = spec(24)
    start, (ended,) = run([long], tmp_path, ends_early=lambda trial_id, evaluations: len(evaluations) == 1)
    assert (start, ended.result.num_steps) == (0, 6)


@pytest.mark.parametrize("steps", [1, 7, 40, 100])
@pytest.mark.parametrize("warmup", [0, 3, 1000])
@pytest.mark.parametrize("share", [0.01, 0.33, 1.0])
def test_stable_steps_are_those_before_the_decay(steps: int, warmup: int, share: float) -> None:
    optimizer = AdamW(schedule=Schedule.WSD, decay_share=share, warmup_steps=warmup)
    training = SMALL.training.model_copy(update={"optimizer": optimizer})
    factors = [schedule_factor(optimizer, step, steps) for step in range(steps)]
    begins = min(warmup, steps // 2)
    after = next((step for step in range(begins, steps) if factors[step] < 1), steps)
    assert num_stable_steps(training, steps) == after
