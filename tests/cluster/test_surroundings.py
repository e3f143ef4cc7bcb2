"""Sweeps in unusual surroundings: paths with special characters, clock jumps, several users, a read-only source tree."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from raycap import pipeline

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = """\
# Does the result depend on the surroundings?
name: where
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 300}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
"""
OTHER_USER = 65534
"""User and group id of `nobody` on Linux; the id below is used too."""


def finished(folder: Path) -> bool:
    return (folder / "runs" / "where" / "report.html").exists() and len(
        list(folder.glob("runs/trials/*/result.json"))
    ) == 1


def test_paths_may_contain_spaces_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "Größe & Länge (数据) 'q' %20#1"
    elsewhere = tmp_path / "else where"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "my spec é.yaml").write_text(SPEC)
    paths = [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/ml flow.db"]
    command = [sys.executable, "-m", "raycap.sweep", str(folder / "my spec é.yaml"), *paths]
    for _ in range(2):
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert finished(folder)
        assert not list(elsewhere.iterdir())
    report = [sys.executable, "-m", "raycap", "report", f"{folder}/runs/where"]
    assert subprocess.run(report, cwd=elsewhere, check=False).returncode == 0


@pytest.mark.usefixtures("ray_instance")
def test_jumps_of_the_system_clock_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`time.time` jumps by up to a day, forwards or backwards, at every call."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    true_time, rng = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: true_time() + rng.choice([-1, 0, 1]) * 86400 * rng.random())
    assert pipeline.run_spec("spec.yaml", ("grid.training.seed=[0, 1]",), Console(width=160), time.monotonic()) == 0
    assert len(list(tmp_path.glob("runs/trials/*/result.json"))) == 2


def readable_by_others() -> bool:
    """Whether another user may run this Python and this raycap."""
    try:
        command = [sys.executable, "-c", "import raycap.sweep"]
        done = subprocess.run(
            command, user=OTHER_USER, group=OTHER_USER, extra_groups=[], cwd="/", capture_output=True, check=False
        )
        return done.returncode == 0
    except PermissionError:
        return False


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to run processes as other users")
def test_two_users_can_run_at_once_from_a_read_only_source_tree(tmp_path: Path) -> None:
    if not readable_by_others():
        pytest.skip("other users cannot read this environment")
    folders, running = [], []
    for user in (OTHER_USER, OTHER_USER - 1):
        folder = Path(f"/tmp/raycap-test-{os.getpid()}-{user}")
        folder.mkdir()
        (folder / "spec.yaml").write_text(SPEC)
        os.chown(folder, user, user)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "raycap.sweep", "spec.yaml"]
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                user=user,
                group=user,
                extra_groups=[],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        folders.append(folder)
    try:
        for process, folder in zip(running, folders, strict=True):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
            assert finished(folder)
            assert {path.stat().st_uid for path in folder.rglob("*")} <= {0, int(folder.name.rpartition("-")[2])}
    finally:
        subprocess.run(["rm", "-rf", *map(str, folders)], check=True)
