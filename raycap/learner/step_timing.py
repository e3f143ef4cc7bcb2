"""How long a step takes here: trials begin as they always do, and are broken off after a moment."""

import time

import torch

from raycap.learner.evaluation import DivergedError
from raycap.learner.replica import Place
from raycap.learner.signals import PausedError, Wish
from raycap.learner.trial import run_trials
from raycap.spec import TrialSpec
from raycap.storage import Storage

PATIENCE_S = 0.7
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

    def wish() -> Wish:
        """Asked after the first step, which is slow, and then at lengthening intervals."""
        looks.append(clock())
        return Wish.PAUSE if looks[-1] - looks[0] >= PATIENCE_S else Wish.GO_ON

    once = {"num_evaluations": 1}
    specs = tuple(spec.model_copy(update={"training": spec.training.model_copy(update=once)}) for spec in specs)
    place = Place(device=torch.device("cuda" if on_gpu else "cpu"))
    try:
        outcomes = run_trials(specs, source_commit="", storage=storage, wish=wish, place=place)
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
