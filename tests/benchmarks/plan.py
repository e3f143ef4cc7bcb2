"""How long the command takes before anything runs: help, and plans of ten and ten thousand points.

    python tests/benchmarks/plan.py [--runs 5] [--json]

Each is timed as a process of its own on one core, from its start to its end; medians of several runs. Beside the wall
time stands the processor's, which tells on a machine that others use too. The grid of ten thousand has models,
populations, rates and seeds, every point of it validated and planned.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = Path(__file__).resolve().parents[2] / "sweeps" / "specs" / "grid.yaml"
RAYCAP = [sys.executable, "-c", "from raycap.cli import main; main()"]
TEN = ("grid={model.hidden_size: [10, 12], training.seed: [0, 1, 2, 3, 4]}",)
TEN_THOUSAND = (
    f"grid={{model.hidden_size: {list(range(10, 30, 2))}, profiles.num_profiles: {list(range(500, 1500, 100))}, "
    f"training.optimizer.lr: {[round(0.01 * i, 2) for i in range(1, 11)]}, training.seed: {list(range(10))}}}",
)


def seconds(arguments: list[str], folder: str, runs: int, num_trials: int | None = None) -> tuple[float, float]:
    """Median wall and CPU time of the command; `num_trials` is what a plan must have, to be sure that it is one."""
    times, cpu_times = [], []
    for _ in range(runs):
        began, before = time.perf_counter(), os.times()
        done = subprocess.run([*RAYCAP, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
        after = os.times()
        cpu_times.append(sum(after[2:4]) - sum(before[2:4]))
        if num_trials and "--json" in arguments:
            assert len(json.loads(done.stdout)["trials"]) == num_trials
        elif num_trials:
            assert f"{num_trials} trials" in done.stdout
    return statistics.median(times), statistics.median(cpu_times)


def main() -> None:
    """Measure and print beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    plan = ["plan", str(GRID)]
    with tempfile.TemporaryDirectory(prefix="raycap-plan-") as folder:
        cases = {
            "raycap --help": (["--help"], None, 1.0),
            "raycap plan, 10 points": ([*plan, *TEN], 10, 2.0),
            "raycap plan, 10,000 points": ([*plan, *TEN_THOUSAND], 10_000, 5.0),
            "raycap plan --json, 10,000 points": ([*plan, *TEN_THOUSAND, "--json"], 10_000, 5.0),
        }
        found = {}
        for name, (arguments, num_trials, target) in cases.items():
            wall, cpu = seconds(arguments, folder, options.runs, num_trials)
            found[name] = {"seconds": wall, "cpu_seconds": cpu, "target": target}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, about in found.items():
        print(f"{name:36} {about['seconds']:6.2f} s, CPU {about['cpu_seconds']:5.2f} s   target {about['target']:g} s")


if __name__ == "__main__":
    main()
