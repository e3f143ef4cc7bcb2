"""`raycap doctor` in broken surroundings: it names each fault with a remedy, and `raycap run` refuses the same."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.test_entry import ROOT, SPEC

SCRIPT = ROOT / "tests/support/doctor_in_surroundings.py"
EXPECTED = {
    # case: (check, verdict, word that the advice contains)
    "home missing": ("home", "warn", "HOME"),
    "user without entry and home": ("home", "warn", "HOME"),
    "TMPDIR missing": ("temporary files", "warn", "TMPDIR"),
    "TMPDIR too long": ("where trials run", "fail", "RAY_TMPDIR"),
    "full disk": ("temporary files", "fail", "TMPDIR"),
    "no inodes": ("temporary files", "fail", "TMPDIR"),
    "few open files": ("open files", "fail", "ulimit -n"),
    "few processes": ("processes", "fail", "ulimit -u"),
    "small files": ("file size", "fail", "ulimit -f"),
    "little address space": ("address space", "fail", "ulimit -v"),
    "no cluster": ("where trials run", "fail", "RAY_ADDRESS"),
    "storage below a file": ("storage", "fail", "storage"),
    "damaged database": ("mlflow", "fail", "move the file away"),
}


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Path]:
    for name in ("work", "below", "damaged"):
        (tmp_path / name).mkdir()
    for folder in (tmp_path, *tmp_path.parents[:2], tmp_path / "work"):
        folder.chmod(0o777)  # other users run here
    (tmp_path / "below/runs").write_text("")
    (tmp_path / "damaged/mlflow.db").write_bytes(b"no database" * 1000)
    with ExitStack() as stack:
        for name, options in (("full", "size=64k"), ("inodes", "nr_inodes=20")):
            disk = tmp_path / name
            disk.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                disk.rmdir()  # no permission to mount
                break
            stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        yield tmp_path


@pytest.mark.slow
def test_doctor_names_every_fault_with_a_remedy(prepared: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(prepared)], capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr == ""
    cases = {case["case"]: case for case in map(json.loads, done.stdout.splitlines())}
    assert len(cases) >= 10, done.stderr
    sound = {check["name"]: check["verdict"] for check in cases.pop("nothing")["checks"]}
    for name, case in cases.items():
        check_name, verdict, advice = EXPECTED[name]
        checks = {check["name"]: check for check in case["checks"]}
        assert sound.get(check_name) != "fail"
        assert checks[check_name]["verdict"] == verdict, (name, checks[check_name])
        assert advice in checks[check_name]["to_do"], (name, checks[check_name])
        assert case["code"] == any(check["verdict"] == "fail" for check in case["checks"]), name


@pytest.mark.slow
def test_run_refuses_what_doctor_calls_a_failure(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(SPEC, encoding="utf-8")
    command = f"ulimit -n 100; {sys.executable} -m raycap.sweep q.yaml storage={tmp_path}/runs"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr
