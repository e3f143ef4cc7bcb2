"""Published findings that are quick enough are run again, and agree with their archives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycap.commands.reproduce import reproduce
from raycap.spec.document import SpecError

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "depth"])
def test_a_finding_is_reproduced_within_its_intervals(name: str, tmp_path: Path) -> None:
    storage = str(tmp_path / "runs")
    command = [sys.executable, "-m", "raycap", "reproduce", f"findings/{name}.tar.xz", "--storage", storage]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert len(list(tmp_path.glob("runs/trials/*/result.json"))) == len(list((tmp_path / "runs" / "trials").iterdir()))


def test_a_file_that_does_not_exist_or_is_no_archive_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.tar.xz").write_bytes(b"no archive")
    command = [sys.executable, "-m", "raycap", "reproduce", "findings/unknown.tar.xz", "--storage"]
    done = subprocess.run([*command, str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown.tar.xz" in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(SpecError, match=r"bad\.tar\.xz") as caught:
        reproduce(str(tmp_path / "bad.tar.xz"), storage=str(tmp_path / "runs"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
