"""Connection to MLflow, and the distinction between temporary errors and requests that MLflow rejects."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import HTTPError, RequestException
from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from raycap.errors import TrackingError
from raycap.spec.locations import DATABASES, SQLITE, TRACKING_VARIABLE, database_path, without_credentials
from raycap.tracking.problems import unusable

LOCK_TIMEOUT_S = 5.0
"""How long `connect` waits for the lock of a SQLite database."""
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's error codes for requests that fail again if they are repeated. All others, such as TEMPORARILY_UNAVAILABLE and
INTERNAL_ERROR, count as unavailability.
"""


def connect(uri: str, *, creates: bool = True) -> MlflowClient:
    """Return a client for an absolute tracking URI, after a test of its database.

    MLflow retries a failing database for about 100 s (`create_sqlalchemy_engine_with_retry`: 10 attempts with growing
    delays) before it reports the error. This function opens the database first, and raises the error at once. A server
    (http, https) is not contacted.

    Args:
        uri: The tracking URI.
        creates: Whether an SQLite database that does not exist is created, with its folder.

    Raises:
        TrackingError: The database does not exist, and `creates` is false.
        OSError: The folder of the database cannot be created, or the database is damaged.
        SQLAlchemyError: The database cannot be opened or written, or it is damaged.
        ModuleNotFoundError: The driver of the database is not installed.
    """
    for name in ("alembic", "mlflow"):  # raycap reports the errors that these would log with a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    file = database_path(uri)
    if file is not None:
        if not creates and not Path(file).exists():
            remedy = "run the sweep, or log its results with raycap sync"
            raise TrackingError(f"tracking.uri {uri}: there is no database {file}", remedy)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        _check_database(uri)
    elif uri.partition(":")[0].partition("+")[0] in DATABASES:
        create_engine(client_uri(uri), poolclass=NullPool).connect().close()
    return MlflowClient(client_uri(uri))


def client_uri(uri: str) -> str:
    """Return the form of a tracking URI for MLflow, with credentials for a database.

    raycap stores and prints URIs without credentials. If MLFLOW_TRACKING_URI is the same URI with credentials, they are
    taken from there: those of a database stay in the URI, and those of a server become the environment variables that
    MLflow reads.
    """
    full = os.environ.get(TRACKING_VARIABLE, "").strip()
    has_credentials = full != uri and without_credentials(full).rstrip("/") == uri
    if has_credentials and uri.startswith("http"):
        parts = urlsplit(full)
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username or ""))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    elif has_credentials:
        return full
    # For `sqlite:///`, MLflow creates the folder of the database without decoding its name, so it would create another
    # folder for a name with %3F. It does not do this for URIs that name the driver.
    return uri.replace(SQLITE, "sqlite+pysqlite:///", 1) if uri.startswith(SQLITE) else uri


def _check_database(uri: str) -> None:
    """Raise OSError or SQLAlchemyError if an SQLite database cannot be written or is damaged."""
    engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S})
    with engine.connect() as connection:
        # BEGIN IMMEDIATE takes the write lock. Setting user_version to its own value fails on a read-only database.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()  # "ok" or a description of the damage
        if damage != "ok":
            raise OSError(f"the database is damaged: {' '.join(str(damage).split())}")


@contextmanager
def unavailable_as_tracking_error(uri: str) -> Iterator[None]:
    """Convert temporary errors, such as a refused connection or a locked database, to TrackingError.

    Errors of requests that MLflow rejects are not changed.
    """
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        refused = isinstance(error, HTTPError) and error.response is not None and error.response.status_code < 500
        if isinstance(error, MlflowException):
            # MLflow's database sessions raise TEMPORARILY_UNAVAILABLE for an OperationalError, such as a locked database,
            # and BAD_REQUEST for any other SQLAlchemyError. Among the latter, errors of constraints and data, which are
            # refusals, are subclasses of DatabaseError. SQLite raises DatabaseError itself if the file is damaged.
            refused = error.error_code in REFUSALS and type(error.__cause__) is not DatabaseError
        if refused:
            raise
        raise unusable(uri, error) from error
