"""A trial that trains in a second, and helpers to train it and read its weights."""

from functools import cache

import pytest
import torch

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import TrainedTrial, run_trial
from raycap.spec import AdamW, Exposures, ModelByWidth, NamePools, NumHeads, ProfilesByCount, TrainingSpec, TrialSpec
from raycap.storage import Storage

TINY = TrialSpec(
    profiles=ProfilesByCount(num_profiles=40, num_relations=2, names=NamePools(first=8, middle=8, last=8)),
    model=ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=1), tie_embeddings=True),
    training=TrainingSpec(
        length=Exposures(exposures=12),
        batch_size=32,
        num_evaluations=4,
        optimizer=AdamW(lr=0.01, warmup_steps=20, weight_decay=0.0),
    ),
)


def trained(spec: TrialSpec, **options: object) -> TrainedTrial:
    """Train a trial in this process; options go to `run_trial`."""
    return run_trial(spec, source_commit="test", **options)


def trained_with_a_pause(spec: TrialSpec, storage: Storage) -> TrainedTrial:
    """Train a trial that pauses after three polls of its signal, and resume it from its checkpoint in the storage."""
    checkpoints, signals = Checkpoints(storage), iter([Signal.CONTINUE] * 3)
    with pytest.raises(PausedError):
        trained(spec, checkpoints=checkpoints, poll_signal=lambda: next(signals, Signal.PAUSE))
    return trained(spec, checkpoints=checkpoints)


@cache
def trained_tiny() -> TrainedTrial:
    """Train TINY once for all tests of this process, which do not change it."""
    return trained(TINY)


def weights(trial: TrainedTrial) -> list[torch.Tensor]:
    """All weights of the trained model, as flat tensors per parameter group."""
    return list(trial.model.storage.values())
