"""Correctness, speed and a small scaling law of the learner on one GPU, within a budget of seconds.

    python tests/benchmarks/gpu.py --device cuda --out gpu-results --budget 420

The learner runs without ray, mlflow and datasets, so only torch, transformers, tokenizers, numpy, scipy, pandas, pydantic,
ruamel.yaml and names are needed. Parts, run in the order given to `--parts`:

- check: compares trials on the GPU with the CPU: fp32 losses within 1e-4, bf16 within 2e-3 of fp32, three replicas
  within 1e-4 of each alone, compiled and graphed within 1e-4 of eager, Muon, fp16 with scaling, resuming bit-equal, and
  training steps between two pauses that never synchronise with the device.
- profile: kernel launches per step, the device's busy share, milliseconds on the host by stage, and the kernels that take
  longest, at 1M parameters with batches of 256, 1024 and 4096 questions and at 10M, eager and as CUDA graphs.
- speed: questions and tokens per second, and the share of the device's rate, at 1M, 10M and 100M parameters in bf16,
  eager, as CUDA graphs (`execution.cuda_graph`), compiled, and both. The rate is that of a bf16 product of
  8192 x 8192 matrices in the same process. FLOPs are counted as in flops.py, `needed`. Targets: 10, 30 and 50 %.
- replicas: 16 models of 1M parameters in one stack against one alone, at batches of 256 and 1024. Target: 5x at 256.
- law: 10,000 people, three widths, two seeds stacked, 100 exposures: bits per parameter under each reading of the names
  and the exponent of learned bits over parameters with a bootstrap interval.

Each measurement is written to `--out`/gpu.json as soon as it is made. A measurement that fails is recorded with its
error and the next one starts; one that would start after the budget is spent is recorded as skipped. Trials of the law
stop early when the budget is spent, are evaluated, and record `stop`. `--scale` shrinks models, people and matrix products
to try the script on a CPU:
`--device cpu --scale 0.02 --seconds 1 --exposures 2`.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import bits_by_selection, progress, table
from flops import flops_of

from raycap.facts.build import populations_of
from raycap.facts.order import Mix
from raycap.learner import model as llama
from raycap.learner import optim
from raycap.learner.batches import Batch
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.device_batches import SortedRows
from raycap.learner.replica import WorkerContext
from raycap.learner.signals import PausedError, Signal
from raycap.learner.training import Loss, TrainingStep, runner, train
from raycap.learner.trial import run_trials
from raycap.plan.expand import expand
from raycap.spec import ExecutionSpec, SweepSpec, TrialSpec
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep
from raycap.storage import Storage
from raycap.tokens.composer import Rows
from raycap.tokens.rows import RowSource, rows_of
from raycap.tokens.training_data import TrainingData

SIZES = {"1M": (1_000_000, 4, 16, 0.10), "10M": (10_000_000, 8, 64, 0.30), "100M": (100_000_000, 12, 64, 0.50)}
"""Parameters, layers, head size, and the target for the share of the device's rate."""
MODES = ("eager", "graph", "compiled", "compiled, graph")
NUM_REPLICAS = 16
REPLICA_BATCHES = (256, 1024)
PROFILED = (("1M", 256), ("1M", 1024), ("1M", 4096), ("10M", 4096))
PRODUCT = 8192
WARM_UP_STEPS, PROFILED_STEPS = 5, 5
NUM_LISTED_KERNELS = 14
LAW_PEOPLE, LAW_WIDTHS, LAW_LAYERS, LAW_SEEDS, LAW_BATCH = 10_000, (32, 48, 64), 4, 2, 2048
LAW_OPTIMIZER = {"lr": 0.01, "warmup_steps": 300, "weight_decay": 0.01, "grad_clip": 0.5}
LAW_RESAMPLES = 4000
EVALUATION_S = 8
"""Seconds of a cell's share of the budget that are reserved for its evaluation."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Options of the command line that all measurements read."""

    device: torch.device
    scale: float
    seconds: float
    exposures: float
    deadline: float

    @property
    def left(self) -> float:
        """Remaining seconds of the budget."""
        return self.deadline - time.monotonic()


def resolved(tree: dict[str, Any]) -> TrialSpec:
    """Resolve the spec of one trial, given as a dictionary."""
    spec = TrialSpec.model_validate_json(json.dumps(tree))
    (planned,) = expand(
        LoadedSweep(
            SweepSpec(name="gpu", execution=ExecutionSpec(gpus_per_worker=1)), [GridPoint({}, spec, "gpu.py")], "", ""
        )
    )
    return planned.spec


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work that was submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# check


def small_trial(
    kind: str = "word", precision: str = "fp32", seed: int = 0, steps: int = 30, optimizer: dict[str, Any] | None = None
) -> TrialSpec:
    """A trial of 500 people that trains in seconds on a CPU."""
    return resolved(
        {
            "profiles": {"num_profiles": 500, "num_relations": 4, "names": {"first": 20, "middle": 20, "last": 40}},
            "tokenizer": {"kind": "word"} if kind == "word" else {"kind": "bpe", "vocab_size": 1000},
            "model": {"num_layers": 2, "tie_embeddings": True, "heads": {"head_size": 16}, "hidden_size": 64},
            "training": {
                "length": {"steps": steps},
                "batch_size": 256,
                "precision": precision,
                "num_evaluations": 1,
                "seed": seed,
                "optimizer": optimizer or {"lr": 0.003, "warmup_steps": 10},
            },
        }
    )


def mean_losses(specs: list[TrialSpec], device: torch.device, **options: Any) -> list[float]:
    """Train trials as one stack on a device; returns the mean loss of each in bits."""
    outcomes = run_trials(tuple(specs), source_commit="benchmark", context=WorkerContext(device=device), **options)
    tables = [outcome.result.final.losses for outcome in outcomes]  # type: ignore[union-attr]
    return [sum(row.sum_bits for row in t.rows) / sum(row.num_evaluated for row in t.rows) for t in tables]


def compared(found: list[float], expected: list[float], tolerance: float) -> dict[str, Any]:
    """Largest relative difference between two lists of losses, and whether it is within the tolerance."""
    difference = max(abs(x - y) / abs(y) for x, y in zip(found, expected, strict=True))
    return {"ok": difference <= tolerance, "relative_difference": difference, "tolerance": tolerance, "bits": found}


def resumed(device: torch.device, *, graphed: bool = False) -> dict[str, Any]:
    """Compare a trial that is paused and resumed from its checkpoint with the same trial uninterrupted."""
    spec = small_trial(steps=400)
    (whole,) = mean_losses([spec], device, graphed=graphed)
    with TemporaryDirectory() as folder:
        checkpoints, polls = Checkpoints(Storage.at(folder)), iter([Signal.CONTINUE])
        try:
            mean_losses(
                [spec],
                device,
                checkpoints=checkpoints,
                poll_signal=lambda: next(polls, Signal.PAUSE),
                graphed=graphed,
            )
            paused = None
        except PausedError as error:
            paused = str(error)
        (again,) = mean_losses([spec], device, checkpoints=checkpoints, graphed=graphed)
    return {"ok": paused is not None and again == whole, "bits": [again, whole], "paused": paused}


def unsynchronised(options: Options, *, graphed: bool = False) -> dict[str, Any]:
    """Run twenty steps between two pauses in the CUDA mode in which a synchronisation raises an error."""
    setup = Setup.of([speed_trial("1M", 256, 0, options.scale)], options.device, graphed=graphed)
    setup.warm_up()
    if options.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(20):
            setup.bare_step(number)
    finally:
        if options.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"ok": True, "steps": 20}


def check(options: Options) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name and the function of each check."""
    gpu = options.device
    muon = {"kind": "muon", "lr": 0.003, "muon_lr": 0.01, "warmup_steps": 10}

    @cache
    def reference(kind: str) -> list[float]:
        return mean_losses([small_trial(kind)], CPU)

    def alone(precision: str = "fp32") -> list[float]:
        return [mean_losses([small_trial(precision=precision, seed=seed)], gpu)[0] for seed in range(3)]

    yield "no synchronisation between pauses", lambda: unsynchronised(options)
    yield "no synchronisation between pauses, graph", lambda: unsynchronised(options, graphed=True)
    for kind in ("word", "bpe"):
        yield (
            f"{kind}, fp32 against CPU",
            lambda kind=kind: compared(mean_losses([small_trial(kind)], gpu), reference(kind), 1e-4),
        )
        yield (
            f"{kind}, bf16 against fp32",
            lambda kind=kind: compared(mean_losses([small_trial(kind, "bf16")], gpu), reference(kind), 2e-3),
        )
    yield (
        "fp16 with scaling against fp32",
        lambda: compared(mean_losses([small_trial(precision="fp16")], gpu), reference("word"), 2e-3),
    )
    yield (
        "three replicas against each alone, fp32",
        lambda: compared(mean_losses([small_trial(seed=seed) for seed in range(3)], gpu), alone(), 1e-4),
    )
    yield (
        "Muon, fp32 against CPU",
        lambda: compared(
            mean_losses([small_trial(optimizer=muon)], gpu), mean_losses([small_trial(optimizer=muon)], CPU), 1e-3
        ),
    )
    yield (
        "the same trial twice, fp32",
        lambda: {"ok": (pair := [mean_losses([small_trial()], gpu)[0] for _ in range(2)])[0] == pair[1], "bits": pair},
    )
    yield "resumed, fp32", lambda: resumed(gpu)
    yield "resumed, fp32, graph", lambda: resumed(gpu, graphed=True)
    yield (
        "graph, fp32 against CPU",
        lambda: compared(mean_losses([small_trial()], gpu, graphed=True), reference("word"), 1e-4),
    )
    yield (
        "graph, bf16 against eager bf16",
        lambda: compared(
            mean_losses([small_trial("bpe", "bf16")], gpu, graphed=True),
            mean_losses([small_trial("bpe", "bf16")], gpu),
            2e-3,
        ),
    )
    yield (
        "three replicas, graph, against each alone, fp32",
        lambda: compared(mean_losses([small_trial(seed=seed) for seed in range(3)], gpu, graphed=True), alone(), 1e-4),
    )
    yield (
        "Muon, graph, fp32 against CPU",
        lambda: compared(
            mean_losses([small_trial(optimizer=muon)], gpu, graphed=True),
            mean_losses([small_trial(optimizer=muon)], CPU),
            1e-3,
        ),
    )
    yield (
        "compiled fp32 against eager",
        lambda: compared(mean_losses([small_trial()], gpu, compiled=True), reference("word"), 1e-4),
    )
    yield (
        "compiled bf16 against eager bf16",
        lambda: compared(
            mean_losses([small_trial(precision="bf16")], gpu, compiled=True),
            mean_losses([small_trial(precision="bf16")], gpu),
            2e-3,
        ),
    )
    yield (
        "two replicas, compiled fp32 against eager",
        lambda: compared(
            mean_losses([small_trial(seed=seed) for seed in range(2)], gpu, compiled=True), alone()[:2], 1e-4
        ),
    )


# speed, replicas, profile


def speed_trial(size: str, batch_size: int, seed: int, scale: float) -> TrialSpec:
    """The resolved spec of a one-hop trial with four relations, all census names and a BPE of 3000."""
    num_params, num_layers, head_size, _ = SIZES[size]
    return resolved(
        {
            "profiles": {"num_profiles": max(200, round(10_000 * scale)), "num_relations": 4},
            "tokenizer": {"kind": "bpe", "vocab_size": max(300, round(3000 * scale))},
            "model": {
                "num_layers": num_layers,
                "num_params": round(num_params * scale),
                "heads": {"head_size": head_size if scale == 1 else 2},
            },
            "training": {
                "batch_size": max(32, round(batch_size * scale)),
                "precision": "bf16",
                "num_evaluations": 1,
                "seed": seed,
                "length": {"steps": 10**6},
                "optimizer": {"lr": 1e-3, "warmup_steps": 100},
            },
        }
    )


@cache
def data_of(key: str) -> TrainingData:
    """Corpus and tokens of the trial spec in JSON; cached, so that trials with the same data build them once."""
    spec = TrialSpec.model_validate_json(key)
    return TrainingData.of(spec, populations_of(spec))


def reading_of(spec: TrialSpec) -> TrainingData:
    """Corpus and tokens of a trial; trials that differ only in model, seed or batch size share tokenizer and population."""
    tree = json.loads(spec.model_dump_json())
    tree["model"] |= {"hidden_size": 64, "num_layers": 1}
    tree["training"]["seed"] = 0
    tree["training"]["batch_size"] = 64
    shared = data_of(json.dumps(tree, sort_keys=True))
    return TrainingData(spec, shared.tokenizer, shared.composers, shared.num_facts)


@dataclass
class Setup:
    """Model, optimizer and data of a stack that trains without evaluations and checkpoints."""

    specs: list[TrialSpec]
    datasets: list[TrainingData]
    model: llama.Llama
    optimizer: optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    sources: tuple[RowSource, ...]
    graphed: bool

    @classmethod
    def of(
        cls, specs: list[TrialSpec], device: torch.device, *, compiled: bool = False, graphed: bool = False
    ) -> Setup:
        """Build trials of one shape as replicas of a stack on a device."""
        datasets = [reading_of(spec) for spec in specs]
        first = datasets[0]
        generators = tuple(torch.Generator().manual_seed(spec.training.seed) for spec in specs)
        model = llama.build_model(specs[0].model, first.vocab_size, generators=generators, device=device)  # type: ignore[arg-type]
        if compiled:
            model.compile_blocks()
        sources = tuple(
            RowSource(data.composers, data.order((Mix(0, data.shares()),)), 10**6, 0, 1) for data in datasets
        )
        expected = [
            spec.training.batch_size * m.measured_tokens(m.shares()) for spec, m in zip(specs, datasets, strict=True)
        ]
        return cls(
            specs,
            datasets,
            model,
            optim.build_optimizer(tuple(spec.training.optimizer for spec in specs), model, graphed=graphed),
            torch.amp.GradScaler(device.type, enabled=False),
            Loss(expected, first.corpus_weights, device),
            sources,
            graphed,
        )

    def steps(
        self, pauses_after: Callable[[int], bool], num_steps: int = 10**6, rows: Iterator[list[Rows]] | None = None
    ) -> Iterator[Any]:
        """Train, yielding the snapshots of each pause."""
        return train(
            self.training_step(num_steps),
            rows or rows_of(self.sources, 0),
            start_step=0,
            pauses_after=pauses_after,
            graphed=self.graphed,
        )

    def training_step(self, num_steps: int) -> TrainingStep:
        """Return the step of a training of `num_steps` steps."""
        return TrainingStep(
            self.model,
            self.optimizer,
            self.scaler,
            self.specs[0].training,
            self.loss,
            start_step=0,
            num_steps=num_steps,
        )

    @property
    def batch_size(self) -> int:
        """Questions per step and replica."""
        return self.specs[0].training.batch_size

    def some_rows(self, num: int) -> list[list[Rows]]:
        """Compose the rows of the first `num` steps."""
        stream = rows_of(self.sources, 0)
        return [next(stream) for _ in range(num)]

    @cached_property
    def _ready(self) -> tuple[Callable[[list[Rows]], object], list[list[Rows]]]:
        """A function that runs one step, and rows composed in advance."""
        return runner(self.training_step(10**6), graphed=self.graphed), self.some_rows(4)

    def bare_step(self, number: int = 0) -> None:
        """Run one step without a pause, on the given one of four batches of rows composed in advance."""
        run, rows = self._ready
        self.optimizer.set_rate(0, 10**6)
        run(rows[number % len(rows)])

    def warm_up(self) -> None:
        """Run every batch of rows often enough that graphs are recorded for all shapes."""
        for number in range(3 * len(self._ready[1])):
            self.bare_step(number)


def speed(
    size: str,
    batch_size: int,
    options: Options,
    *,
    compiled: bool = False,
    graphed: bool = False,
    num_replicas: int = 1,
) -> dict[str, Any]:
    """Time training steps for about `options.seconds` after a warm-up, with rows composed in advance and as it trains."""
    device, seconds = options.device, min(options.seconds, max(1.0, options.left / 3))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    specs = [speed_trial(size, batch_size, seed, options.scale) for seed in range(num_replicas)]
    began = time.perf_counter()
    setup = Setup.of(specs, device, compiled=compiled, graphed=graphed)
    built_s = time.perf_counter() - began

    def timed(rows: Iterator[list[Rows]], warm_up: int) -> tuple[float, float, int]:
        """Seconds of the warm-up, seconds of the timed steps over all replicas, and the number of timed steps."""
        clock = {"end": float("inf")}
        stream = setup.steps(
            lambda step: step == warm_up or (step > warm_up and time.perf_counter() >= clock["end"]), rows=rows
        )
        start = time.perf_counter()
        next(stream)
        clock["end"] = time.perf_counter() + seconds
        warm_s = time.perf_counter() - start
        snapshots = next(stream)
        return warm_s, snapshots[0].seconds * num_replicas, snapshots[0].step - warm_up

    ready = setup.some_rows(16)

    def endless() -> Iterator[list[Rows]]:
        while True:
            yield from ready

    # Enough to compile or record a graph for every shape that occurs.
    warm_up = 3 * len(ready) if compiled or graphed else WARM_UP_STEPS
    first_s, of_steps, num_steps = timed(endless(), warm_up)
    _, of_steps_composing, num_composing = timed(rows_of(setup.sources, 0), WARM_UP_STEPS)
    questions = num_replicas * setup.batch_size
    tokens = float(np.mean([rows.lengths.sum() for batch in ready for rows in batch[:1]])) * num_replicas
    model = specs[0].model
    shape = model.hidden_size, model.depth, setup.datasets[0].vocab_size  # type: ignore[union-attr]
    flops = flops_of(ready[0][0], *shape)
    peak = product_rate(device, max(64, round(PRODUCT * options.scale**0.5)))
    per_s = questions * num_steps / of_steps
    row = {
        "parameters": setup.model.count_parameters().total,
        "hidden_size": model.hidden_size,  # type: ignore[union-attr]
        "head_size": model.head_size,  # type: ignore[union-attr]
        "batch_size": setup.batch_size,
        "replicas": num_replicas,
        "build_s": built_s,
        "first_steps_s": first_s,
        "first_steps": warm_up,
        "steps": num_steps,
        "ms_per_step": 1e3 * of_steps / num_steps,
        "ms_per_step_composing_rows": 1e3 * of_steps_composing / num_composing,
        "questions_per_s": per_s,
        "tokens_per_s": tokens * num_steps / of_steps,
        "product_tflops": peak / 1e12,
        "utilisation": per_s * flops["needed"] / len(ready[0][0]) / peak,
        "utilisation_distinct": per_s * flops["distinct"] / len(ready[0][0]) / peak,
        "target": SIZES[size][3],
    }
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def product_rate(device: torch.device, size: int) -> float:
    """FLOP/s of the fastest bf16 product of random matrices."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16).unbind()
    times = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def profile(
    size: str, batch_size: int, options: Options, num_replicas: int = 1, *, graphed: bool = False
) -> dict[str, Any]:
    """Time of a step by stage on the host, and by kernel on the device."""
    device = options.device
    specs = [speed_trial(size, batch_size, seed, options.scale) for seed in range(num_replicas)]
    setup = Setup.of(specs, device, graphed=graphed)
    rows = setup.some_rows(PROFILED_STEPS)
    setup.warm_up()

    def ms(work: Callable[[list[Rows]], object]) -> float:
        synchronize(device)
        began = time.perf_counter()
        for batch in rows:
            work(batch)
        synchronize(device)
        return 1e3 * (time.perf_counter() - began) / len(rows)

    vocab_size = setup.model.vocab_size
    stream = rows_of(setup.sources, 100)
    host = {
        "compose_rows_ms": ms(lambda _: next(stream)),
        "build_batch_ms": ms(lambda batch: Batch.of(batch, vocab_size, device)),
        "sort_rows_ms": ms(SortedRows.of),
        "step_ms": ms(lambda _: setup.bare_step()),
    }
    synchronize(device)
    began = time.perf_counter()
    for _ in rows:
        setup.bare_step()
    host["step_host_only_ms"] = 1e3 * (time.perf_counter() - began) / len(rows)
    synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in rows:
            setup.bare_step()
        synchronize(device)
        wall = time.perf_counter() - began
    measured_on = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    kernels = [
        (event.key, event.device_time_total if device.type == "cuda" else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
        if event.device_type == measured_on
    ]
    kernels = sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])
    busy_us = sum(us for _, us, _ in kernels)
    copies = sum(count for name, _, count in kernels if "Mem" in name)
    return host | {
        "parameters": setup.model.count_parameters().total,
        "batch_size": setup.batch_size,
        "replicas": num_replicas,
        "profiled_step_ms": 1e3 * wall / len(rows),
        "device_ms": busy_us / 1e3 / len(rows),
        "busy_share_profiled": busy_us / 1e6 / wall,
        "busy_share": busy_us / 1e3 / len(rows) / host["step_ms"],
        "kernels_per_step": (sum(count for _, _, count in kernels) - copies) / len(rows),
        "copies_per_step": copies / len(rows),
        "top": [
            {"kernel": name[:110], "ms_per_step": us / 1e3 / len(rows), "calls_per_step": count / len(rows)}
            for name, us, count in kernels[:NUM_LISTED_KERNELS]
        ],
    }


# law


def law_cell(width: int, options: Options) -> list[dict[str, Any]]:
    """Bits per parameter of each seed of one width; the seeds train as one stack."""
    scale = options.scale
    specs = [
        resolved(
            {
                "profiles": {"num_profiles": max(200, round(LAW_PEOPLE * scale)), "num_relations": 4},
                "tokenizer": {"kind": "bpe", "vocab_size": max(300, round(3000 * scale))},
                "model": {
                    "num_layers": LAW_LAYERS,
                    "hidden_size": width,
                    "tie_embeddings": True,
                    "heads": {"num_heads": max(1, width // 16)},
                },
                "training": {
                    "length": {"exposures": options.exposures},
                    "batch_size": max(32, round(LAW_BATCH * scale)),
                    "precision": "bf16",
                    "num_evaluations": 1,
                    "seed": seed,
                    "optimizer": LAW_OPTIMIZER,
                },
            }
        )
        for seed in range(LAW_SEEDS)
    ]
    began = time.monotonic()
    share = options.left / (len(LAW_WIDTHS) - LAW_WIDTHS.index(width))
    outcomes = run_trials(
        tuple(specs),
        source_commit="benchmark",
        context=WorkerContext(device=options.device),
        graphed=True,
        poll_signal=lambda: Signal.STOP if time.monotonic() - began > share - EVALUATION_S else Signal.CONTINUE,
    )
    rows = []
    for spec, outcome in zip(specs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            rows.append({"width": width, "seed": spec.training.seed, "error": str(outcome)})
            continue
        result = outcome.result
        bits = bits_by_selection(result.spec, result.populations, result.final.losses)
        rows.append(
            {
                "width": width,
                "seed": spec.training.seed,
                "people": result.populations[0].num_profiles,
                "parameters": result.parameters.total,
                "non_embedding": result.parameters.non_embedding,
                "exposures": result.final.exposures,
                "steps": result.num_steps,
                "stop": str(result.stop_reason),
                "train_s": result.final.train_seconds,
                "wall_s": time.monotonic() - began,
                "learned_bits": bits,
                "bits_per_param": {name: value / result.parameters.total for name, value in bits.items()},
            }
        )
    return rows


def law_fit(rows: list[dict[str, Any]], selection: str) -> dict[str, Any]:
    """Exponent of learned bits over parameters by least squares of logarithms; bootstrap interval over cells, then seeds."""
    rows = [row for row in rows if "error" not in row and row["learned_bits"][selection] > 0]
    widths = sorted({row["width"] for row in rows})
    cells = [[row for row in rows if row["width"] == width] for width in widths]
    rng = np.random.default_rng(0)

    def slope(sample: list[dict[str, Any]]) -> float:
        x, y = (
            np.log([get(row) for row in sample])
            for get in (lambda r: r["parameters"], lambda r: r["learned_bits"][selection])
        )
        return float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else float("nan")

    slopes = []
    for _ in range(LAW_RESAMPLES):
        picked = [cells[i] for i in rng.integers(len(cells), size=len(cells))]
        slopes.append(slope([cell[j] for cell in picked for j in rng.integers(len(cell), size=len(cell))]))
    low, high = np.nanquantile(slopes, [0.025, 0.975])
    ratios = [row["bits_per_param"][selection] for row in rows]
    return {
        "points": len(rows),
        "exponent": slope(rows),
        "interval_95": [float(low), float(high)],
        "bits_per_param_range": [min(ratios), max(ratios)],
    }


class Record:
    """All measurements by name, written to `gpu.json` after each."""

    def __init__(self, folder: Path, options: Options) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.options = folder / "gpu.json", options
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, name: str, measure: Callable[[], Any], *, instant: bool = False) -> Any:
        """Measure unless the file has a result or the budget is spent; returns the value, or None without one.

        An `instant` measurement is made even after the budget is spent.
        """
        if name in self.found and "error" not in self.found[name] and "skipped" not in self.found[name]:
            return self.found[name]["value"]
        began = time.perf_counter()
        if self.options.left < 2 and not instant:
            self.found[name] = {"skipped": "the budget was spent"}
        else:
            try:
                self.found[name] = {"value": measure()}
            except Exception as error:
                lines = traceback.format_exc().splitlines()
                self.found[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}", "where": lines[-8:]}
            self.found[name]["seconds"] = round(time.perf_counter() - began, 2)
        self.path.write_text(json.dumps(self.found, indent=1))
        short = {k: v for k, v in self.found[name].items() if k != "where"}
        progress(f"{name}: {json.dumps(short)[:700]}")
        return self.found[name].get("value")


def main() -> None:
    """Run the parts and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("check", "profile", "speed", "replicas", "law")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--budget", type=float, default=900.0, help="seconds after which nothing new starts")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--exposures", type=float, default=100.0, help="exposures per fact of the law's trials")
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long each speed is measured")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    options = Options(device, given.scale, given.seconds, given.exposures, time.monotonic() + given.budget)
    record = Record(given.out, options)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    record.add(
        "machine",
        lambda: {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "scale": given.scale},
    )
    for part in given.parts:
        if part == "check":
            for check_name, measure in check(options):
                record.add(f"check: {check_name}", measure)
        if part == "profile":
            cells = [(size, batch, 1) for size, batch in PROFILED] + [("1M", 256, NUM_REPLICAS)]
            for mode in MODES[:2]:
                for size, batch, num in cells:
                    if size in given.sizes:
                        record.add(
                            f"profile: {num} of {size}, batch {batch}, {mode}",
                            lambda cell=(size, batch), num=num, graphed=mode == "graph": profile(
                                *cell, options, num, graphed=graphed
                            ),
                        )
        if part == "speed":
            for size in given.sizes:
                for mode in MODES[:2] if given.no_compile else MODES:
                    choice = {"compiled": "compiled" in mode, "graphed": "graph" in mode}
                    record.add(
                        f"speed: {size}, batch 4096, {mode}",
                        lambda size=size, choice=choice: speed(size, 4096, options, **choice),
                    )
        if part == "replicas":
            for batch_size in REPLICA_BATCHES:
                for mode in MODES[:2]:
                    one, many = (
                        record.add(
                            f"replicas: {num} of 1M, batch {batch_size}, {mode}",
                            lambda num=num, batch_size=batch_size, graphed=mode == "graph": speed(
                                "1M", batch_size, options, num_replicas=num, graphed=graphed
                            ),
                        )
                        for num in (1, NUM_REPLICAS)
                    )
                    if one and many:
                        record.add(
                            f"replicas: ratio at batch {batch_size}, {mode}",
                            lambda one=one, many=many: many["questions_per_s"] / one["questions_per_s"],
                            instant=True,
                        )
        if part == "law":
            cells = [record.add(f"law: width {w}", lambda w=w: law_cell(w, options)) for w in LAW_WIDTHS]
            points = [row for cell in cells if cell for row in cell]
            for selection in ("set", "enumerate", "independent"):
                record.add(
                    f"law: {selection}",
                    lambda points=points, selection=selection: law_fit(points, selection),
                    instant=True,
                )
    rows = [
        (key, entry.get("seconds", ""), entry.get("error", entry.get("skipped", "")))
        for key, entry in record.found.items()
    ]
    print(table(("measurement", "seconds", "not measured because"), rows))


if __name__ == "__main__":
    main()
