"""Locations of files and databases: the rules for all paths and URIs in specs, options and stored records.

- A path is used literally, so `?`, `%`, `#`, spaces and non-ASCII characters are characters of the name. A relative path
  starts at the working directory of the command.
- `~` at the beginning and `$NAME` are refused, because the same spec would denote different locations for different users.
- `..` after a symbolic link leads to the parent of the folder that the link points to, as in the kernel and not as in a
  shell.
- The path of a `file:` or `sqlite:` URI is percent-decoded; `?` and `#` are written as %3F and %23.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from raycap.spec.base import Text, broken_rule
from raycap.spec.uris import has_password, without_password

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
"""Dialects of databases that are servers. MLflow supports them beside SQLite."""
CREDENTIALS_REMEDY = (
    "for a server, set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; for a database, set MLFLOW_TRACKING_URI to "
    "the URI with credentials, and leave them out here"
)
TRACKING_FORMS = "sqlite:///FILE, http://HOST:PORT, or the URI of a database (postgresql://, mysql:// or mssql://)"
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEME_ALONE = re.compile(r"(file|s3|gs|gcs|abfss?|hdfs|viewfs|https?|sqlite|postgresql|mysql|mssql):", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(\w|\{)")


class LocationError(ValueError):
    """A path or URI breaks a rule; the message says which one and what to write instead."""


@contextmanager
def raise_broken_rule() -> Iterator[None]:
    """Convert LocationError to the error that validators of fields raise."""
    try:
        yield
    except LocationError as error:
        raise broken_rule("{problem}", problem=str(error)) from None


def is_uri(location: str) -> bool:
    """Return whether a location has the form scheme://..."""
    return _URI.match(location) is not None


def refuse_shell_syntax(location: str) -> None:
    """Raise LocationError if a path or URI that a user wrote contains `~` or variables for a shell to replace.

    Paths that raycap derives are not checked, since `$` may be part of the name of any folder.
    """
    path = re.sub(r"^(file|sqlite(\+\w+)?):/{0,3}", "", location, flags=re.IGNORECASE)
    if path.startswith("~"):
        raise LocationError(
            f"must not begin with '~', got {location!r}; write the path in full, or ./~ for a file of that name"
        )
    if _VARIABLE.search(location):
        raise LocationError(
            f"must not contain variables, got {location!r}; write the path in full, or give it on the command line, where "
            "the shell replaces them"
        )


def local_path(location: str, folder: str = "") -> str | None:
    """Return the absolute path of a local file or folder, or None for any other URI, such as s3://...

    Args:
        location: A path, or a URI. For file:///..., the percent-decoded path is returned.
        folder: Absolute path of the folder at which relative paths start; by default the working directory.

    Raises:
        LocationError: The location breaks a rule of this module.
    """
    if re.match("file:", location, re.IGNORECASE):
        return _file_path(location)
    if is_uri(location):
        return None
    if match := _SCHEME_ALONE.match(location):
        raise LocationError(
            f"must be a path or a URI of the form {match[1]}://..., got {location!r}; for a file of that name, write "
            f"./{location}"
        )
    return _absolute(location, folder)


def absolute_location(location: str, folder: str = "") -> str:
    """Return a location as an absolute path or URI. A file: URI stays a URI: it states that every machine has the file.

    Raises LocationError.
    """
    path = local_path(location, folder)
    if path is None:
        return location
    return Path(path).as_uri() if re.match("file:", location, re.IGNORECASE) else path


def canonical_location(location: str) -> str:
    """Return a form that is equal for all names of one location: without symbolic links, or without trailing slashes."""
    path = local_path(location)
    return location.rstrip("/") if path is None else os.path.realpath(path)


def check_tracking_uri(uri: str) -> None:
    """Raise LocationError if a URI is none of the forms that raycap can log to."""
    if has_password(uri):
        raise LocationError(f"must not contain credentials, got '{without_password(uri)}'; {CREDENTIALS_REMEDY}")
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    dialect, has_authority = scheme.partition("+")[0], uri[len(scheme) :].startswith("://")
    if dialect == "sqlite":
        database_path(uri)
    elif dialect in DATABASES and has_authority:
        return
    elif scheme in ("http", "https") and has_authority:
        _check_server(uri)
    else:
        raise LocationError(f"must be {TRACKING_FORMS}, got {uri!r}{_suggestion(uri, dialect, has_authority)}")


def environment_tracking_uri() -> str | None:
    """Return the tracking URI of the environment variable without its credentials, or None if it is not set.

    Raises LocationError if it is malformed.
    """
    uri = os.environ.get(TRACKING_VARIABLE, "").strip()
    if not uri:
        return None
    bare = without_credentials(uri)
    try:
        check_tracking_uri(bare)
    except LocationError as error:
        raise LocationError(f"environment variable {TRACKING_VARIABLE}: {error}") from None
    return bare


def without_credentials(uri: str) -> str:
    """Return the URI of a server or database without user, password and query parameters with secrets."""
    bare = re.sub(r"^([A-Za-z][\w+.-]*://)[^/?#]*@", r"\1", uri)
    base, _, query = bare.partition("?")
    kept = [
        one for one in query.split("&") if one and not has_password(f"{base}?{one}") and not one.startswith("user=")
    ]
    return f"{base}?{'&'.join(kept)}" if kept else base


def database_path(uri: str, folder: str = "") -> str | None:
    """Return the absolute path of the file of an SQLite database, or None for other databases and servers.

    Raises LocationError if the URI of an SQLite database is malformed.
    """
    scheme, _, rest = uri.partition(":")
    if scheme.lower().partition("+")[0] != "sqlite":
        return None
    file, mark, query = rest.removeprefix("///").partition("?")
    if not rest.startswith("///") or not file or file.startswith((":", "file:")):
        name = file.removeprefix("//")
        is_file = name.strip("/") and not name.startswith((":", "file:", "/:", "/file:"))
        advice = f"; write {SQLITE}{name}" if is_file else "; name a file, such as sqlite:///mlflow.db"
        raise LocationError(f"must be {SQLITE}FILE, or {SQLITE}/FOLDER/FILE for an absolute path, got {uri!r}{advice}")
    if mark and ("=" not in query or "/" in query):
        raise LocationError(f"must have no '?' in the name of the file, got {uri!r}; write %3F instead")
    return _absolute(unquote(file), folder)


def database_uri(path: str) -> str:
    """Return the URI of an SQLite database at a path."""
    return SQLITE + path.replace("%", "%25").replace("?", "%3F")


def absolute_tracking_uri(uri: str, folder: str = "") -> str:
    """Return a tracking URI that does not depend on the working directory. Raises LocationError for malformed URIs."""
    check_tracking_uri(uri)
    path = database_path(uri, folder)
    if path is None:
        return uri.rstrip("/")
    query = uri.partition("?")[2]
    return database_uri(path) + (f"?{query}" if query else "")


def _absolute(path: str, folder: str) -> str:
    if "\0" in path:
        raise LocationError(f"must not contain a null character, got {path!r}; remove it")
    whole = os.path.join(folder or os.getcwd(), path)
    parts = whole.split("/")
    if ".." in parts:
        # Only the part up to the last `..` is resolved, so that other symbolic links keep their names.
        after = len(parts) - parts[::-1].index("..")
        whole = "/".join([os.path.realpath("/".join(parts[:after])), *parts[after:]])
    normal = os.path.normpath(whole)
    return normal[1:] if normal.startswith("//") else normal


def _file_path(uri: str) -> str:
    """Return the path of a file: URI."""
    rest = uri[len("file:") :]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest.removeprefix("/"))
    relative = not rest.startswith("/") or not slash or host.lower() not in ("", "localhost")
    if relative:
        raise LocationError(
            f"must be of the form file:///FOLDER with an absolute path, got {uri!r}; or write the path alone"
        )
    if "?" in path or "#" in path:
        raise LocationError(
            f"must have no '?' and no '#' in a file: URI, got {uri!r}; write %3F and %23, or the path alone"
        )
    return _absolute("/" + unquote(path), "")


def _check_server(uri: str) -> None:
    parts = urlsplit(uri)
    try:
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is no number, or too large
        has_host = False
    if not has_host:
        raise LocationError(
            f"must be the address of an MLflow server, http://HOST:PORT, got {uri!r}; correct host and port"
        )
    if parts.query or parts.fragment:
        server = f"{parts.scheme}://{parts.netloc}"
        raise LocationError(f"must be the address of an MLflow server and not of a page, got {uri!r}; write {server}")


def _suggestion(uri: str, dialect: str, has_authority: bool) -> str:
    """Return the URI that the user probably meant, as the end of an error."""
    if dialect == "postgres":
        return f"; write postgresql{uri[len(dialect) :]}"
    if dialect in (*DATABASES, "http", "https"):
        return f"; write {uri.partition(':')[0]}://..."
    if not has_authority and re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        return f"; write http://{uri.rstrip('/')}"
    if dialect == "file" or (not has_authority and not re.search(r"\.(db|sqlite3?)$", uri)):
        return "; MLflow's folders of files are not supported: write sqlite:///FOLDER/mlflow.db"
    return "" if has_authority else f"; write {SQLITE}{uri}"


def _checked(location: str) -> str:
    with raise_broken_rule():
        refuse_shell_syntax(location)
        local_path(location)
    return location


def _checked_local(location: str) -> str:
    _checked(location)
    if is_uri(location) and local_path(location) is None:
        raise broken_rule(
            "must be a local path or file:///..., got '{got}'; copy it to a local folder first", got=location
        )
    return location


def _checked_hub_name(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*", path):
        raise broken_rule(
            "must be a name on the Hugging Face Hub in the form owner/name, got '{got}'; a file or folder is given as "
            "source: disk for profiles, and as path for a tokenizer",
            got=path,
        )
    return path


HubName = Annotated[str, AfterValidator(_checked_hub_name)]
"""Name of a dataset or model on the Hugging Face Hub."""
Location = Annotated[Text, AfterValidator(_checked)]
"""Path or URI of a file or folder that trials read."""
LocalLocation = Annotated[Text, AfterValidator(_checked_local)]
"""Path or file: URI of a file or folder that trials read."""
