"""MLflow as something that may be out of reach, damaged, or of another opinion."""

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
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""Error codes of what would be refused again. Whatever else MLflow answers may pass: it counts as being away."""


def client_of(uri: str) -> MlflowClient:
    """MLflow at a URI. Raises at once what is wrong with a database, which MLflow itself would try for two minutes."""
    for name in ("alembic", "mlflow"):  # what goes wrong is told by us
        logging.getLogger(name).setLevel(logging.CRITICAL)
    dialect = uri.partition(":")[0].partition("+")[0]
    if dialect == SQLITE:
        if file := make_url(uri).database:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S})
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")  # nothing but a try to write
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if damage != "ok":
                raise OSError(f"the database is damaged: {' '.join(str(damage).split())}")
    elif dialect in DATABASE_ENGINES:
        create_engine(uri, poolclass=NullPool).connect().close()
    return MlflowClient(uri)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Raise TrackingError for what may pass, as when nobody answers or the database is locked; refusals go through."""
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        refused = isinstance(error, HTTPError) and error.response is not None and error.response.status_code < 500
        if isinstance(error, MlflowException):  # a plain DatabaseError says that the file itself is damaged
            refused = error.error_code in REFUSALS and type(error.__cause__) is not DatabaseError
        if refused:
            raise
        raise cannot_be_used(uri, error) from error


def cannot_be_used(uri: str, error: Exception) -> TrackingError:
    """What to tell of an error, in one line, and what to do."""
    told = f"tracking.uri {uri}: MLflow cannot be used: {(str(error) or type(error).__name__).splitlines()[0]}"
    if not uri.startswith(SQLITE):
        return TrackingError(told)
    return TrackingError(
        f"{told}. If the file is damaged, move it away: the next run, or `raycap sync`, logs all stored results in a new one"
    )
