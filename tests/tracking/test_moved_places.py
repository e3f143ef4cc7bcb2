"""Tests of where MLflow's database and artifacts lie: odd names, links, moved and copied projects, and unusable places."""

import os
import shutil
import sqlite3
import urllib.parse
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service import utils as tracking_utils

from raycap.cluster.analyst import sync_sweep
from raycap.commands.arguments import open_sweep
from raycap.errors import TrackingError
from raycap.results import SweepRecord
from raycap.storage import Storage
from raycap.storage.sweep_folder import SweepFolder
from raycap.tracking.client import client_uri, connect
from raycap.tracking.runs import find_pages
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import make_results, store


@pytest.fixture
def database(_new_database: Path) -> Path:
    """An empty database of MLflow, to be copied."""
    return _new_database


def relative_sweep(folder: Path, **changes: str) -> SweepRecord:
    """Return the record of a sweep of two trials that was run in a folder, with relative places."""
    record = planted.sweep([12, 14])
    tracking = record.spec.tracking.model_copy(update={"uri": "sqlite:///mlflow.db"})
    spec = record.spec.model_copy(update={"storage": "runs", "tracking": tracking, **changes})
    return record.model_copy(update={"spec": spec, "working_directory": str(folder)})


def finish(folder: Path, database: Path, *, logs_results: bool = False) -> SweepRecord:
    """Make a project with a finished sweep in a folder, create its run in MLflow, and return its record."""
    folder.mkdir(parents=True)
    shutil.copy(database, folder / "mlflow.db")
    record = relative_sweep(folder)
    absolute = record.model_copy(update={"spec": record.spec.model_copy(update={"storage": f"{folder}/runs"})})
    store(absolute, make_results(record, num_evaluations=2))
    SweepFolder(Storage.at(f"{folder}/runs"), "planted").write_sweep(record)
    if logs_results:
        assert sync_sweep(record).problems == ()
    else:
        Tracker(record)
    return record


def runs_in(folder: Path) -> tuple[MlflowClient, list[Run], list[Run]]:
    """Return a client, the runs of sweeps and the runs of trials of the database in a folder."""
    quoted = str(folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    client = MlflowClient(client_uri(f"sqlite:///{quoted}"))
    experiment = client.get_experiment_by_name("raycap")
    location = urllib.parse.unquote(urllib.parse.urlsplit(experiment.artifact_location).path)
    assert location == f"{folder}/mlartifacts"
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.artifact_uri.startswith(f"{experiment.artifact_location}/") for run in runs)
    sweeps = [run for run in runs if "raycap.sweep" in run.data.tags]
    return client, sweeps, [run for run in runs if "raycap.trial_id" in run.data.tags]


def artifacts_of(client: MlflowClient, run: Run) -> set[str]:
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_moved_or_copied_project_is_complete_and_leaves_the_old_place_alone(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, copy, new = tmp_path / "what?now", tmp_path / "50%20off #ü", tmp_path / "new"
    finish(old, database, logs_results=True)
    assert {path.name for path in tmp_path.iterdir()} == {old.name}
    assert str(old) not in (old / "runs/planted/sweep.json").read_text()
    shutil.copytree(old, copy)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    monkeypatch.chdir(copy)
    tracking_utils._artifact_repos_cache.clear()  # by run id, for this process; commands have processes of their own
    record, _ = open_sweep("runs/planted")
    assert record.spec.storage == "runs"
    assert find_pages(record).has_view
    tracker = Tracker(record)
    assert {tracker.status(trial.trial_id) for trial in record.trials} == {"FINISHED"}
    client, (sweep,), trials = runs_in(copy)
    assert sweep.data.tags["raycap.storage"] == f"{copy}/runs"
    assert len(trials) == 2
    assert {"report.html", "spec.yaml"} <= artifacts_of(client, sweep)
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before

    old.rename(new)
    monkeypatch.chdir(tmp_path)
    tracking_utils._artifact_repos_cache.clear()
    record, _ = open_sweep(f"{new}/runs/planted")  # from another working directory
    Tracker(record)
    client, (sweep,), trials = runs_in(new)
    assert {"report.html", "spec.yaml"} <= artifacts_of(client, sweep)
    assert {path.name for path in tmp_path.iterdir()} == {copy.name, new.name}


def test_a_storage_has_one_sweep_in_mlflow_whatever_its_name(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    record = finish(project, database)
    (tmp_path / "link").symlink_to(project)
    (project / "other").symlink_to("runs")
    monkeypatch.chdir(project)
    (project / "x").mkdir()
    absolute = (str(project / "runs"), f"file://{project}/runs", f"{tmp_path}/link/runs")
    for storage in ("runs/", "./x/../runs", "other", *absolute):
        same = record.model_copy(update={"spec": record.spec.model_copy(update={"storage": storage})})
        Tracker(same)
        assert find_pages(same) == find_pages(record)
    assert len(runs_in(project)[1]) == 1
    # The same name in another storage is another sweep.
    Tracker(record.model_copy(update={"spec": record.spec.model_copy(update={"storage": "elsewhere"})}))
    assert len(runs_in(project)[1]) == 2
    # The record keeps its working directory if a link leads to the storage.
    for storage in ("runs", "other"):
        folder = SweepFolder(Storage.at(storage), "planted")
        folder.write_sweep(record.model_copy(update={"spec": record.spec.model_copy(update={"storage": storage})}))
        for name in (f"{project}/runs/planted", f"{tmp_path}/link/runs/planted", "other/planted"):
            assert open_sweep(name)[0].tracking_uri == f"sqlite:///{project}/mlflow.db"


def test_commands_that_only_read_create_nothing(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    finish(project, database)
    (project / "mlflow.db").rename(tmp_path / "away.db")
    shutil.rmtree(project / "mlartifacts")
    monkeypatch.chdir(project)
    record, _ = open_sweep("runs/planted")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        find_pages(record)
    gone = record.model_copy(update={"working_directory": str(tmp_path / "gone")})
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        find_pages(gone)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_deleted_experiment_and_unwritable_artifacts_are_named_with_the_remedy(
    tmp_path: Path, database: Path
) -> None:
    record = finish(tmp_path / "project", database)
    client = connect(record.tracking_uri)

    def error_of(experiment: str) -> str:
        tracking = record.spec.tracking.model_copy(update={"experiment": experiment})
        with pytest.raises(TrackingError) as caught:
            Tracker(record.model_copy(update={"spec": record.spec.model_copy(update={"tracking": tracking})}))
        return str(caught.value)

    theirs = client.create_experiment("theirs", artifact_location="file:///proc/home/alice/mlruns/1")
    assert "file:///proc/home/alice/mlruns/1" in error_of("theirs")
    assert "tracking.experiment" in error_of("theirs")
    client.delete_experiment(theirs)
    assert "is deleted" in error_of("theirs")
    assert f"restore --experiment-id {theirs}" in error_of("theirs")
    client.restore_experiment(theirs)
    assert "is deleted" not in error_of("theirs")


def test_errors_of_a_database_name_the_cause(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycap.tracking.client.LOCK_TIMEOUT_S", 0.1)

    def error_of(file: Path) -> str:
        with pytest.raises(TrackingError) as caught:
            Tracker(relative_sweep(file.parent))
        assert str(file) in str(caught.value)
        return str(caught.value)

    for name in ("newer", "older", "locked", "damaged"):
        (tmp_path / name).mkdir()
        shutil.copy(database, tmp_path / name / "mlflow.db")
    with sqlite3.connect(tmp_path / "newer/mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "newer version" in error_of(tmp_path / "newer/mlflow.db")
    with sqlite3.connect(tmp_path / "older/mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert "mlflow db upgrade" in error_of(tmp_path / "older/mlflow.db")
    connection = sqlite3.connect(tmp_path / "locked/mlflow.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    locked = error_of(tmp_path / "locked/mlflow.db")
    connection.close()
    assert "another process" in locked
    (tmp_path / "folder/mlflow.db").mkdir(parents=True)
    assert "is a folder" in error_of(tmp_path / "folder/mlflow.db")
    (tmp_path / "damaged/mlflow.db").write_bytes(b"This is no database. " * 1000)
    assert "move the file away" in error_of(tmp_path / "damaged/mlflow.db")
    for name in ("newer", "older", "locked", "folder"):
        if name != "locked":
            assert "move the file away" not in error_of(tmp_path / name / "mlflow.db")
    assert "move the file away" not in locked


def test_an_unusable_registry_is_named(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(database, tmp_path / "mlflow.db")
    record = relative_sweep(tmp_path)
    tracking = record.spec.tracking.model_copy(update={"register_models": True})
    with pytest.raises(TrackingError, match="MLFLOW_REGISTRY_URI") as caught:
        Tracker(record.model_copy(update={"spec": record.spec.model_copy(update={"tracking": tracking})}))
    assert "register_models" in str(caught.value)
    assert os.environ["MLFLOW_REGISTRY_URI"] in str(caught.value)
