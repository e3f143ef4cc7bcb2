"""The scripts in tests/benchmarks import, and their smallest runs succeed; speeds are not tested."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
SMALL_RUNS = [
    "analysis.py --trials 100",
    "coordinate_check.py --json",
    "data_path.py --only people",
    "evaluation.py --sizes demo --threads 1 --repeats 1",
    "exposures.py --out exposures.jsonl --exposures 2 --lrs 0.02 --optimizers adamw",
    "flops.py --sizes demo --threads 1 --repeats 1 --seconds 1",
    "gpu.py --device cpu --scale 0.02 --seconds 1 --exposures 2 --sizes 1M --no-compile --parts profile speed replicas",
    "plan.py --runs 1",
    "replicas.py --replicas 2 --batch-sizes 32 --repeats 1 --seconds 1",
]
"""Arguments with which a benchmark takes less than a minute and needs neither Ray nor a GPU."""


def imported_names(script: Path) -> Iterator[tuple[str, str]]:
    """Modules of the repository and the names that a script imports from them, also inside functions."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("raycap", "tests"):
            yield from ((node.module, alias.name) for alias in node.names)


def exists(module: str, name: str) -> bool:
    """Whether `from module import name` succeeds; a name may be a submodule."""
    return hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_names_that_a_benchmark_imports_exist(script: Path) -> None:
    assert [f"{module}.{name}" for module, name in imported_names(script) if not exists(module, name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", SMALL_RUNS, ids=lambda command: command.partition(".")[0])
def test_a_small_run_of_a_benchmark_succeeds(command: str, tmp_path: Path) -> None:
    script, *arguments = command.split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip()
