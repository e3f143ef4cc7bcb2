"""Connects to MLflow, and separates errors that may pass from requests that MLflow rejects."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES, SQLITE
from requests import HTTPError, RequestException
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from raycap.errors import TrackingError

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


def connect(uri: str) -> MlflowClient:
    """Return a client for a tracking URI, after a test of its database.

    MLflow retries a failing database for about 100 s (`create_sqlalchemy_engine_with_retry`: 10 attempts with growing
    delays) before it reports the error. This function opens the database first, and raises the error at once. A server
    (http, https) is not contacted.

    Raises OSError or SQLAlchemyError if the database cannot be opened, written, or is damaged.
    """
    for name in ("alembic", "mlflow"):  # raycap reports the errors that they would log with a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    dialect = uri.partition(":")[0].partition("+")[0]
    if dialect == SQLITE:
        if file := make_url(uri).database:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S})
        with engine.connect() as connection:
            # BEGIN IMMEDIATE takes the write lock. Setting user_version to its own value fails on a read-only database.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()  # "ok" or a description of the damage
            if damage != "ok":
                raise OSError(f"the database is damaged: {' '.join(str(damage).split())}")
    elif dialect in DATABASE_ENGINES:
        create_engine(uri, poolclass=NullPool).connect().close()
    return MlflowClient(uri)


@contextmanager
def unavailable_as_tracking_error(uri: str) -> Iterator[None]:
    """Raise TrackingError instead of errors that may pass, such as a refused connection or a locked database.

    Errors of requests that MLflow rejects pass unchanged.
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


def unusable(uri: str, error: Exception) -> TrackingError:
    """Return an error of one line that says why MLflow cannot be used, and what to do."""
    message = f"tracking.uri {uri}: MLflow cannot be used: {(str(error) or type(error).__name__).splitlines()[0]}"
    if not uri.startswith(SQLITE):
        return TrackingError(message)
    remedy = (
        "If the file is damaged, move it away: the next run, or `raycap sync`, logs all stored results to a new one"
    )
    return TrackingError(f"{message}. {remedy}")
