"""The architecture where import contracts (pyproject.toml) do not reach: what an import loads, and what the README lists."""

import re
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


def test_the_readme_lists_every_module_in_a_line() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The code, in the order data flows")[1].split("```")[1]
    listed, folders = set(), [PACKAGE.parent]
    for line in tree.strip().splitlines():
        name = line.split()[0]
        path = folders[(len(line) - len(line.lstrip())) // 2] / name
        if name.endswith("/"):
            folders[(len(line) - len(line.lstrip())) // 2 + 1 :] = [path]
        else:
            listed.add(path)
    assert listed == {p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}


def test_the_readme_shows_the_shipped_sweep() -> None:
    assert (ROOT / "sweeps" / "specs" / "grid.yaml").read_text() in (ROOT / "README.md").read_text()


def test_the_readme_names_tests_that_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "README.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"README names {file}::{test}"
