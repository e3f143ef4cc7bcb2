"""Questions per second of K models in one stack against the same models trained one after another.

    python tests/benchmarks/replicas.py [--device cpu|cuda] [--size demo|1M] [--replicas 8] [--batch-sizes 256 32]
                                        [--repeats 3] [--seconds 10] [--compile] [--json]

Both sides train the same trials (seeds 0 to K - 1) in one process, with one thread on a CPU, in turns; only training steps
are timed. Targets: at least 2x for 8 demo models on one core, and at least 8x for 16 models of 1M parameters on a GPU
(`--device cuda --size 1M --replicas 16 --batch-sizes 512`).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from common import PROBE_STEPS, child, machine, medians, planned, progress, set_threads, show, table

TARGETS = {"cpu": 2.0, "cuda": 8.0}


def questions_per_s(
    size: str, batch_size: int, num_steps: int, seeds: range, stacked: bool, device: str, compiled: bool
) -> float:
    """Questions per second over all trials, as one stack or one after another."""
    import torch

    from raycap.learner.replica import WorkerContext
    from raycap.learner.trial import run_trials

    overrides = (f"trial.training.length={{steps: {num_steps}}}", f"trial.training.batch_size={batch_size}")
    specs = [planned(size, f"trial.training.seed={seed}", *overrides).spec for seed in seeds]
    context = WorkerContext(device=torch.device(device))
    groups = [tuple(specs)] if stacked else [(spec,) for spec in specs]
    seconds = 0.0
    for group in groups:
        for trained in run_trials(group, source_commit="benchmark", context=context, compiled=compiled):
            seconds += trained.result.final.train_seconds
    return len(specs) * num_steps * batch_size / seconds


def both_sides(options: argparse.Namespace, batch_size: int) -> dict[str, float]:
    """One measurement of each side, in this process."""
    if options.device == "cpu":
        set_threads(1)
    steps, seeds = PROBE_STEPS[options.size], range(options.replicas)
    execution = {"device": options.device, "compiled": options.compile}
    probe = questions_per_s(options.size, batch_size, steps, range(1), False, **execution)
    steps = max(steps, round(options.seconds * probe / batch_size / options.replicas))
    stacked = questions_per_s(options.size, batch_size, steps, seeds, True, **execution)
    alone = questions_per_s(options.size, batch_size, steps, seeds, False, **execution)
    return {"stacked": stacked, "one_after_another": alone, "ratio": stacked / alone}


def main() -> None:
    """Measure each batch size in separate processes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(TARGETS), default="cpu")
    parser.add_argument("--size", choices=("demo", "1M", "5M"), default="demo")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each side trains")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(both_sides(options, options.batch_sizes[0])))
        return
    found: dict[str, Any] = {"machine": machine(), "device": options.device, "results": []}
    for batch_size in options.batch_sizes:
        names = ("device", "size", "replicas", "seconds")
        arguments = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
        arguments += ["--one", "--batch-sizes", str(batch_size), *(["--compile"] if options.compile else [])]
        runs = []
        for _ in range(options.repeats):
            runs.append(child(__file__, 1, *arguments))
            progress(f"batch {batch_size}: {runs[-1]['ratio']:.2f}x")
        found["results"].append(
            {"batch_size": batch_size, "target": TARGETS[options.device], **medians(runs), "runs": runs}
        )
    header = ("batch", f"{options.replicas} stacked, questions/s", "one after another", "ratio", "target")
    rows = [
        (r["batch_size"], r["stacked"], r["one_after_another"], f"{r['ratio']:.2f}x", f">= {r['target']:g}x")
        for r in found["results"]
    ]
    show(found, table(header, rows), as_json=options.json)


if __name__ == "__main__":
    main()
