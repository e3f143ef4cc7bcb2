"""The architecture where import contracts (pyproject.toml) do not reach: what an import loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raycap"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("raycap.sweep", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.pipeline", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.cli", ["torch", "ray", "mlflow", "pandas", "matplotlib"]),
        ("raycap.plan.expand", ["torch", "ray"]),
        ("raycap.plan.throughput", ["torch", "ray"]),
        ("raycap.learner.trial", ["ray", "mlflow", "transformers", "datasets"]),
        ("raycap.analysis.report", ["torch", "ray", "mlflow"]),
        ("raycap.cluster.data_stream", ["torch", "mlflow"]),
    ],
)
def test_importing_a_module_does_not_load(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_nothing_lies_loose_at_the_top() -> None:
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "cli.py", "errors.py", "pipeline.py", "sweep.py"}


def test_files_stay_short() -> None:
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert long == {}
