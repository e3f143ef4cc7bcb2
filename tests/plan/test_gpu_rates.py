"""Tests of the rates of GPUs that are not at hand, against steps that were measured on an H100."""

import json
from functools import cache
from pathlib import Path

import pytest

from raycap.plan.expand import expand
from raycap.plan.gpu_rates import Gpu, seconds_per_step
from raycap.results import PlannedTrial
from raycap.spec import ExecutionSpec
from raycap.spec.file import load_sweep

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "tests" / "benchmarks" / "gpu-results" / "2026-11-27-h100" / "speed.json"
FACTOR = 1.6
"""Largest ratio of an estimate and a measurement, in either direction."""
WHOLE = ExecutionSpec(gpus_per_worker=1.0)


def trial(hidden_size: int, num_layers: int, batch_size: int) -> PlannedTrial:
    overrides = (
        f"trial.model={{num_layers: {num_layers}, hidden_size: {hidden_size}, heads: {{head_size: 16}}}}",
        f"trial.training.batch_size={batch_size}",
        "trial.profiles.num_profiles=2000",
        "grid={}",
    )
    (planned,) = expand(load_sweep(str(ROOT / "sweeps" / "specs" / "one_gpu_quick.yaml"), overrides))
    return planned


@cache
def measured_seconds() -> dict[str, float]:
    """Return the seconds per step of the measured cases."""
    cases = {name: case.get("value") for name, case in json.loads(MEASURED.read_text()).items()}
    return {
        name: case["batch_size"] * case["replicas"] / case["questions_per_s"]
        for name, case in cases.items()
        if isinstance(case, dict) and "questions_per_s" in case
    }


@pytest.mark.parametrize(
    ("case", "size", "replicas", "compiled"),
    [
        ("speed: 1M, batch 4096, eager", (80, 4, 4096), 1, False),
        ("speed: 1M, batch 4096, compiled", (80, 4, 4096), 1, True),
        ("speed: 10M, batch 4096, eager", (256, 12, 4096), 1, False),
        ("speed: 10M, batch 4096, compiled", (256, 12, 4096), 1, True),
        ("replicas: 1 of 1M, batch 256", (80, 4, 256), 1, False),
        ("replicas: 16 of 1M, batch 256", (80, 4, 256), 16, False),
        ("replicas: 16 of 1M, batch 1024", (80, 4, 1024), 16, False),
    ],
)
def test_estimates_agree_with_steps_measured_on_an_h100(
    case: str, size: tuple[int, int, int], replicas: int, compiled: bool
) -> None:
    execution = ExecutionSpec(gpus_per_worker=1.0, compile=compiled)
    estimated = seconds_per_step((trial(*size),) * replicas, execution, Gpu.H100)
    assert 1 / FACTOR < estimated / measured_seconds()[case] < FACTOR


def test_slower_cards_and_shared_cards_take_longer() -> None:
    group = (trial(256, 12, 4096),)
    times = [seconds_per_step(group, WHOLE, gpu) for gpu in Gpu]
    assert times == sorted(times)
    shared = seconds_per_step(group, ExecutionSpec(gpus_per_worker=0.25), Gpu.H100)
    assert shared == pytest.approx(4 * times[0], rel=0.2)
