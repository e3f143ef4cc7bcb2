"""Environment variables and fixtures that all tests share, among them one Ray instance for the whole session."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from raycap.tracking.environment import configure_mlflow

pytest.register_assert_rewrite("tests.support")
from tests.support.object_store import CREDENTIALS, Faults, ObjectStore, object_store  # noqa: E402

os.environ.update(CREDENTIALS)  # before Ray starts, whose workers inherit it
os.environ["OMP_NUM_THREADS"] = "1"  # several workers with several threads each would compete for the cores
os.environ["HF_HUB_OFFLINE"] = "1"
# By default 15, with which the other process of pytest would leave no CPU time to the workers of Ray.
os.environ.update(RAY_worker_niceness="0")
configure_mlflow()  # before any test module imports mlflow
# Shells ignore these signals in background jobs, and the commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


class FileScheduling(LoadScopeScheduling):
    """Run the tests of a file in one process, and all files of tests with Ray in one, which share an instance."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if _is_of_ray(file) else file


@cache
def _is_of_ray(file: str) -> bool:
    lines = (Path(__file__).parents[1] / file).read_text().splitlines()
    return any(line.startswith("pytestmark") and "mark.ray" in line for line in lines)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process more than cores, because tests of locks, servers and Ray wait for a fifth of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    from raycap.cluster.connection import ray_session

    with ray_session():
        yield


@pytest.fixture
def shared_profiles() -> Path:
    path = SHARED_DATA / "profiles_1000_uniform_r17.parquet"
    if not path.exists():
        pytest.skip("the dataset is not available")
    return path


@pytest.fixture(scope="session")
def _new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database of MLflow, which takes MLflow seconds to create."""
    from raycap.tracking.client import connect

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracking_uri(_new_database: Path, tmp_path: Path) -> str:
    """URI of an empty SQLite database of MLflow in `tmp_path`."""
    return f"sqlite:///{shutil.copy(_new_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that this process writes have one figure, because drawing all of them takes seconds."""
    from raycap.analysis import report

    monkeypatch.setattr(report, "FIGURES", {"capacity": report.FIGURES["capacity"]})


@pytest.fixture(scope="session")
def _object_store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def s3(_object_store: ObjectStore) -> Iterator[ObjectStore]:
    """An S3 server on this machine without faults at first."""
    yield _object_store
    for fault in fields(Faults):
        setattr(_object_store.faults, fault.name, getattr(Faults(), fault.name))
