"""Bits per parameter of the demo's largest model after 100, 250 and 1,000 exposures, by optimizer.

    python tests/benchmarks/exposures.py --out FILE [--exposures 100 250 1000] [--optimizers adamw schedule_free muon]
                                         [--lrs 0.005 0.01 0.02 0.04] [--seeds 0] [--processes 1] [--set KEY=VALUE ...]
                                         [--json]

Each optimizer uses the learning rate that stores the most bits after the fewest exposures (first seed only) at all numbers
of exposures. Each number of exposures is a separate trial, because learning rate schedules end with the trial. Bits are
those of the selection `enumerate`; Allen-Zhu and Li report 1 bit per parameter after 100 exposures and 2 after 1,000
(arXiv 2404.05405, section 5). All other settings are those of specs/grid.yaml.

Each process uses one thread. A line of JSON is appended to FILE after each trial, and trials that FILE contains are not
trained again, so an interrupted run can be continued. Use a new FILE when the learner has changed. Takes about an hour on
one core, and half of that with `--processes 2` on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from common import child, enumerate_bits, machine, planned, progress, set_threads, show, table

OPTIMIZERS = {
    "adamw": "kind: adamw, lr: {lr}, betas: [0.8, 0.99]",
    "schedule_free": "kind: schedule_free, lr: {lr}, betas: [0.9, 0.99]",
    "muon": "kind: muon, lr: {lr}, muon_lr: {lr}, momentum: 0.95, betas: [0.8, 0.99]",
}
"""Optimizers as YAML. Updates of Muon are scaled to the size of AdamW's, so both of its rates have the same value."""
SHARED = "weight_decay: 0.0, warmup_steps: {warmup_steps}, grad_clip: {grad_clip}"
TARGETS = {100: 1.0, 1000: 2.0}


class Run(NamedTuple):
    """A trial of the table, or of the grid over learning rates."""

    optimizer: str
    lr: float
    exposures: float
    seed: int
    overrides: tuple[str, ...] = ()


def trial(run: Run) -> dict[str, Any]:
    """Train a trial in this process; returns bits per parameter and seconds. A diverged trial counts as 0 bits."""
    set_threads(1)
    from raycap.learner.evaluation import DivergedError
    from raycap.learner.trial import run_trial

    demo = planned("demo").spec.training.optimizer
    shared = SHARED.format(warmup_steps=demo.warmup_steps, grad_clip=demo.grad_clip)
    plan = planned(
        "demo",
        f"trial.training.length={{exposures: {run.exposures}}}",
        f"trial.training.seed={run.seed}",
        f"trial.training.optimizer={{{OPTIMIZERS[run.optimizer].format(lr=run.lr)}, {shared}}}",
        *run.overrides,
    )
    try:
        result = run_trial(plan.spec, source_commit="benchmark").result
    except DivergedError as error:
        return {**run._asdict(), "bits_per_param": 0.0, "seconds": None, "diverged": str(error)}
    bits = enumerate_bits(plan.spec, result.populations, result.final.losses)
    return {
        **run._asdict(),
        "bits_per_param": bits / result.parameters.total,
        "parameters": result.parameters.total,
        "steps": result.num_steps,
        "seconds": result.final.train_seconds,
    }


class Ledger:
    """Finished trials in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[Run, dict[str, Any]]()
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.found[Run(*(row[field] for field in Run._fields[:-1]), tuple(row["overrides"]))] = row

    def train(self, runs: Iterable[Run], processes: int) -> None:
        """Train the runs that are not in the file, `processes` at a time."""
        missing = [run for run in dict.fromkeys(runs) if run not in self.found]
        with ThreadPoolExecutor(processes) as pool:
            futures = {pool.submit(child, __file__, 1, "--one", json.dumps(run)): run for run in missing}
            for number, done in enumerate(as_completed(futures), start=1):
                run, row = futures[done], done.result()
                self.found[run] = row
                with self.path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                progress(
                    f"{number}/{len(missing)}: {run.optimizer}, lr {run.lr:g}, {run.exposures:g} exposures, seed "
                    f"{run.seed}: {row['bits_per_param']:.3f} bits per parameter"
                )

    def bits(self, run: Run) -> float:
        """Bits per parameter of a finished trial."""
        return self.found[run]["bits_per_param"]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Choose a learning rate for each optimizer, train the trials of the table, and average over seeds."""
    ledger, overrides = Ledger(options.out), tuple(options.set)
    first, seed = min(options.exposures), options.seeds[0]
    grid = [Run(optimizer, lr, first, seed, overrides) for optimizer in options.optimizers for lr in options.lrs]
    ledger.train(grid, options.processes)
    best = {
        optimizer: max((run for run in grid if run.optimizer == optimizer), key=ledger.bits)
        for optimizer in options.optimizers
    }
    of_table = {
        (optimizer, exposures): [run._replace(exposures=exposures, seed=seed) for seed in options.seeds]
        for optimizer, run in best.items()
        for exposures in options.exposures
    }
    ledger.train((run for runs in of_table.values() for run in runs), options.processes)
    return [
        {
            "optimizer": optimizer,
            "lr": best[optimizer].lr,
            "at_the_edge": len(options.lrs) > 1 and best[optimizer].lr in (min(options.lrs), max(options.lrs)),
            "exposures": exposures,
            "bits_per_param": statistics.mean(map(ledger.bits, runs)),
            "seeds": len(runs),
            "seconds": statistics.mean(ledger.found[run]["seconds"] or 0.0 for run in runs),
        }
        for (optimizer, exposures), runs in of_table.items()
    ]


def described(found: dict[str, Any], exposures: list[float]) -> str:
    """Table with one row per optimizer and one column per number of exposures."""
    rows: dict[str, list[object]] = {}
    for result in found["results"]:
        edge = " (edge of the grid)" if result["at_the_edge"] else ""
        row = rows.setdefault(result["optimizer"], [result["optimizer"], f"{result['lr']:g}{edge}"])
        row.append(f"{result['bits_per_param']:.2f} ({result['seconds']:.0f} s)")
    targets = [f"{TARGETS[e]:g}" if e in TARGETS else "" for e in exposures]
    header = ("optimizer", "learning rate", *(f"{e:g} exposures" for e in exposures))
    return table(header, [*rows.values(), ("Allen-Zhu and Li", "", *targets)])


def main() -> None:
    """Train the missing trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of finished trials (required)")
    parser.add_argument("--exposures", nargs="+", type=float, default=[100.0, 250.0, 1000.0])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--lrs", nargs="+", type=float, default=[0.005, 0.01, 0.02, 0.04])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--processes", type=int, default=1, help="number of trials that train at the same time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for all trials")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        optimizer, lr, exposures, seed, overrides = json.loads(options.one)
        print(json.dumps(trial(Run(optimizer, lr, exposures, seed, tuple(overrides)))))
        return
    if options.out is None:
        parser.error("--out is required")
    found = {"machine": machine(), "results": measure(options)}
    show(found, described(found, options.exposures), as_json=options.json)


if __name__ == "__main__":
    main()
