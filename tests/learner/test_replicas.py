"""Replicas of a stack have the results they have as single trials."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.evaluation import DivergedError
from raycap.learner.trial import TrainedTrial, run_trial, run_trials
from raycap.results import Evaluation, StopReason, TrialResult
from raycap.spec import (
    AdamW,
    Exposures,
    HeldOut,
    Kind,
    ModelByWidth,
    Muon,
    NamePools,
    NumHeads,
    OptimizerSpec,
    ProfilesByCount,
    QuestionsByShare,
    ScheduleFree,
    TrainingSpec,
    TrialSpec,
)
from raycap.storage import Storage, checkpoint_path, read_stack

OPTIMIZERS = [
    AdamW(lr=0.01, warmup_steps=20, weight_decay=0.1),
    ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=20),
    Muon(kind="muon", lr=0.01, warmup_steps=20),
]


def spec(seed: int, optimizer: OptimizerSpec, people: int = 0) -> TrialSpec:
    pools = NamePools(first=8, middle=8, last=8)
    return TrialSpec(
        profiles=ProfilesByCount(num_profiles=40, num_relations=2, names=pools, seed=people),
        questions=QuestionsByShare(hops=(1, 2), one_hop_share=0.5, held_out=HeldOut(tuples=0.2)),
        model=ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=2), tie_embeddings=True),
        training=TrainingSpec(
            length=Exposures(exposures=10), batch_size=32, num_evaluations=4, optimizer=optimizer, seed=seed
        ),
    )


def different(optimizer: OptimizerSpec) -> tuple[TrialSpec, ...]:
    """Return specs that differ in everything in which the replicas of a stack may differ."""
    faster = optimizer.model_copy(update={"lr": 0.02})
    decayed = optimizer.model_copy(update={"weight_decay": optimizer.weight_decay.model_copy(update={"gains": 0.1})})
    return spec(0, optimizer), spec(1, optimizer), spec(0, faster), spec(0, decayed), spec(2, optimizer, people=5)


def run_stack(specs: tuple[TrialSpec, ...], **options: object) -> list[TrialResult | DivergedError]:
    outcomes = run_trials(specs, source_commit="test", **options)
    return [outcome.result if isinstance(outcome, TrainedTrial) else outcome for outcome in outcomes]


@cache
def undisturbed(specs: tuple[TrialSpec, ...]) -> list[TrialResult | DivergedError]:
    return run_stack(specs)


def losses(evaluation: Evaluation) -> list[float]:
    kinds = [evaluation.losses.select(kind).mean_bits for kind in (Kind.ONE_HOP, Kind.TWO_HOP)]
    return [evaluation.train_loss_bits, *kinds, evaluation.parameter_norm]


@pytest.mark.parametrize(
    "optimizer",
    [OPTIMIZERS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIMIZERS[1:])],
    ids=lambda optimizer: optimizer.kind,
)
def test_every_replica_has_the_losses_of_a_single_trial(optimizer: OptimizerSpec) -> None:
    specs = different(optimizer)
    results = undisturbed(specs)
    for spec_of_one, result in zip(specs, results, strict=True):
        single = run_trial(spec_of_one, source_commit="test").result
        assert result.trial_id == single.trial_id == spec_of_one.trial_id
        assert (result.populations, result.parameters) == (single.populations, single.parameters)
        for a, b in zip(result.evaluations, single.evaluations, strict=True):
            assert (a.step, a.exposures, a.tokens, a.learning_rate) == (b.step, b.exposures, b.tokens, b.learning_rate)
            assert losses(a) == pytest.approx(losses(b), rel=1e-4)
            assert [row.key for row in a.losses.rows] == [row.key for row in b.losses.rows]
    ends = [tuple(losses(result.final)) for result in results]
    assert len(set(ends)) == len(ends)


@pytest.mark.slow
def test_a_replica_that_diverges_does_not_affect_the_others() -> None:
    wild = AdamW(lr=1e30, warmup_steps=0, grad_clip=1.0, weight_decay=0.1)
    calm = wild.model_copy(update={"lr": 0.01})
    first, diverged, last = run_stack((spec(0, calm), spec(1, wild), spec(2, calm)))
    assert isinstance(diverged, DivergedError)
    assert "optimizer.lr" in str(diverged)
    for seed, result in ((0, first), (2, last)):
        single = run_trial(spec(seed, calm), source_commit="test").result
        assert losses(result.final) == pytest.approx(losses(single.final), rel=1e-4)
    with pytest.raises(DivergedError):  # no replica is left
        run_trials((spec(1, wild), spec(2, wild)), source_commit="test")


CALM, WILD = AdamW(lr=0.01, warmup_steps=20), AdamW(lr=1e30, warmup_steps=0, grad_clip=1.0)


def short(long: TrialSpec) -> TrialSpec:
    """Return a trial that trains in a fraction of a second."""
    training = long.training.model_copy(update={"length": Exposures(exposures=4)})
    return long.model_copy(update={"training": training, "questions": QuestionsByShare(hops=(1,))})


SHORT = tuple(map(short, different(OPTIMIZERS[0])))


class Killed(Exception):
    """Ends a training as a kill would, but in this process."""


def killed_after(specs: tuple[TrialSpec, ...], checkpoints: Checkpoints, num_reports: int, **options: object) -> None:
    """Train a stack until a number of evaluations are reported."""
    reports: list[str] = []

    def fail(trial_id: str, evaluation: Evaluation) -> None:
        reports.append(trial_id)
        if len(reports) == num_reports:
            raise Killed

    with pytest.raises(Killed):
        run_trials(specs, source_commit="test", report=fail, checkpoints=checkpoints, **options)


def equal(result: TrialResult | DivergedError, expected: TrialResult | DivergedError) -> bool:
    """Whether two results are bit-equal, except for times."""
    if isinstance(result, DivergedError) or isinstance(expected, DivergedError):
        return str(result) == str(expected)
    return result.provenance.stack == expected.provenance.stack and all(
        a.model_copy(update={"train_seconds": b.train_seconds}) == b
        for a, b in zip(result.evaluations, expected.evaluations, strict=True)
    )


def damage(checkpoints: Checkpoints, trial_id: str, step: int) -> None:
    path = checkpoint_path(trial_id, step)
    checkpoints.storage.write(path, checkpoints.storage.read(path)[:-7])


def lose_newest(checkpoints: Checkpoints, trial_id: str, step: int) -> None:
    checkpoints.storage.delete(checkpoint_path(trial_id, step))


def lose_all(checkpoints: Checkpoints, trial_id: str, step: int) -> None:
    for each in checkpoints.steps(trial_id):
        checkpoints.storage.delete(checkpoint_path(trial_id, each))


@pytest.mark.parametrize(
    "optimizer",
    [OPTIMIZERS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIMIZERS[1:])],
    ids=lambda optimizer: optimizer.kind,
)
def test_replicas_resume_from_their_checkpoints_in_other_stacks(optimizer: OptimizerSpec, tmp_path: Path) -> None:
    specs = different(optimizer)
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    killed_after(specs, checkpoints, 3 * len(specs))
    whole = undisturbed(specs)
    pair, others = run_stack(specs[3:1:-1], checkpoints=checkpoints), run_stack(specs[:2], checkpoints=checkpoints)
    for result, expected in zip([*others, *pair[::-1]], whole[:4], strict=True):
        assert result.trial_id == expected.trial_id
        assert result.final.step == expected.final.step
        assert losses(result.final) == pytest.approx(losses(expected.final), rel=1e-4)
        assert result.evaluations[0].losses == expected.evaluations[0].losses  # from the checkpoint


@pytest.mark.parametrize(("torn", "tear"), [(0, lose_newest), (0, lose_all), (1, damage), (2, lose_newest)])
def test_a_torn_stack_ends_bit_equal(torn: int, tear: Callable[[Checkpoints, str, int], None], tmp_path: Path) -> None:
    """It resumes from the last common step, or starts again together."""
    specs = SHORT[:3]
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    killed_after(specs, checkpoints, 10)
    steps = checkpoints.steps(specs[torn].trial_id)
    tear(checkpoints, specs[torn].trial_id, steps[-1])
    seen: list[int] = []
    results = run_stack(specs, checkpoints=checkpoints, report=lambda _, evaluation: seen.append(evaluation.step))
    if tear is not lose_all:
        assert min(seen) > steps[0]
    assert all(map(equal, results, undisturbed(specs)))


def test_a_checkpoint_that_one_replica_cannot_write_keeps_the_common_ones(tmp_path: Path) -> None:
    """A folder lies where the checkpoint of one replica belongs, so writing it fails as on a full disk."""
    specs = SHORT[:3]
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = undisturbed(specs)
    first, second, third, *_ = (evaluation.step for evaluation in whole[0].evaluations)
    obstacle = tmp_path / checkpoint_path(specs[1].trial_id, third)

    def obstruct(trial_id: str, evaluation: Evaluation) -> None:
        if evaluation.step == third:
            obstacle.mkdir(exist_ok=True)

    with pytest.raises(OSError, match="checkpoint-"):
        run_stack(specs, report=obstruct, checkpoints=checkpoints)
    obstacle.rmdir()
    assert [checkpoints.steps(spec.trial_id) for spec in specs] == [[first, second, third], *[[first, second]] * 2]
    assert all(map(equal, run_stack(specs, checkpoints=checkpoints), whole))


@pytest.mark.parametrize(
    "optimizer",
    [OPTIMIZERS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIMIZERS[1:])],
    ids=lambda optimizer: optimizer.kind,
)
def test_finished_trials_of_a_stack_train_without_reporting(optimizer: OptimizerSpec, tmp_path: Path) -> None:
    """The result of one trial is stored, and that of another is lost together with all checkpoints."""
    specs = tuple(map(short, different(optimizer)[1:4]))
    ids = [each.trial_id for each in specs]
    whole, reports = undisturbed(specs), set()
    results = run_stack(specs, finished=frozenset(ids[:2]), report=lambda trial_id, _: reports.add(trial_id))
    assert equal(results[2], whole[2])
    assert reports == {ids[2]}
    assert whole[2].provenance.stack == tuple(ids)


def test_training_ends_once_only_finished_trials_are_left() -> None:
    calm, wild = short(spec(0, CALM)), short(spec(1, WILD))
    steps: list[int] = []
    with pytest.raises(DivergedError, match="not finite"):
        run_stack((calm, wild), finished=frozenset({calm.trial_id}), on_step=steps.append)
    assert steps[-1] < run_trial(calm, source_commit="test").result.num_steps


def test_a_diverged_replica_stays_in_its_stack(tmp_path: Path) -> None:
    """The others would otherwise end with other numbers after a restart."""
    specs = tuple(map(short, (spec(0, CALM), spec(1, WILD), spec(3, CALM, people=5))))
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    killed_after(specs, checkpoints, 5)
    assert len({tuple(checkpoints.steps(each.trial_id)) for each in specs}) == 1
    whole = undisturbed(specs)
    assert all(map(equal, run_stack(specs, checkpoints=checkpoints), whole))
    (again,) = run_stack(specs[1:2], checkpoints=checkpoints)  # trained to the end already, so it fails at once
    assert str(again) == str(whole[1])


def test_a_trial_that_continues_in_another_stack_says_so(tmp_path: Path) -> None:
    specs = SHORT[:3]
    ids = tuple(each.trial_id for each in specs)
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    killed_after(specs, checkpoints, 10)
    step = checkpoints.steps(ids[0])[-1]
    (alone,) = run_stack(specs[:1], checkpoints=checkpoints)
    assert alone.provenance.stack == ids[:1]
    assert [(stack.until_step, stack.trial_ids) for stack in alone.provenance.earlier_stacks] == [(step, ids)]
    pair = run_stack(specs[1:], checkpoints=checkpoints)
    assert {result.provenance.stack for result in pair} == {ids[1:]}
    assert read_stack(checkpoints.storage, ids[0]) == ids[:1]
    assert read_stack(checkpoints.storage, ids[1]) == read_stack(checkpoints.storage, ids[2]) == ids[1:]


def test_a_stack_ends_early_once_all_its_trials_may(tmp_path: Path) -> None:
    """The decision does not depend on interruptions, and a trial that may end leaves the numbers of the others alone."""
    specs = SHORT[:3]
    ids = [each.trial_id for each in specs]
    whole = undisturbed(specs)
    steps = [evaluation.step for evaluation in whole[0].evaluations]

    def ends_early(trial_id: str, evaluations: Sequence[Evaluation]) -> bool:
        return evaluations[-1].step == steps[ids.index(trial_id)]

    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    killed_after(specs, checkpoints, 9, ends_early=ends_early)
    for options in ({}, {"checkpoints": checkpoints}):
        ended = run_stack(specs, ends_early=ends_early, **options)
        assert {(result.num_steps, result.stop_reason) for result in ended} == {(steps[2], StopReason.EARLY)}
        for result, full in zip(ended, whole, strict=True):
            assert (
                result.final.losses == full.evaluations[2].losses
                or result.final.losses.without_histograms() == full.evaluations[2].losses
            )
    never = run_stack(specs, ends_early=lambda trial_id, evaluations: trial_id == ids[0])
    assert all(map(equal, never, whole))
    assert {result.stop_reason for result in never} == {StopReason.LENGTH}


def test_checkpoints_later_than_the_resumed_step_are_deleted(tmp_path: Path) -> None:
    """Otherwise they would count as the newest, and the next checkpoints would be deleted at once."""
    specs = different(OPTIMIZERS[0])[:2]
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    checkpoints.storage.write(checkpoint_path(specs[0].trial_id, 10**6), b"checkpoint of an earlier stack")
    assert run_stack(specs, checkpoints=checkpoints)[0].num_steps < 10**6
    assert max(checkpoints.steps(specs[0].trial_id)) < 10**6
