"""Measurement of the duration of training steps on this machine, by training trials for a moment."""

import time

import torch

from raycap.learner.evaluation import DivergedError
from raycap.learner.replica import WorkerContext
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import run_trials
from raycap.spec import EvaluationPlaces, TrialSpec
from raycap.storage import Storage

TIMING_TIMEOUT_S = 0.7
"""Training time before the measurement ends; at least two pauses take place."""


def seconds_per_step(
    specs: tuple[TrialSpec, ...], storage: Storage, *, threads: int = 1, on_gpu: bool = False
) -> float | None:
    """Return the seconds per training step of resolved trials as one stack, on CPU threads or the GPU of this machine.

    Returns None if the trials diverge before a time is measured. The data of the trials are generated; nothing is stored.
    """
    torch.set_num_threads(threads)
    # For a single thread, measure CPU time, which excludes other processes: their load now is not that of a long sweep.
    clock = time.perf_counter if on_gpu or threads > 1 else time.process_time
    polled_at: list[float] = []

    def signal() -> Signal:
        """Record the time of a poll. The first poll follows the first step, which is slow; intervals then grow."""
        polled_at.append(clock())
        return Signal.PAUSE if polled_at[-1] - polled_at[0] >= TIMING_TIMEOUT_S else Signal.CONTINUE

    once = {"num_evaluations": 1, "evaluate_at": EvaluationPlaces.DOUBLINGS}
    specs = tuple(spec.model_copy(update={"training": spec.training.model_copy(update=once)}) for spec in specs)
    context = WorkerContext(device=torch.device("cuda" if on_gpu else "cpu"))
    try:
        outcomes = run_trials(specs, source_commit="", storage=storage, poll_signal=signal, context=context)
    except PausedError as paused:
        return (polled_at[-1] - polled_at[0]) / (paused.step - 1)
    except DivergedError:
        return None
    shares = [
        outcome.result.final.train_seconds / outcome.result.num_steps
        for outcome in outcomes
        if not isinstance(outcome, DivergedError)
    ]
    return len(specs) * sum(shares) / len(shares) if shares else None
