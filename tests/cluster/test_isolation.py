"""A sweep in a folder full of files that are named like modules, with unusual settings and a reader that has gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycap.learner.trial import run_trial
from raycap.pipeline import prepare
from tests.support.faults import results_in, without_timing
from tests.test_entry import HIDING, NO_UTF8, ROOT, SPEC

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_files_settings_and_closed_pipes_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.yaml").write_text(SPEC, encoding="utf-8")
    for name in HIDING:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this file was imported')")
    (tmp_path / "sitecustomize.py").write_text(
        "import locale, random; random.seed(1); locale.setlocale(locale.LC_ALL, '')"
    )
    environment = os.environ | NO_UTF8 | {
        "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONHASHSEED": "7", "PYTHONSTARTUP": "names.py", "PYTHONOPTIMIZE": "1",
        "PYTHONWARNINGS": "error", "FORCE_COLOR": "1",
    }  # fmt: skip
    line = f"{sys.executable} -m raycap.sweep q.yaml 2>err | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, (tmp_path / "err").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()
    (result,) = results_in(tmp_path / "runs").values()
    monkeypatch.chdir(tmp_path)
    sweep, _ = prepare("q.yaml", ())
    alone = run_trial(sweep.trials[0].spec, source_commit="test")
    assert without_timing(result) == without_timing(alone.result)
    assert (tmp_path / "runs/tiny/report.html").exists()
