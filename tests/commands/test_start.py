"""Tests of `raycap init` and `raycap doctor`."""

import json
import re
import sqlite3
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from raycap.cli import app
from raycap.commands import doctor
from raycap.commands.doctor import Check, CheckVerdict, examine
from raycap.commands.starter import GRID, SETTINGS, TRIAL, starter
from raycap.plan.expand import expand
from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.file import SpecError, load_sweep
from tests.support.simulated_cluster import free_port


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


def written_fields(section: BaseModel, values: dict[str, Any]) -> list[tuple[FieldInfo, Any]]:
    """Return the fields of a section, and of all sections in it, with the values that the example writes."""
    found = []
    for name, value in values.items():
        found.append((type(section).model_fields[name], value))
        if isinstance(value, dict):
            found += written_fields(getattr(section, name), value)
    return found


# --- init -------------------------------------------------------------------------------------------------------------


def test_the_starter_sweep_loads_and_is_planned_without_warnings(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", "first")
    assert result.exit_code == 0, result.output
    assert "raycap run first.yaml" in result.output
    loaded = load_sweep("first.yaml")
    trials = expand(loaded)
    assert len(trials) == len(GRID["model.hidden_size"]) * len(GRID["training.seed"])
    assert loaded.question.startswith("How many bits")
    assert not any(trial.warnings for trial in trials)


def test_the_starter_has_every_section_and_the_description_of_every_field() -> None:
    text = " ".join(line.strip("# ") for line in starter("first").splitlines())
    assert set(TRIAL) == set(TrialSpec.model_fields) - {"fill", "adapter"}  # these need a trained model
    trial = TrialSpec.model_validate_json(json.dumps(TRIAL))
    sweep = SweepSpec.model_validate_json(json.dumps({"name": "first", **SETTINGS}))
    for field, value in [*written_fields(trial, TRIAL), *written_fields(sweep, SETTINGS)]:
        if field.description:
            assert " ".join(field.description.split()) in text
        if isinstance(field.default, int | float | str) and not isinstance(value, dict):
            assert f"Default: {field.default}." in text.replace("false", "False")


@pytest.mark.parametrize("name", ["1e3", "null", "12", "plain", "a.b-c"])
def test_every_valid_name_is_written_so_that_it_is_read_back(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", name).exit_code == 0
    assert load_sweep(f"{name}.yaml").spec.name == name


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("mine")
    refused = run("init", "first")
    assert "first.yaml: exists already" in str(refused.exception)
    assert Path("first.yaml").read_text() == "mine"
    assert run("init", "first", "--force").exit_code == 0
    assert Path("first.yaml").read_text() == starter("first")
    for name in ("../evil", "trials"):
        with pytest.raises(SpecError, match=f"name: .*got '{re.escape(name)}'"):
            starter(name)


# --- doctor -----------------------------------------------------------------------------------------------------------


def verdicts(folder: Path, uri: str = "", storage: str = "") -> dict[str, Check]:
    checks = examine(storage or str(folder / "runs"), uri or f"sqlite:///{folder}/mlflow.db")
    assert all(check.to_do for check in checks if check.verdict is CheckVerdict.FAIL)
    return {check.name: check for check in checks}


def test_doctor_checks_everything_and_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = verdicts(tmp_path)
    assert {
        "python",
        "torch",
        "gpus",
        "threads",
        "cpu",
        "memory",
        "ray",
        "where trials run",
        "mlflow",
        "storage",
    } <= set(found)
    assert not [check for check in found.values() if check.verdict is CheckVerdict.FAIL]
    assert "does not exist yet" in found["mlflow"].found
    assert "this machine" in found["where trials run"].found
    assert "OMP_NUM_THREADS=1" in found["threads"].found
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_for_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    refused = verdicts(tmp_path)["where trials run"]
    assert refused.verdict is CheckVerdict.FAIL
    assert "RAY_ADDRESS=local" in refused.to_do
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert "host:port" in verdicts(tmp_path)["where trials run"].found


def test_doctor_fails_if_ray_has_no_place_for_its_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 50)))
    refused = verdicts(tmp_path)["where trials run"]
    assert refused.verdict is CheckVerdict.FAIL
    assert "RAY_TMPDIR" in refused.to_do


@pytest.mark.parametrize(
    ("address", "module", "is_open"),
    [("0.0.0.0", "mlflow.server:app", True), ("127.0.0.1", "mlflow.server:app", False),
     ("0.0.0.0", "mlflow.server.auth:create_app", False)],
)  # fmt: skip
def test_doctor_lists_servers_that_other_machines_reach(address: str, module: str, is_open: bool) -> None:
    program = (
        f"import socket; s = socket.create_server(('{address}', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        port = server.stdout.readline().strip()
        (check,) = doctor._open_services()
        assert (f"MLflow at port {port}" in check.found) == is_open
        server.communicate("\n")


def test_doctor_reports_the_state_of_mlflow(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table runs (id)")
        connection.executemany("insert into runs values (?)", [("x" * 100,)] * 1000)
    connection.close()
    assert verdicts(tmp_path)["mlflow"].verdict is CheckVerdict.OK
    whole = file.read_bytes()
    file.write_bytes(whole[:5000] + b"\xff" * 20_000 + whole[25_000:])
    damaged = verdicts(tmp_path)["mlflow"]
    assert damaged.verdict is CheckVerdict.FAIL
    assert "move the file away" in damaged.to_do

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = Thread(target=server.serve_forever)
    thread.start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        assert verdicts(tmp_path, uri)["mlflow"].found.endswith("the server answers")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert verdicts(tmp_path, uri)["mlflow"].verdict is CheckVerdict.FAIL


def test_doctor_follows_the_rules_for_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor._storage("~/runs").verdict is CheckVerdict.FAIL
    assert "a?b" in doctor._storage(f"file://{tmp_path}/a%3Fb").found
    (mlflow,) = doctor._mlflow("localhost:5000")
    assert mlflow.verdict is CheckVerdict.FAIL
    assert "http://localhost:5000" in mlflow.found
    (mlflow,) = doctor._mlflow("sqlite:///what%3Fnow.db")
    assert mlflow.verdict is CheckVerdict.OK
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_gives_exit_code_1_and_json_lists_all_checks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    locations = ["--storage", str(tmp_path / "runs"), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    good = run("doctor", "--json", *locations)
    assert good.exit_code == 0
    assert {entry["verdict"] for entry in json.loads(good.output)} <= {"ok", "warn"}
    (tmp_path / "file").write_text("")
    below = run("doctor", "--storage", f"{tmp_path}/file/runs", *locations[2:])
    assert below.exit_code == 1
    assert f"{tmp_path}/file is not a folder" in "".join(below.output.split("\n"))
    monkeypatch.setattr(doctor, "_is_installed", lambda name: False)
    assert "pip install -e '.[gcp]'" in run("doctor", *locations).output
    monkeypatch.setattr(doctor, "DISK_FAIL_BYTES", 1e18)
    bad = run("doctor", *locations)
    assert bad.exit_code == 1
    assert "storage" in bad.output
