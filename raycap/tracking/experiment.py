"""Lookup and creation of a sweep's experiment in MLflow, with artifacts beside the database.

MLflow stores absolute paths of artifacts. raycap keeps the artifacts of an SQLite database in the folder `mlartifacts`
beside it, and updates the paths in the database if both were moved or copied.
"""

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from raycap.errors import TrackingError
from raycap.spec.locations import database_path

ARTIFACTS_TAG = "raycap.artifacts"
"""Tag of experiments whose artifacts lie beside the database; the value is the name of the folder."""
ARTIFACTS_FOLDER = "mlartifacts"
PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database with URIs of artifacts."""


def find_experiment(client: MlflowClient, uri: str, name: str) -> Experiment | None:
    """Return the experiment of this name, with its artifact paths up to date, or None if there is none.

    Raises TrackingError if it is deleted, because MLflow reserves the names of deleted experiments.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        restore = f"MLFLOW_TRACKING_URI='{uri}' mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise TrackingError(
            f"tracking.experiment {name}: this experiment of {uri} is deleted; restore it with `{restore}`, or set "
            "tracking.experiment to another name"
        )
    location = _location_beside_database(uri)
    if location and ARTIFACTS_TAG in experiment.tags and experiment.artifact_location != location:
        _move_artifacts(uri, experiment.artifact_location, location)
        experiment = client.get_experiment(experiment.experiment_id)
    return experiment


def find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """Return the experiment of this name, which is created if it does not exist. Raises TrackingError if it is deleted."""
    existing = find_experiment(client, uri, name)
    if existing is not None:
        return existing
    # By default, artifacts would be in ./mlruns of the process's working directory.
    location = _location_beside_database(uri)
    tags = {ARTIFACTS_TAG: ARTIFACTS_FOLDER} if location else {}
    return client.get_experiment(client.create_experiment(name, artifact_location=location, tags=tags))


def log_text(client: MlflowClient, experiment: Experiment, run_id: str, file: str, content: str) -> None:
    """Log a text as an artifact. Raises TrackingError if artifacts of the experiment cannot be written from here."""
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        path = Path(folder) / file
        path.write_text(content, encoding="utf-8")
        try:
            client.log_artifact(run_id, str(path))
        except Exception as error:  # of the system, of MLflow, or of the client library of an object store
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise TrackingError(
                f"tracking.experiment {experiment.name}: its artifacts at {experiment.artifact_location} cannot be "
                f"written from here: {cause}; make this location writable, or set tracking.experiment to another name, for "
                "which MLflow chooses a new location"
            ) from error


def _location_beside_database(uri: str) -> str | None:
    """Return the URI of the folder of artifacts beside an SQLite database, or None for other databases and servers."""
    file = database_path(uri)
    return None if file is None else (Path(file).resolve().parent / ARTIFACTS_FOLDER).as_uri()


def _move_artifacts(uri: str, before: str, now: str) -> None:
    """Replace the beginning of all URIs of artifacts in an SQLite database, in one transaction."""
    engine = create_engine(uri, poolclass=NullPool)
    with engine.begin() as connection:
        for table, column in PATH_COLUMNS:
            update = (
                f"UPDATE {table} SET {column} = :now || substr({column}, length(:before) + 1) "
                f"WHERE {column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'"
            )
            connection.execute(text(update), {"now": now, "before": before})
