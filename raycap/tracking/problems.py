"""Messages for errors of MLflow, each with the problem and the remedy."""

import os
import re
import shlex
from pathlib import Path

import mlflow
import requests
from mlflow.exceptions import MlflowException

from raycap.errors import TrackingError
from raycap.spec.locations import database_path
from raycap.spec.uris import without_password

DAMAGED = re.compile("not a database|malformed|database is damaged")
SCHEMA = re.compile(r"found version (\w+)|Can't locate revision identified by '(\w+)'")
SERVER_FAILS = re.compile(r"too many (\d+) error responses")
MAX_CAUSE = 300
"""Number of characters of a cause that are shown."""
OTHER_URI = "or set tracking.uri to another database or server"


def unusable(uri: str, error: Exception) -> TrackingError:
    """Return an error whose message, in one line, is the reason for which MLflow cannot be used and the remedy."""
    if isinstance(error, TrackingError):
        return error
    problem, remedy = explain(uri, error)
    return TrackingError(f"tracking.uri {uri}: MLflow cannot be used: {problem}; {remedy}")


def explain(uri: str, error: Exception) -> tuple[str, str]:
    """Return the problem and the remedy, given an exception of MLflow, of a database or of the system."""
    cause = without_password(re.sub(r"^\(\w+(\.\w+)+\) ", "", (str(error) or type(error).__name__).splitlines()[0]))
    cause = cause[:MAX_CAUSE].rstrip(".")
    if isinstance(error, ModuleNotFoundError):
        return f"its driver is not installed ({cause})", f"install it with pip, {OTHER_URI}"
    if schema := SCHEMA.search(str(error)):
        return _explain_schema(uri, schema[1] or schema[2])
    path = database_path(uri)
    if path is not None:
        return _explain_file(Path(path), cause)
    if uri.startswith("http"):
        return _explain_server(uri, error, cause)
    if re.search("password|authentication|access denied", cause, re.IGNORECASE):
        return cause, (
            "set MLFLOW_TRACKING_URI to the URI with user and password, which raycap does not store, and leave them out of "
            "the spec; or use the files of the database's client, such as ~/.pgpass"
        )
    return cause, f"start the database server, correct the URI, {OTHER_URI}"


def _explain_schema(uri: str, revision: str) -> tuple[str, str]:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = {script.revision for script in scripts.walk_revisions()}
    ours = f"MLflow {mlflow.__version__}"
    if revision in known:
        upgrade = f"back it up and run `mlflow db upgrade {shlex.quote(uri)}`"
        return f"the database was written by an older version than {ours}", f"{upgrade}, {OTHER_URI}"
    newer = "install that version with pip"
    return (
        f"the database was written by a newer version than {ours} (its schema is {revision})",
        f"{newer}, {OTHER_URI}",
    )


def _explain_file(file: Path, cause: str) -> tuple[str, str]:
    """Explain an error of an SQLite database."""
    if DAMAGED.search(cause):
        again = "the next run, or `raycap sync`, logs all stored results to a new one"
        return f"{file}: {cause}", f"restore a backup, or move the file away: {again}"
    if "locked" in cause:
        end_process = f"end the process that uses it (`fuser {shlex.quote(str(file))}` prints its PID)"
        return f"{file} is locked by another process ({cause})", f"wait and try again, or {end_process}"
    if "full" in cause or "No space" in cause:
        return f"{file}: {cause}", f"free some space on its disk, {OTHER_URI}"
    if file.is_dir():
        return f"{file} is a folder ({cause})", f"name a file in it: {file.name}/mlflow.db"
    folder = next(parent for parent in file.parents if os.path.lexists(parent))
    if not folder.is_dir():
        return f"{folder} is not a folder", f"remove it, {OTHER_URI}"
    blocked = next((path for path in (folder, file) if path.exists() and not os.access(path, os.W_OK)), None)
    if blocked or "readonly" in cause or "Permission denied" in cause or "unable to open" in cause:
        return f"{blocked or file} cannot be written ({cause})", f"make it and its folder writable, {OTHER_URI}"
    return f"{file}: {cause}", f"remove the cause, {OTHER_URI}"


def _explain_server(uri: str, error: Exception, cause: str) -> tuple[str, str]:
    """Explain an error of an MLflow server."""
    origin = error.__context__ if isinstance(error, MlflowException) else error
    if match := SERVER_FAILS.search(str(error)):
        return (
            f"the server fails (status {match[1]})",
            f"read its log and repair it, or wait until it works, {OTHER_URI}",
        )
    if isinstance(origin, requests.exceptions.SSLError):
        return (
            f"no encrypted connection: {_innermost(str(origin))}",
            "use http:// if the server has no https, or trust its certificate with MLFLOW_TRACKING_SERVER_CERT_PATH",
        )
    if isinstance(origin, requests.exceptions.Timeout):
        return "the server does not answer in time", f"check whether it hangs, {OTHER_URI}"
    if isinstance(origin, requests.exceptions.ConnectionError):
        start = "start the server (`mlflow server`), correct host and port"
        return f"the server cannot be reached: {_innermost(str(origin))}", f"{start}, {OTHER_URI}"
    if "valid JSON" in str(error):
        return (
            "the response is not one of MLflow's API",
            f"correct the address, which may be that of a login page, {OTHER_URI}",
        )
    status = _status(error)
    credentials = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status == 401:
        return "the server does not accept the credentials (status 401)", f"set {credentials} in the environment"
    if status == 403:
        allow = f"ask for the permission, or set {credentials} of a user who has it"
        return f"the server refuses access (status 403: {cause})", allow
    if status == 404:
        return "there is no MLflow server at this address (status 404)", f"correct host, port and path, {OTHER_URI}"
    if status and status >= 500:
        return f"the server fails (status {status}: {cause})", f"read its log and repair it, {OTHER_URI}"
    return cause, f"read the server's log, {OTHER_URI}"


def _status(error: Exception) -> int | None:
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _innermost(message: str) -> str:
    """Return the last cause in a message of requests, such as `Connection refused`."""
    return re.split(r": |, '", message.rstrip("')\"( "))[-1]
