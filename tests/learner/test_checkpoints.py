"""Trials that were paused, stopped or killed resume from their checkpoints with bit-equal results."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.model import CPU
from raycap.learner.signals import PausedError, Signal
from raycap.results import Evaluation, StopReason
from raycap.spec import LossBelow, Phase, QuestionsByWeights, ScheduleFree, Steps
from raycap.storage import DamagedError, Storage, checkpoint_path, checkpoint_steps, forget_checkpoints
from tests.support.tiny import TINY, trained, trained_tiny, weights


def test_a_trial_resumed_from_a_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    reports = 0

    def fail_at_the_third(trial_id: str, evaluation: Evaluation) -> None:
        nonlocal reports
        reports += 1
        if reports == 3:
            raise Killed

    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = trained_tiny()
    with pytest.raises(Killed):
        trained(TINY, checkpoint_every_s=0.01, report=fail_at_the_third, checkpoints=checkpoints)
    assert 0 < kept_steps(checkpoints)[-1] < whole.result.num_steps
    resumed = trained(TINY, checkpoint_every_s=0.01, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    timeless = [
        [e.model_copy(update={"train_seconds": 0.0}) for e in trial.result.evaluations] for trial in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def kept_steps(checkpoints: Checkpoints) -> list[int]:
    (names,) = checkpoints.storage.folders("trials").values()
    return checkpoint_steps(names)


def test_a_trial_resumed_after_its_last_step_returns_the_same_result(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = trained(TINY, checkpoints=checkpoints)
    assert len(kept_steps(checkpoints)) == 2
    assert trained(TINY, checkpoints=checkpoints).result == whole.result
    forget_checkpoints(checkpoints.storage, whole.result.trial_id)
    assert kept_steps(checkpoints) == []


def test_trials_are_saved_at_evaluations_and_at_the_checkpoint_interval(tmp_path: Path) -> None:
    class RecordedCheckpoints(Checkpoints):
        def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
            steps.append(step)
            super().save(trial_id, step, state)

    evaluated = [evaluation.step for evaluation in trained_tiny().result.evaluations]
    steps: list[int] = []
    trained(TINY, checkpoint_every_s=1e3, checkpoints=RecordedCheckpoints(Storage.at(f"{tmp_path}/seldom")))
    assert steps == evaluated
    steps.clear()
    trained(TINY, checkpoint_every_s=0.0, checkpoints=RecordedCheckpoints(Storage.at(f"{tmp_path}/often")))
    assert set(steps) > set(evaluated)
    assert steps == sorted(set(steps))


def half_trained(folder: Path) -> tuple[Checkpoints, str]:
    """Return the checkpoints of TINY, paused after some steps, and its trial id."""
    checkpoints = Checkpoints(Storage.at(str(folder)))
    polls = 0

    def signal() -> Signal:
        nonlocal polls
        polls += 1
        return Signal.PAUSE if polls == 6 else Signal.CONTINUE

    with pytest.raises(PausedError, match=r"after step \d+"):
        trained(TINY, checkpoints=checkpoints, checkpoint_every_s=0.0, poll_signal=signal)
    return checkpoints, TINY.trial_id


@pytest.mark.slow
def test_a_paused_trial_saves_and_resumes_bit_equal(tmp_path: Path) -> None:
    checkpoints, _ = half_trained(tmp_path)
    whole = trained_tiny()
    assert 0 < kept_steps(checkpoints)[-1] < whole.result.num_steps
    resumed = trained(TINY, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_stopped_trial_is_evaluated_at_its_current_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    result = trained(TINY, checkpoints=checkpoints, poll_signal=lambda: Signal.STOP).result
    assert (result.stop_reason, result.num_steps, result.final.step) == (StopReason.EARLY, 1, 1)
    assert trained(TINY, checkpoints=checkpoints).result == result  # a finished trial is not trained further


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "last byte missing": lambda content: content[:-1],
    "second half missing": lambda content: content[: len(content) // 2],
    "bit of the digest flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "bit of a weight flipped": lambda content: content[:-100] + bytes([content[-100] ^ 8]) + content[-99:],
    "bytes appended": lambda content: content + b"more",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("num_damaged", [1, 2])
def test_damaged_checkpoints_are_never_loaded(
    tmp_path: Path, damage: Callable[[bytes], bytes], num_damaged: int
) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    for step in (100, 200):
        checkpoints.save("trial", step, {"weights": torch.full((100,), float(step))})
    for step in (100, 200)[-num_damaged:]:
        path = tmp_path / checkpoint_path("trial", step)
        path.write_bytes(damage(path.read_bytes()))
    step, states = checkpoints.latest(["trial"], CPU)
    assert (step, len(states)) == ((100, 1) if num_damaged == 1 else (0, 0))
    assert all(torch.equal(state["weights"], torch.full((100,), 100.0)) for state in states)
    assert len(list(tmp_path.rglob("*.pt.damaged"))) == num_damaged
    forget_checkpoints(checkpoints.storage, "trial")
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_trial_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    checkpoints, trial_id = half_trained(tmp_path)
    path = tmp_path / checkpoint_path(trial_id, kept_steps(checkpoints)[-1])
    path.write_bytes(path.read_bytes()[:-7])
    whole, resumed = trained_tiny(), trained(TINY, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    checkpoints.save(TINY.trial_id, 1, {"weights": Bomb(tmp_path / "ran")})
    with pytest.raises(DamagedError, match=r"checkpoint-0+1\.pt"):
        checkpoints.load(TINY.trial_id, 1, CPU)
    whole, resumed = trained_tiny(), trained(TINY, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert not (tmp_path / "ran").exists()


def test_completed_steps_are_reported_until_an_error() -> None:
    def fail(trial_id: str, evaluation: Evaluation) -> None:
        raise RuntimeError("a part broke")

    steps: list[int] = []
    with pytest.raises(RuntimeError, match="a part broke"):
        trained(TINY, report=fail, on_step=steps.append)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, trained_tiny().result.evaluations[0].step)


PHASED = TINY.model_copy(
    update={
        "questions": QuestionsByWeights(hops=(1, 2), weights=(1.0, 1.0)),
        "training": TINY.training.model_copy(
            update={
                "curriculum": (
                    Phase(weights=(0.0, 1.0), until=Steps(steps=30)),
                    Phase(weights=(1.0, 0.0), until=LossBelow(loss_below_bits=9.0)),
                ),
                "length": Steps(steps=400),
                "optimizer": ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=20),
            }
        ),
    }
)


class EveryCheckpoint(Checkpoints):
    """Keeps all checkpoints, each in a storage of its own."""

    def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
        Checkpoints(Storage.at(f"{self.storage.root}/{step}")).save(trial_id, step, state)


@pytest.mark.slow
def test_a_curriculum_resumed_from_any_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    """The curriculum has a phase by length and one by loss; schedule-free AdamW evaluates averaged weights."""
    whole = trained(PHASED, checkpoint_every_s=0.0, checkpoints=EveryCheckpoint(Storage.at(str(tmp_path))))
    phases = [evaluation.phase for evaluation in whole.result.evaluations]
    assert phases[0] == 1
    assert phases[-1] == 2
    steps = sorted(int(path.name) for path in tmp_path.iterdir())
    for step in (steps[0], steps[-4]):
        checkpoints = Checkpoints(Storage.at(str(tmp_path / str(step))))
        resumed = trained(PHASED, checkpoint_every_s=0.0, checkpoints=checkpoints)
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
        assert resumed.result.final.losses == whole.result.final.losses
        assert resumed.result.final.exposures == whole.result.final.exposures
