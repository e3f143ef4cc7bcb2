"""Time of commands that train nothing: `raycap --help`, and plans of ten and ten thousand grid points.

    python tests/benchmarks/plan.py [--runs 5] [--json]

Each command is timed as a process on one core, from its start to its end; medians of several runs. CPU time is printed in
addition to wall time, because it depends less on other programs. The grid of ten thousand points varies widths, populations,
learning rates and seeds; each point is validated and planned.
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
RAYCAP = [sys.executable, "-m", "raycap"]
TEN = ("grid={model.hidden_size: [10, 12], training.seed: [0, 1, 2, 3, 4]}",)
TEN_THOUSAND = (
    f"grid={{model.hidden_size: {list(range(10, 30, 2))}, profiles.num_profiles: {list(range(500, 1500, 100))}, "
    f"training.optimizer.lr: {[round(0.01 * i, 2) for i in range(1, 11)]}, training.seed: {list(range(10))}}}",
)


def seconds(arguments: list[str], folder: str, runs: int, num_trials: int | None = None) -> tuple[float, float]:
    """Median wall and CPU time of a command. Asserts that its plan has `num_trials` trials, if given."""
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
    """Measure and print the results with their targets."""
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
    for name, row in found.items():
        print(f"{name:36} {row['seconds']:6.2f} s, CPU {row['cpu_seconds']:5.2f} s   target {row['target']:g} s")


if __name__ == "__main__":
    main()
