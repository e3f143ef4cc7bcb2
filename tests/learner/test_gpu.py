"""The checks of tests/benchmarks/gpu.py, on CUDA if there is a GPU and else on the CPU.

Run them with `python -m pytest -m gpu`. They need neither Ray nor MLflow. On a CPU, checks that only say something about
CUDA are skipped; the others compare graphed with eager training, replicas with single trials, and resumed with whole ones.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ONLY_ON_CUDA = ("fp16", "compiled", "synchronisation")
"""Words in the names of checks that need CUDA, or that take minutes of compilation on a CPU."""


def checks() -> dict[str, Callable[[], Any]]:
    """The checks of the benchmark by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu
    finally:
        sys.path.remove(str(BENCHMARKS))
    scale = 1.0 if DEVICE.type == "cuda" else 0.02
    options = gpu.Options(DEVICE, scale=scale, seconds=1.0, exposures=2.0, deadline=time.monotonic() + 3600)
    return dict(gpu.check(options))


CHECKS = checks()


@pytest.mark.parametrize("name", CHECKS)
def test_the_learner_passes_the_check(name: str) -> None:
    if DEVICE.type == "cpu" and any(word in name for word in ONLY_ON_CUDA):
        pytest.skip("says nothing without CUDA")
    assert CHECKS[name]()["ok"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_workers_with_nccl_train_like_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_and_compare, args=(str(tmp_path / "rendezvous"),), nprocs=2)


def _train_and_compare(rank: int, rendezvous: str) -> None:
    """Train one trial on two GPUs in two processes, and compare its losses with those of one GPU."""
    from raycap.learner.replica import WorkerContext
    from raycap.learner.trial import run_trial

    sys.path.insert(0, str(BENCHMARKS))
    import gpu

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    alone = gpu.mean_losses([gpu.small_trial()], device)
    torch.distributed.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    context = WorkerContext(rank=rank, world_size=2, device=device)
    table = run_trial(gpu.small_trial(), source_commit="test", context=context).result.final.losses
    together = [sum(row.sum_bits for row in table.rows) / sum(row.num_evaluated for row in table.rows)]
    torch.distributed.destroy_process_group()
    assert gpu.compared(together, alone, 1e-4)["ok"]
