"""The architecture as rules: imports point one way, heavy libraries stay in their rings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raycap"
RINGS = [
    "spec",
    "storage",
    "publish",
    "sealed",
    "lock",
    "losses",
    "results",
    "words",
    "choose",
    "notify",
    "underway",
    "board",
    "facts",
    "learner",
    "analysis",
    "plan",
    "replicas",
    "edits",
    "states",
    "estimate",
    "paces",
    "model_card",
    "cluster",
    "show",
    "status",
    "starter",
    "doctor",
    "sweep",
    "commands",
    "cli",
]
MAY_NOT_MEET = {("analysis", "learner"), ("learner", "analysis")}
HOMES = {
    "ray": ("cluster",),
    "mlflow": ("cluster",),
    "torch": ("learner", "cluster/worker", "cluster/warm"),
    "matplotlib": ("analysis",),
    "datasets": ("facts/hosted",),
    "huggingface_hub": ("publish",),
}
TORCH_FREE = [
    f"learner/{name}"
    for name in ("tokenizers", "tokens", "sizes", "pieces", "rows", "material", "curriculum", "parent")
]


def modules() -> dict[str, ast.Module]:
    paths = [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    return {p.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(p.read_text()) for p in paths}


def imported(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "raycap" else [node.module]
            )
    return names


def ring(module: str) -> str:
    return module.split("/")[0]


def test_imports_point_one_way() -> None:
    for module, tree in modules().items():
        for name in imported(tree):
            if not name.startswith("raycap."):
                continue
            other = ring(name.split(".")[1])
            assert RINGS.index(other) <= RINGS.index(ring(module)), f"{module} imports {name}: upward"
            assert (ring(module), other) not in MAY_NOT_MEET, f"{module} imports {name}"


def test_there_are_no_cycles() -> None:
    graph = {
        module: {
            name.removeprefix("raycap.").replace(".", "/") for name in imported(tree) if name.startswith("raycap.")
        }
        for module, tree in modules().items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' > '.join([*path, module])}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_heavy_libraries_stay_in_their_rings() -> None:
    for module, tree in modules().items():
        for name in imported(tree):
            homes = HOMES.get(name.split(".")[0])
            if homes and not module.startswith(homes):
                # cluster/session is the door: sweep and cli reach ray through it.
                raise AssertionError(f"{module} imports {name}, whose home is {homes}")
    for module in TORCH_FREE:
        assert not any(name.startswith("torch") for name in imported(modules()[module]))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("raycap.sweep", ["torch", "ray", "mlflow", "pandas", "matplotlib", "datasets", "transformers"]),
        ("raycap.cli", ["torch", "ray", "mlflow", "pandas", "matplotlib"]),
        ("raycap.plan", ["torch", "ray"]),
        ("raycap.learner.trial", ["ray", "mlflow", "transformers", "datasets"]),
        ("raycap.analysis.report", ["torch", "ray", "mlflow"]),
        ("raycap.cluster.stream", ["torch", "mlflow"]),
    ],
)
def test_importing_a_module_does_not_load(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_files_stay_short() -> None:
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert long == {}
