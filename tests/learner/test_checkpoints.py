"""Trials that were stopped, killed or damaged go on where they were, bit by bit."""

import os
import pickle
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
from raycap.storage import Storage, checkpoint_path, checkpoint_steps, forget_checkpoints
from tests.support.tiny import TINY, trained, weights


def test_a_trial_resumed_from_a_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    reports = 0

    def die_at_the_third(trial_id: str, evaluation: Evaluation) -> None:
        nonlocal reports
        reports += 1
        if reports == 3:
            raise Killed

    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = trained(TINY)
    with pytest.raises(Killed):
        trained(TINY, checkpoint_every_s=0.01, report=die_at_the_third, checkpoints=checkpoints)
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


def test_a_trial_resumed_after_its_last_step_has_its_result(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    whole = trained(TINY, checkpoints=checkpoints)
    assert len(kept_steps(checkpoints)) == 2
    assert trained(TINY, checkpoints=checkpoints).result == whole.result
    forget_checkpoints(checkpoints.storage, whole.result.trial_id)
    assert kept_steps(checkpoints) == []


def test_trials_are_saved_at_evaluations_and_whenever_it_is_time(tmp_path: Path) -> None:
    class Noted(Checkpoints):
        def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
            steps.append(step)
            super().save(trial_id, step, state)

    evaluated = [evaluation.step for evaluation in trained(TINY).result.evaluations]
    steps: list[int] = []
    trained(TINY, checkpoint_every_s=1e3, checkpoints=Noted(Storage.at(f"{tmp_path}/seldom")))
    assert steps == evaluated
    steps.clear()
    trained(TINY, checkpoint_every_s=0.0, checkpoints=Noted(Storage.at(f"{tmp_path}/often")))
    assert set(steps) > set(evaluated)
    assert steps == sorted(set(steps))


def half_trained(folder: Path) -> tuple[Checkpoints, str]:
    """The checkpoints of TINY as it was asked to pause, and its id."""
    checkpoints = Checkpoints(Storage.at(str(folder)))
    looks = 0

    def signal() -> Signal:
        nonlocal looks
        looks += 1
        return Signal.PAUSE if looks == 6 else Signal.CONTINUE

    with pytest.raises(PausedError, match=r"after step \d+"):
        trained(TINY, checkpoints=checkpoints, checkpoint_every_s=0.0, poll_signal=signal)
    return checkpoints, TINY.trial_id


def test_a_trial_that_is_asked_to_pause_saves_and_goes_on_bit_equal(tmp_path: Path) -> None:
    checkpoints, _ = half_trained(tmp_path)
    whole = trained(TINY)
    assert 0 < kept_steps(checkpoints)[-1] < whole.result.num_steps
    resumed = trained(TINY, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_trial_that_is_asked_to_end_measures_where_it_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    result = trained(TINY, checkpoints=checkpoints, poll_signal=lambda: Signal.STOP).result
    assert (result.stop_reason, result.num_steps, result.final.step) == (StopReason.EARLY, 1, 1)
    assert trained(TINY, checkpoints=checkpoints).result == result  # nothing is trained beyond it


HARM: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "without its last byte": lambda content: content[:-1],
    "half of it": lambda content: content[: len(content) // 2],
    "another digest": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit of a weight": lambda content: content[:-100] + bytes([content[-100] ^ 8]) + content[-99:],
    "more than it": lambda content: content + b"more",
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.parametrize("num_harmed", [1, 2])
def test_damaged_checkpoints_are_never_loaded(tmp_path: Path, harm: Callable[[bytes], bytes], num_harmed: int) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    for step in (100, 200):
        checkpoints.save("trial", step, {"weights": torch.full((100,), float(step))})
    for step in (100, 200)[-num_harmed:]:
        path = tmp_path / checkpoint_path("trial", step)
        path.write_bytes(harm(path.read_bytes()))
    step, states = checkpoints.latest(["trial"], CPU)
    assert (step, len(states)) == ((100, 1) if num_harmed == 1 else (0, 0))
    assert all(torch.equal(state["weights"], torch.full((100,), 100.0)) for state in states)
    assert len(list(tmp_path.rglob("*.pt.damaged"))) == num_harmed
    forget_checkpoints(checkpoints.storage, "trial")
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_damaged_checkpoints_are_set_aside_for_the_ones_before(tmp_path: Path) -> None:
    checkpoints, trial_id = half_trained(tmp_path)
    path = tmp_path / checkpoint_path(trial_id, kept_steps(checkpoints)[-1])
    path.write_bytes(path.read_bytes()[:-7])
    whole, resumed = trained(TINY), trained(TINY, checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


class Bomb:
    """Unpickled, it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    checkpoints.save(TINY.trial_id, 1, {"weights": Bomb(tmp_path / "ran")})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trained(TINY, checkpoints=checkpoints)
    assert not (tmp_path / "ran").exists()


def test_an_error_in_training_tells_how_far_it_was(tmp_path: Path) -> None:
    def break_down(trial_id: str, evaluation: Evaluation) -> None:
        raise RuntimeError("a part broke")

    with pytest.raises(RuntimeError, match="a part broke") as caught:
        trained(TINY, report=break_down)
    assert caught.value.after_step == trained(TINY).result.evaluations[0].step


PHASED = TINY.model_copy(
    update={
        "questions": QuestionsByWeights(hops=(1, 2), weights=(1.0, 1.0)),
        "training": TINY.training.model_copy(
            update={
                "curriculum": (
                    Phase(weights=(0.0, 1.0), until=Steps(steps=30)),
                    Phase(weights=(1.0, 0.0), until=LossBelow(loss_below_bits=9.0)),
                ),
                "length": Steps(steps=700),
                "optimizer": ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=20),
            }
        ),
    }
)


class EveryCheckpoint(Checkpoints):
    """Keeps all checkpoints, to go on from any."""

    def save(self, trial_id: str, step: int, state: dict[str, Any]) -> None:
        Checkpoints(Storage.at(f"{self.storage.root}/{step}")).save(trial_id, step, state)


def test_a_curriculum_resumed_from_any_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    """Phases by length and by loss, an optimizer with weights of its own for evaluation, a checkpoint in every phase."""
    whole = trained(PHASED, checkpoint_every_s=0.0, checkpoints=EveryCheckpoint(Storage.at(str(tmp_path))))
    phases = [evaluation.phase for evaluation in whole.result.evaluations]
    assert phases[0] == 1
    assert phases[-1] == 2
    steps = sorted(int(path.name) for path in tmp_path.iterdir())
    for step in (steps[0], steps[3], steps[-4]):
        checkpoints = Checkpoints(Storage.at(str(tmp_path / str(step))))
        resumed = trained(PHASED, checkpoint_every_s=0.0, checkpoints=checkpoints)
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
        assert resumed.result.final.losses == whole.result.final.losses
        assert resumed.result.final.exposures == whole.result.final.exposures
