"""Architecture rules that import contracts cannot express: modules that an import loads, layout and length of files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raycap"
MAX_LINES = 400


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("raycap.commands.run", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.api", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.pipeline", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.cli", ["torch", "ray", "mlflow", "pandas", "matplotlib"]),
        ("raycap.plan.expand", ["torch", "ray"]),
        ("raycap.plan.throughput", ["torch", "ray"]),
        pytest.param("raycap.learner.trial", ["ray", "mlflow", "transformers", "datasets"], marks=pytest.mark.slow),
        pytest.param("raycap.analysis.report", ["torch", "ray", "mlflow"], marks=pytest.mark.slow),
        pytest.param("raycap.cluster.data_stream", ["torch", "mlflow"], marks=pytest.mark.slow),
    ],
)
def test_importing_a_module_does_not_load_heavy_packages(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_only_entry_points_are_at_the_root_of_the_package() -> None:
    entry_points = {
        "__init__.py",
        "__main__.py",
        "api.py",
        "cli.py",
        "errors.py",
        "pipeline.py",
        "sweep.py",
    }
    assert {path.name for path in PACKAGE.glob("*.py")} == entry_points


def test_modules_have_at_most_400_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
