"""Overhead per trial and efficiency of a sweep of short trials on two slots.

    python tests/benchmarks/overhead.py [--train-seconds 30] [--trials 8] [--steps N] [--new-workers] [--processes]
        [--json]

The overhead per trial is (wall x slots - sum of train_seconds) / trials, the efficiency is sum of train_seconds /
(wall x slots). The wall time is that of the whole command: the start of Ray, all trials, the analysis and the end of Ray.
Without --steps, a sweep of one trial per slot first determines how many steps take --train-seconds. With --new-workers, the
sweep runs a second time with new processes for every trial (`execution.reuse_workers: false`). A load average well
above the number of slots means that other programs used the machine; compare CPU seconds then, not wall time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

SLOTS = 2
CALIBRATION_STEPS = 400
SAMPLE_SECONDS = 0.5
TARGET_OVERHEAD_SECONDS, TARGET_EFFICIENCY = 7.0, 0.85

SPEC = """\
# What does a trial cost beyond its training?
name: overhead
trial:
  profiles: {{num_profiles: 1000, num_relations: 4, names: {{first: 20, middle: 20, last: 40}}}}
  model: {{num_layers: 2, hidden_size: 12, tie_embeddings: true, heads: {{num_heads: 1}}}}
  training: {{length: {{steps: {steps}}}, batch_size: 256, num_evaluations: 3, optimizer: {{lr: 0.02, warmup_steps: 50}}}}
grid:
  training.seed: {seeds}
execution: {{max_concurrent_trials: {slots}, reuse_workers: {reuse}}}
"""


class ProcessTree:
    """CPU seconds of a process and its descendants by title, sampled in a thread until `stop`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, float], tuple[str, float]] = {}
        self._parents: set[int] = {root}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, tuple[int, float]]:
        """Number of processes and their CPU seconds by title."""
        self._over.set()
        self._thread.join()
        by_title: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        for title, seconds in self._seen.values():
            number, before = by_title[title]
            by_title[title] = (number + 1, before + seconds)
        return dict(by_title)

    def _follow(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        # Processes that were seen once stay in the tree: the raylet outlives the command that started it by a moment.
        for process in psutil.process_iter():
            try:
                if process.pid != self._root and process.ppid() not in self._parents:
                    continue
                self._parents.add(process.pid)
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                self._seen[key] = (_title(process), times.user + times.system)
            except psutil.Error:
                continue


def _title(process: psutil.Process) -> str:
    """Short title of a process: the actor or task of a Ray worker, else the script, module or executable."""
    command = process.cmdline()
    if not command:
        return process.name()
    if command[0].startswith("ray::"):
        return " ".join(command).split("(")[0].strip()
    scripts = [Path(part).name for part in command[1:] if part.endswith(".py")]
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return scripts[0] if scripts else module or Path(command[0]).name


def sweep(
    folder: Path, steps: int, trials: int, *, reuse: bool = True
) -> tuple[float, list[float], dict[str, tuple[int, float]]]:
    """Run a sweep in a folder; returns wall seconds of the command, training seconds by trial, CPU seconds by process."""
    folder.mkdir()
    spec = SPEC.format(steps=steps, seeds=list(range(trials)), slots=SLOTS, reuse=str(reuse).lower())
    (folder / "spec.yaml").write_text(spec)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    began = time.perf_counter()
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "raycap.sweep", "spec.yaml"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        tree = ProcessTree(process.pid)
        code = process.wait()
    wall, cpu = time.perf_counter() - began, tree.stop()
    results = [json.loads(path.read_text()) for path in folder.glob("runs/trials/*/result.json")]
    if code or len(results) != trials:
        raise SystemExit(f"the sweep ended with {code}:\n{(folder / 'log').read_text()}")
    return wall, [result["evaluations"][-1]["train_seconds"] for result in results], cpu


def measure(train_seconds: float, trials: int, steps: int | None, *, reuse: bool = True) -> dict[str, Any]:
    """Run the sweep. If `steps` is None, a short sweep first determines how many steps take `train_seconds`."""
    with tempfile.TemporaryDirectory(prefix="raycap-overhead-") as folder:
        if steps is None:
            _, seconds, _ = sweep(Path(folder) / "calibration", CALIBRATION_STEPS, SLOTS)
            steps = math.ceil(CALIBRATION_STEPS * train_seconds * SLOTS / sum(seconds))
        wall, seconds, cpu = sweep(Path(folder) / "sweep", steps, trials, reuse=reuse)
        run = json.loads((Path(folder) / "sweep/runs/overhead/run.json").read_text())
    trained = sum(seconds)
    return {
        "trials": trials,
        "slots": run["slots"],
        "steps": steps,
        "wall_seconds": wall,
        "wall_seconds_until_analysis": run["wall_seconds"],
        "train_seconds_per_trial": trained / trials,
        "overhead_seconds_per_trial": (wall * run["slots"] - trained) / trials,
        "efficiency": trained / (wall * run["slots"]),
        "cpu_seconds": sum(seconds for _, seconds in cpu.values()),
        "load_average": os.getloadavg()[0],
        "processes": {title: {"number": number, "cpu_seconds": seconds} for title, (number, seconds) in cpu.items()},
    }


def main() -> None:
    """Measure and print the results with their targets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train-seconds", type=float, default=30.0, help="about how long each trial trains")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, help="steps of every trial, instead of --train-seconds")
    parser.add_argument(
        "--new-workers", action="store_true", help="also run the sweep with new processes for every trial"
    )
    parser.add_argument("--processes", action="store_true", help="also print CPU seconds by process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.train_seconds, options.trials, options.steps)
    sweeps = {"workers are reused": found}
    if options.new_workers:
        sweeps["new workers for every trial"] = measure(0.0, options.trials, found["steps"], reuse=False)
    if options.json:
        print(json.dumps(sweeps, indent=2))
        return
    for title, measured in sweeps.items():
        print(title)
        show(measured, processes=options.processes)


def show(found: dict[str, Any], *, processes: bool) -> None:
    """Print the measurements of one sweep with their targets."""
    by_process = found.pop("processes")
    targets = {
        "overhead_seconds_per_trial": f"<= {TARGET_OVERHEAD_SECONDS:g}",
        # The target holds for trials of 30 s; shorter trials spend a larger share on starting and ending the sweep.
        "efficiency": f">= {TARGET_EFFICIENCY:g} with trials of 30 s",
    }
    for name, value in found.items():
        print(f"{name:42} {value:>10,.2f}  {targets.get(name, '')}".rstrip())
    if processes:
        for title, numbers in sorted(by_process.items(), key=lambda item: -item[1]["cpu_seconds"]):
            print(f"  {numbers['cpu_seconds']:8.1f} s CPU in {numbers['number']:3} x {title}")


if __name__ == "__main__":
    main()
