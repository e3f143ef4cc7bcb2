"""Tests of the rule for paths and URIs: one meaning for odd characters, symbolic links and `..`, and clear refusals."""

import os
from pathlib import Path

import pytest

from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep
from raycap.spec.locations import (
    LocationError,
    absolute_location,
    absolute_tracking_uri,
    canonical_location,
    check_tracking_uri,
    database_path,
    database_uri,
    environment_tracking_uri,
    local_path,
    without_credentials,
)
from raycap.storage import Storage
from tests.support.specs import GOOD

ODD_NAMES = [
    "what?now",
    "50%20off",
    "100%",
    "a#b",
    "two words",
    "späti/ü",
    "a@b:c",
    "~",
    "$HOME",
    "x=1&y=2",
    "'\"",
    "a;b",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_characters_of_the_working_directory_stay(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert Storage.at("runs").root == f"{folder}/runs"
    assert Storage.at(absolute_location("runs")).root == f"{folder}/runs"
    assert Storage.at((folder / "runs").as_uri()).root == f"{folder}/runs"
    uri = absolute_tracking_uri("sqlite:///mlflow.db")
    assert database_path(uri) == f"{folder}/mlflow.db"
    assert absolute_tracking_uri(uri) == uri
    assert database_path(database_uri(f"{folder}/x.db")) == f"{folder}/x.db"


def test_links_and_parents_are_resolved_as_in_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk/deep/runs").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project/link").symlink_to(tmp_path / "disk/deep")
    monkeypatch.chdir(tmp_path / "project")
    assert local_path("link/../runs") == f"{tmp_path}/disk/runs"
    assert local_path("link/runs") == f"{tmp_path}/project/link/runs"  # a path without `..` keeps its links
    names = [
        "link/runs",
        "./link//runs/",
        "link/../deep/runs",
        f"{tmp_path}/disk/deep/runs",
        f"file://{tmp_path}/disk/deep/runs",
    ]
    assert {canonical_location(absolute_location(name)) for name in names} == {f"{tmp_path}/disk/deep/runs"}
    assert local_path("x", "/base") == "/base/x"
    assert absolute_location("s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("~/runs", "in full"),
        ("~ada/runs", "in full"),
        ("$HOME/runs", "in full"),
        ("/scratch/${USER}/runs", "in full"),
        ("file://~/runs", "file:///"),
        ("file://runs", "file:///FOLDER"),
        ("file:runs", "file:///FOLDER"),
        ("file:///a?b", "%3F"),
        ("file:///a#b", "%23"),
        ("s3:bucket/runs", "s3://..."),
    ],
)
def test_places_with_another_meaning_elsewhere_are_refused(place: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD + f"storage: '{place}'\n")
    with pytest.raises(SpecError) as refused:
        load_sweep(str(path))
    (line,) = refused.value.problems
    assert remedy in line
    assert line.startswith(f"{path}:14:1: storage")


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("sqlite:mlflow.db", "write sqlite:///mlflow.db"),
        ("sqlite://mlflow.db", "write sqlite:///mlflow.db"),
        ("sqlite:///", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///what?now/mlflow.db", "%3F"),
        ("sqlite:///~/mlflow.db", "in full"),
        ("sqlite:///$HOME/mlflow.db", "in full"),
        ("localhost:5000", "write http://localhost:5000"),
        ("127.0.0.1:5000/", "write http://127.0.0.1:5000"),
        ("mlflow.db", "write sqlite:///mlflow.db"),
        ("/data/mlflow.db", "write sqlite:////data/mlflow.db"),
        ("./mlruns", "sqlite:///FOLDER/mlflow.db"),
        ("file:///data/mlruns", "sqlite:///FOLDER/mlflow.db"),
        ("http://", "host and port"),
        ("http:/host:5000", "http://"),
        ("http://host:99999", "host and port"),
        ("http://host:5000/#/experiments/1", "write http://host:5000"),
        ("postgres://host/db", "write postgresql://host/db"),
        ("s3://bucket/mlflow", "http://HOST:PORT"),
        ("http://ada:secret1@host:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("https://secret1@host", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://ada:secret1@host/db", "MLFLOW_TRACKING_URI"),
        ("mysql+pymysql://host/db?password=secret1", "MLFLOW_TRACKING_URI"),
    ],
)
def test_malformed_tracking_uris_are_refused_with_the_position(uri: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD + f"tracking:\n  uri: '{uri}'\n")
    for overrides in ((), (f"tracking.uri='{uri}'",)):
        with pytest.raises(SpecError) as refused:
            load_sweep(str(path), overrides)
        (line,) = refused.value.problems
        assert remedy in line
        assert "secret1" not in line
        assert line.startswith("override " if overrides else f"{path}:15:3: tracking.uri: ")


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://host/prefix/",
        "postgresql+psycopg2://ada@host/db",
        "mysql://host/db?ssl=1",
        "SQLITE:///x.db",
    ],
)
def test_other_tracking_uris_are_accepted(uri: str) -> None:
    check_tracking_uri(uri)
    assert not absolute_tracking_uri(uri).endswith("/")


def test_credentials_of_the_environment_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for full, bare in {
        "http://ada:p%40ss@host:5000/x": "http://host:5000/x",
        "postgresql://ada:p@ss@host/db?sslmode=require&password=y&user=z": "postgresql://host/db?sslmode=require",
        "sqlite:////home/ada@work/m.db": "sqlite:////home/ada@work/m.db",
    }.items():
        assert without_credentials(full) == bare
        monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
        assert environment_tracking_uri() == bare
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    with pytest.raises(LocationError, match=r"MLFLOW_TRACKING_URI.*http://localhost:5000"):
        environment_tracking_uri()


def test_input_paths_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    people = "profiles: {source: disk, path: 's3://bucket/people.parquet'}"
    path.write_text(GOOD.replace("profiles: {num_profiles: 100, names: {first: 20, middle: 20, last: 40}}", people))
    with pytest.raises(SpecError) as refused:
        load_sweep(str(path))
    assert "profiles.path" in refused.value.problems[0]
    assert os.path.basename(path) in refused.value.problems[0]
