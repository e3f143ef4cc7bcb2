"""Replicas of a stack have the results they have as single trials."""

from pathlib import Path

import pytest

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.evaluation import DivergedError
from raycap.learner.trial import TrainedTrial, run_trial, run_trials
from raycap.results import Evaluation, TrialResult
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
from raycap.storage import Storage, checkpoint_path

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
            length=Exposures(exposures=20), batch_size=32, num_evaluations=4, optimizer=optimizer, seed=seed
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


def losses(evaluation: Evaluation) -> list[float]:
    kinds = [evaluation.losses.select(kind).mean_bits for kind in (Kind.ONE_HOP, Kind.TWO_HOP)]
    return [evaluation.train_loss_bits, *kinds, evaluation.parameter_norm]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.kind)
def test_every_replica_has_the_losses_of_a_single_trial(optimizer: OptimizerSpec) -> None:
    specs = different(optimizer)
    results = run_stack(specs)
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.kind)
def test_replicas_resume_from_their_checkpoints_in_other_stacks(optimizer: OptimizerSpec, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    specs = different(optimizer)
    reports = []

    def fail_half_way(trial_id: str, evaluation: Evaluation) -> None:
        reports.append(trial_id)
        if len(reports) == 3 * len(specs):
            raise Killed

    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    with pytest.raises(Killed):
        run_trials(specs, source_commit="test", report=fail_half_way, checkpoints=checkpoints)
    assert set(reports) == {each.trial_id for each in specs}
    whole = run_stack(specs)
    pair, others = run_stack(specs[3:1:-1], checkpoints=checkpoints), run_stack(specs[:2], checkpoints=checkpoints)
    for result, expected in zip([*others, *pair[::-1]], whole[:4], strict=True):
        assert result.trial_id == expected.trial_id
        assert result.final.step == expected.final.step
        assert losses(result.final) == pytest.approx(losses(expected.final), rel=1e-4)
        assert result.evaluations[0].losses == expected.evaluations[0].losses  # from the checkpoint


def test_a_stack_resumes_from_the_last_common_checkpoint(tmp_path: Path) -> None:
    """A crash between the checkpoints of one step leaves replicas at different steps."""
    specs = different(OPTIMIZERS[0])[:2]
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = run_stack(specs, checkpoints=checkpoints)
    last_but_one, last = checkpoints.steps(specs[1].trial_id)
    checkpoints.storage.delete(checkpoint_path(specs[1].trial_id, last))
    assert checkpoints.steps(specs[0].trial_id) == [last_but_one, last]
    for result, expected in zip(run_stack(specs, checkpoints=checkpoints), whole, strict=True):
        assert result.final.step == last
        assert losses(result.final) == pytest.approx(losses(expected.final), rel=1e-6)
        assert [e.step for e in result.evaluations] == [e.step for e in expected.evaluations]


def test_replicas_resume_without_one_that_diverged(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    calm, wild = spec(0, AdamW(lr=0.01, warmup_steps=20)), spec(1, AdamW(lr=1e30, warmup_steps=0, grad_clip=1.0))
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    ids = [calm.trial_id, wild.trial_id]
    steps: list[int] = []

    def fail_at_the_third(trial_id: str, evaluation: Evaluation) -> None:
        steps.append(evaluation.step)
        if trial_id == calm.trial_id and len(steps) == 3:
            raise Killed

    assert checkpoints.resumable_groups(ids) == [ids]
    with pytest.raises(Killed):
        run_trials((calm, wild), source_commit="test", report=fail_at_the_third, checkpoints=checkpoints)
    assert checkpoints.resumable_groups(ids) == [ids[:1], ids[1:]]
    before = checkpoints.steps(calm.trial_id)[-1]
    seen: list[int] = []
    (result,) = run_stack((calm,), checkpoints=checkpoints, report=lambda _, evaluation: seen.append(evaluation.step))
    assert 0 < before < min(seen)
    assert losses(result.final) == pytest.approx(losses(run_trial(calm, source_commit="test").result.final), rel=1e-4)


@pytest.mark.parametrize(
    ("kept", "groups"),
    [
        ({"a": [900, 1000], "b": [800, 900], "c": [300, 400]}, [["a", "b"], ["c"]]),
        ({"a": [100], "b": [], "c": [100]}, [["a", "c"], ["b"]]),
        ({"a": [1, 2], "b": [1, 2]}, [["a", "b"]]),
        ({"a": [300], "b": [400], "c": [500]}, [["c"], ["b"], ["a"]]),
    ],
)
def test_trials_with_a_common_step_resume_together(
    kept: dict[str, list[int]], groups: list[list[str]], tmp_path: Path
) -> None:
    storage = Storage.at(str(tmp_path))
    for trial_id, steps in kept.items():
        for step in steps:
            storage.write(checkpoint_path(trial_id, step), b"")
    assert Checkpoints(storage).resumable_groups(list(kept)) == groups


def test_checkpoints_later_than_the_resumed_step_are_deleted(tmp_path: Path) -> None:
    """Otherwise they would count as the newest, and the next checkpoints would be deleted at once."""
    specs = different(OPTIMIZERS[0])[:2]
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    checkpoints.storage.write(checkpoint_path(specs[0].trial_id, 10**6), b"checkpoint of an earlier stack")
    assert run_stack(specs, checkpoints=checkpoints)[0].num_steps < 10**6
    assert max(checkpoints.steps(specs[0].trial_id)) < 10**6
