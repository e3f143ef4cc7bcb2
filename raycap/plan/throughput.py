"""Step times of trials on this machine: from stored results, from earlier timings, or timed now."""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
from pydantic import Field, TypeAdapter

from raycap.host.machine import cpu_limit
from raycap.plan.estimate import (
    Estimate,
    StepTime,
    estimate,
    evenly_spaced,
    interpolated_seconds,
    shape_of,
    slots_of,
    work_per_step,
)
from raycap.plan.gpu_rates import Gpu, seconds_per_step
from raycap.plan.inventory import Inventory, TrialState
from raycap.plan.stacks import StackGroup, resume_step, stacks_to_train
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import ExecutionSpec
from raycap.spec.document import SpecError
from raycap.storage import DamagedError, Storage, result_path
from raycap.storage.checksum import verify_checksum

MAX_TIMED = 6
"""Maximum number of shapes that are timed; the step times of others are interpolated."""
MAX_READ = 3
"""Maximum number of stored results that are read per shape."""
CACHE_FILE = "paces.json"
STEP_TIMES = TypeAdapter(dict[str, Annotated[float, Field(gt=0, le=1e6)]])
"""Content of the cache: seconds per step by the name of an entry."""
STORED, CACHED, TIMED, GIVEN, INTERPOLATED = (
    "results of earlier runs on this machine",
    "earlier timings on this machine",
    "steps timed now",
    "the throughput given",
    "interpolation between other trials of this sweep",
)
"""Sources of step times, for display."""


def expected_times(
    sweep: SweepRecord,
    storage: Storage,
    missing: list[PlannedTrial],
    found: Inventory,
    *,
    throughput: float | None = None,
    gpu: Gpu | None = None,
    slots: int | None = None,
    price_per_hour: float | None = None,
) -> Estimate:
    """Return the estimated cost of training the missing trials of a sweep, on this machine by default.

    May time some training steps, which takes seconds.

    Args:
        sweep: The sweep.
        storage: Its storage; results there give step times.
        missing: Trials that are left to train.
        found: Stored states of the trials.
        throughput: Tokens per second of one worker of another machine, instead of step times of this one.
        gpu: Card of another machine, whose step times are taken from its data sheet; `slots` is by default the number of
            stacks that share one card.
        slots: Stacks that train at the same time on another machine.
        price_per_hour: Price of a GPU hour if trials use GPUs, otherwise of an hour of the machine, in dollars.

    Raises:
        SpecError: Trials use GPUs, neither throughput nor card is given, and this machine has no GPU to time steps on; or
            a card is given, and trials use none.
    """
    execution = sweep.spec.execution
    groups = stacks_to_train(missing, sweep.trials, found.states, execution.replicas)
    if throughput is not None:
        tokens = [sum(trial.tokens / trial.steps for trial in group) for group in groups]
        step_times: list[StepTime | None] = [
            StepTime(tokens_per_step / throughput / execution.num_workers, GIVEN) for tokens_per_step in tokens
        ]
    elif gpu is not None:
        if not execution.gpus_per_worker:
            raise SpecError([f"--gpu {gpu}: trials use no GPU; set execution.gpus_per_worker"])
        step_times = [StepTime(seconds_per_step(group, execution, gpu), f"rates of {gpu.upper()}") for group in groups]
    else:
        step_times = _step_times(groups, sweep, storage, found)
    if slots is None and gpu is not None:
        slots = max(1, int(1 / execution.gpus_per_worker) // execution.num_workers)
    if slots is None:
        gpus = _num_gpus() if execution.gpus_per_worker else 0
        slots = slots_of(execution, max(1, int(cpu_limit())), gpus)
    start_steps = [resume_step(group, found.states) for group in groups]
    return estimate(groups, step_times, execution, slots=slots, start_steps=start_steps, price_per_hour=price_per_hour)


def _step_times(
    groups: list[StackGroup], sweep: SweepRecord, storage: Storage, found: Inventory
) -> list[StepTime | None]:
    """Return the step time of each stack from the best source available; None if no stack could be timed."""
    execution = sweep.spec.execution
    shapes = [shape_of(group[0].spec, execution) for group in groups]
    stored = _stored(sweep, storage, found, set(shapes))
    cache = StepTimeCache()
    step_times: dict[tuple[str, int], StepTime] = {}
    unknown: dict[tuple[str, int], StackGroup] = {}
    for shape, group in zip(shapes, groups, strict=True):
        key = shape, len(group)
        if shape in stored:
            step_times[key] = StepTime(len(group) * stored[shape], STORED)
        elif cached := cache.get(key):
            step_times[key] = StepTime(cached, CACHED)
        else:
            unknown.setdefault(key, group)
    keys, candidates = list(unknown), list(unknown.values())
    for index in evenly_spaced([work_per_step(group) for group in candidates], MAX_TIMED):
        if timed := _timed(candidates[index], execution, storage):
            step_times[keys[index]] = StepTime(timed, TIMED)
            cache.put(keys[index], timed)
    cache.save()
    work_of = {(shape, len(group)): work_per_step(group) for shape, group in zip(shapes, groups, strict=True)}
    points = [(work_of[key], step_time.seconds_per_step) for key, step_time in step_times.items()]
    if points:
        step_times |= {
            key: StepTime(interpolated_seconds(work_of[key], points), INTERPOLATED)
            for key in keys
            if key not in step_times
        }
    return [step_times.get((shape, len(group))) for shape, group in zip(shapes, groups, strict=True)]


def _stored(sweep: SweepRecord, storage: Storage, found: Inventory, shapes: set[str]) -> dict[str, float]:
    """Return the seconds per step of one trial, by shape, from results that were trained on this machine."""
    from raycap.analysis.checks import UnreadableResult  # imports pandas
    from raycap.analysis.stored import read_result

    times: dict[str, list[float]] = defaultdict(list)
    for trial in sweep.trials:
        shape = shape_of(trial.spec, sweep.spec.execution)
        finished = found.states[trial.trial_id].state is TrialState.FINISHED
        if not finished or shape not in shapes or len(times[shape]) == MAX_READ:
            continue
        with suppress(OSError, DamagedError, UnreadableResult):  # `raycap report` names results that cannot be read
            result = read_result(verify_checksum(storage.read(result_path(trial.trial_id))))
            if result.provenance.host == platform.node() and result.final.train_seconds > 0:
                times[shape].append(result.final.train_seconds / result.num_steps)
    return {shape: median(seconds) for shape, seconds in times.items() if seconds}


def _timed(group: StackGroup, execution: ExecutionSpec, storage: Storage) -> float | None:
    """Time training steps of a stack with one worker's share of the batch; returns seconds per step."""
    from raycap.learner import step_timing

    specs = []
    for trial in group:
        share = -(-trial.spec.training.batch_size // execution.num_workers)
        training = trial.spec.training.model_copy(update={"batch_size": share})
        specs.append(trial.spec.model_copy(update={"training": training}))
    if execution.gpus_per_worker and not _num_gpus():
        raise SpecError(
            ["--estimate: trials use GPUs and this machine has none; give --gpu (a card) or --throughput (tokens/s)"]
        )
    threads = max(1, int(execution.cpus_per_worker))
    return step_timing.seconds_per_step(tuple(specs), storage, threads=threads, on_gpu=execution.gpus_per_worker > 0)


def _num_gpus() -> int:
    from raycap.learner.hardware import gpus

    return len(gpus())


class StepTimeCache:
    """Step times measured on this machine, in a file in the user's cache folder. Errors of the file are ignored."""

    def __init__(self) -> None:
        folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self._storage = Storage.at(f"{folder}/raycap")
        self._seconds: dict[str, float] = {}
        self._changed = False
        with suppress(OSError, ValueError):
            self._seconds = STEP_TIMES.validate_json(self._storage.read(CACHE_FILE))

    def get(self, key: Sequence[Any]) -> float | None:
        """Return the cached seconds per step of a key; None if there is no entry."""
        return self._seconds.get(self._name(key))

    def put(self, key: Sequence[Any], seconds: float) -> None:
        """Add an entry."""
        self._seconds[self._name(key)] = seconds
        self._changed = True

    def save(self) -> None:
        """Write the file if there are new entries."""
        if self._changed:
            with suppress(OSError):
                self._storage.write(CACHE_FILE, json.dumps(self._seconds, indent=0))

    @staticmethod
    def _name(key: Sequence[Any]) -> str:
        """Return the name of an entry: a hash of the key, the machine, and the versions of raycap and torch."""
        versions = [importlib.metadata.version(name) for name in ("raycap", "torch")]
        machine = [platform.node(), platform.machine(), psutil.cpu_count(), psutil.virtual_memory().total]
        return hashlib.sha256(json.dumps([*machine, *versions, *key]).encode()).hexdigest()[:16]
