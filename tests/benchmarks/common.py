"""Helpers of the benchmarks: trials to run, child processes, medians, learned bits, and tables.

Imports no torch at module level: the environment that limits its threads must be set before it is loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycap.results import LossTable, PlannedTrial, PopulationFacts
    from raycap.spec import TrialSpec

SPEC = Path(__file__).resolve().parents[2] / "sweeps" / "specs" / "grid.yaml"
NUM_PARAMS = {"demo": None, "1M": 1_000_000, "5M": 5_000_000}
"""Numbers of parameters by name of a size; None is the largest model of the demo."""
PROBE_STEPS = {"demo": 60, "1M": 8, "5M": 3}
"""Steps of the probe that estimates the speed of a size before it is measured."""


def planned(size: str, *overrides: str) -> PlannedTrial:
    """The demo's largest trial with a model of another size and one evaluation; `overrides` are applied last."""
    from raycap.plan.expand import expand
    from raycap.spec.file import load_sweep

    num_params = NUM_PARAMS[size]
    model = f"{{num_layers: 4, num_params: {num_params}, tie_embeddings: true, heads: {{head_size: 16}}}}"
    sized = ("grid={model.hidden_size: [16]}",) if num_params is None else ("grid={}", f"trial.model={model}")
    (trial,) = expand(load_sweep(str(SPEC), (*sized, "trial.training.num_evaluations=1", *overrides)))
    return trial


def timed_training(trial: PlannedTrial) -> dict[str, float]:
    """Train a trial; speeds are those of its training steps, without evaluations and set-up."""
    from raycap.learner.trial import run_trial

    final = run_trial(trial.spec, source_commit="benchmark").result.final
    questions = final.step * trial.spec.training.batch_size
    return {
        "questions_per_s": questions / final.train_seconds,
        "tokens_per_s": final.tokens / final.train_seconds,
        "steps": final.step,
        "seconds": final.train_seconds,
    }


def our_steps(size: str, num_steps: int) -> dict[str, float]:
    """Train `num_steps` steps of a size with `run_trial`."""
    return timed_training(planned(size, f"trial.training.length={{steps: {num_steps}}}"))


def speed(size: str, seconds: float, train: Callable[[int], dict[str, float]]) -> dict[str, float]:
    """Speed over about `seconds`. `train` takes a number of steps; a short probe warms up and determines it."""
    probe = train(PROBE_STEPS[size])
    return train(max(PROBE_STEPS[size], round(seconds * probe["steps"] / probe["seconds"])))


def child(script: str, threads: int, *arguments: str) -> dict[str, Any]:
    """Run a benchmark in a process with `threads` threads, and parse the JSON on its last line of output."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, script, *arguments]
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def set_threads(threads: int) -> None:
    """Limit torch to `threads` threads; call this in a child process."""
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def medians(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Median of each number over runs that have the same keys."""
    rows = list(runs)
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def bits_by_selection(spec: TrialSpec, populations: tuple[PopulationFacts, ...], losses: LossTable) -> dict[str, float]:
    """Learned bits under each selection, computed from losses by the analysis of sweeps."""
    from raycap.analysis.capacity import TOTAL, capacities
    from raycap.analysis.measurements import Losses
    from raycap.results import Evaluation
    from raycap.spec import AnalysisSpec

    zeros = dict.fromkeys(
        ("exposures", "learning_rate", "train_loss_bits", "train_seconds", "parameter_norm"), 0.0
    ) | dict.fromkeys(("step", "tokens"), 0)
    measured = Losses.of(spec, populations, [Evaluation(**zeros, losses=losses)])
    return {
        str(part.reading.selection): float(part.learned_bits[0])
        for part in capacities(measured, AnalysisSpec())
        if part.subject == TOTAL
    }


def enumerate_bits(spec: TrialSpec, populations: tuple[PopulationFacts, ...], losses: LossTable) -> float:
    """Learned bits under the selection `enumerate`."""
    return bits_by_selection(spec, populations, losses)["enumerate"]


def machine() -> dict[str, Any]:
    """Number of cores and load average at the start."""
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are rounded to three significant digits, large ones to integers."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def show(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print `found` as JSON, or `text` with the number of cores and the load."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(text)
    where = found.get("machine", {})
    print(f"\n{where.get('cores')} cores, load {where.get('load')} before the start")


def progress(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
