"""A sweep of many short trials: number of results, time per trial, and growth of memory, open files and threads.

    python tests/benchmarks/soak.py [--trials 500] [--replicas 1] [--json]

Each trial uses the whole system (Tune, Train, Data, MLflow, analysis). Memory (USS), open files and threads of all
processes that live as long as the sweep are sampled after each tenth of the trials. The sample after the first 100 trials
(or the first fifth, if that is less) is compared with the last. Target: constant after the first 100 trials.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.common import machine, progress, show, table

SPEC = """\
# Does any process grow with the number of trials?
name: soak
trial:
  profiles: {{num_profiles: 20, num_relations: 1, names: {{first: 8, middle: 8, last: 8}}}}
  model: {{num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {{num_heads: 1}}}}
  training: {{length: {{steps: 20}}, batch_size: 32, num_evaluations: 2, optimizer: {{lr: 0.02, warmup_steps: 5}}}}
grid:
  training.seed: {seeds}
execution: {{max_concurrent_trials: 2, replicas: {replicas}}}
"""
KINDS = {
    "raycap.sweep": "the command",
    "RestartableAnalyst": "analyst",
    "ray::ImplicitFunc": "drivers",
    "ray::RayTrainWorker": "workers",
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "dashboard.py": "dashboard",
}
"""Kinds of processes that live as long as the sweep, by a part of their command line."""


def kind_of(process: psutil.Process) -> str | None:
    """Kind of a process by KINDS; None for other processes."""
    command = " ".join(process.cmdline()[:8])
    return next((name for part, name in KINDS.items() if part in command), None)


def sample(root: psutil.Process) -> dict[str, dict[str, float]]:
    """Number of processes, USS in MiB, open files and threads by kind, summed over the processes of a kind."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"processes": 0, "uss_mib": 0.0, "files": 0, "threads": 0})
    for process in [root, *root.children(recursive=True)]:
        try:
            if kind := kind_of(process):
                numbers = found[kind]
                numbers["uss_mib"] += process.memory_full_info().uss / 2**20
                numbers["files"] += process.num_fds()
                numbers["threads"] += process.num_threads()
                numbers["processes"] += 1
        except psutil.Error:
            continue
    return {kind: dict(numbers) for kind, numbers in found.items()}


def run(folder: Path, num_trials: int, replicas: int) -> dict[str, Any]:
    """Run one sweep and sample its processes."""
    (folder / "spec.yaml").write_text(SPEC.format(seeds=list(range(num_trials)), replicas=replicas))
    began = time.monotonic()
    sweep = subprocess.Popen(
        [sys.executable, "-m", "raycap.sweep", "spec.yaml"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    samples: list[dict[str, Any]] = []
    step = max(1, num_trials // 10)
    while sweep.poll() is None:
        finished = len(list(folder.glob("runs/trials/*/result.json")))
        if finished >= step * (len(samples) + 1):
            samples.append(
                {"finished": finished, "seconds": time.monotonic() - began, "kinds": sample(psutil.Process(sweep.pid))}
            )
            progress(f"{finished} of {num_trials} after {samples[-1]['seconds']:.0f} s")
        time.sleep(0.5)
    finished = len(list(folder.glob("runs/trials/*/result.json")))
    if sweep.returncode or finished < num_trials:
        raise SystemExit(f"exit code {sweep.returncode}, {finished} results\n" + (folder / "log").read_text()[-3000:])
    return {"trials": num_trials, "wall_s": time.monotonic() - began, "samples": samples, "machine": machine()}


def main() -> None:
    """Run the sweep and print the first and the last sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raycap-soak-") as folder:
        found = run(Path(folder), options.trials, options.replicas)
    settled = next(one for one in found["samples"] if one["finished"] >= min(100, options.trials // 5))
    last = found["samples"][-1]
    between = last["finished"] - settled["finished"]
    found["s_per_trial"] = (last["seconds"] - settled["seconds"]) / max(1, between)
    rows = [
        [
            kind,
            *(
                f"{settled['kinds'][kind][name]:,.0f} -> {last['kinds'][kind][name]:,.0f}"
                for name in ("uss_mib", "files", "threads")
            ),
        ]
        for kind in KINDS.values()
        if kind in settled["kinds"] and kind in last["kinds"]
    ]
    text = table(["process", "MiB", "open files", "threads"], rows)
    after = f"{found['trials']} trials, all with results, in {found['wall_s']:.0f} s; {found['s_per_trial']:.2f} s each"
    show(found, f"{after}\nafter {settled['finished']} -> after {last['finished']}:\n\n{text}", as_json=options.json)


if __name__ == "__main__":
    main()
