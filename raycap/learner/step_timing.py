"""How long a step takes here: trials begin as they always do, and are broken off after a moment."""

import time

import torch

from raycap.learner.evaluation import DivergedError
from raycap.learner.replica import WorkerContext
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import run_trials
from raycap.spec import TrialSpec
from raycap.storage import Storage

TIMING_TIMEOUT_S = 0.7
"""So long is trained, and at least a few steps."""


def seconds_per_step(
    specs: tuple[TrialSpec, ...], storage: Storage, *, threads: int = 1, on_gpu: bool = False
) -> float | None:
    """Seconds that one step of resolved trials takes as one stack, on so many threads of this machine or on its GPU.

    None where they diverge before anything is measured. Their data are made; nothing is stored.
    """
    torch.set_num_threads(threads)
    # A lone thread's own time: whoever else uses the machine just now will not for hours.
    clock = time.perf_counter if on_gpu or threads > 1 else time.process_time
    looks: list[float] = []

    def signal() -> Signal:
        """Asked after the first step, which is slow, and then at lengthening intervals."""
        looks.append(clock())
        return Signal.PAUSE if looks[-1] - looks[0] >= TIMING_TIMEOUT_S else Signal.CONTINUE

    once = {"num_evaluations": 1}
    specs = tuple(spec.model_copy(update={"training": spec.training.model_copy(update=once)}) for spec in specs)
    context = WorkerContext(device=torch.device("cuda" if on_gpu else "cpu"))
    try:
        outcomes = run_trials(specs, source_commit="", storage=storage, poll_signal=signal, context=context)
    except PausedError as paused:
        return (looks[-1] - looks[0]) / (vars(paused)["after_step"] - 1)
    except DivergedError:
        return None
    shares = [
        outcome.result.final.train_seconds / outcome.result.num_steps
        for outcome in outcomes
        if not isinstance(outcome, DivergedError)
    ]
    return len(specs) * sum(shares) / len(shares) if shares else None
