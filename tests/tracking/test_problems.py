"""Tests of the messages for servers that do not work: each names the cause and the remedy, in one line."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from raycap.tracking.client import client_uri, unavailable_as_tracking_error
from raycap.tracking.problems import unusable


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status code at the beginning of its path."""

    def do_GET(self) -> None:
        body = b"<html>no API</html>"
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def message_of(uri: str) -> str:
    """Return the message for a server that cannot be used."""
    try:
        MlflowClient(client_uri(uri)).get_experiment_by_name("raycap")
    except Exception as error:
        return str(unusable(uri, error))
    raise AssertionError("the request succeeded")


@pytest.mark.parametrize(
    ("uri", "cause", "remedy"),
    [
        ("http://127.0.0.1:{port}/401", "401", "MLFLOW_TRACKING_USERNAME"),
        ("http://127.0.0.1:{port}/403", "403", "permission"),
        ("http://127.0.0.1:{port}/404", "404", "path"),
        ("http://127.0.0.1:{port}/500", "500", "log"),
        ("http://127.0.0.1:{port}/503", "503", "log"),
        ("http://127.0.0.1:{port}/200", "MLflow's API", "address"),
        ("http://127.0.0.1:1", "Connection refused", "mlflow server"),
        ("http://host.invalid:5000", "host.invalid", "host and port"),
        ("https://127.0.0.1:{port}", "encrypted", "http://"),
        ("postgresql+nodriver://127.0.0.1/db", "postgresql", "tracking.uri"),
    ],
)
def test_errors_of_servers_name_cause_and_remedy(
    uri: str, cause: str, remedy: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = message_of(uri.format(port=port))
    assert uri.format(port=port) in message
    assert cause in message
    assert remedy in message
    assert "move the file away" not in message
    assert "\n" not in message


def test_credentials_of_the_environment_are_used_and_not_shown(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Authorized(Handler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Authorized)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bare = f"http://127.0.0.1:{server.server_port}/401"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bare.replace("//", "//ada:secret1@"))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that the variables that client_uri sets are removed after the test
        monkeypatch.delenv(name)
    message = message_of(bare)
    server.shutdown()
    assert seen == ["Basic YWRhOnNlY3JldDE="]
    assert "secret1" not in message
    database = "postgresql://127.0.0.1/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:secret1@127.0.0.1/db")
    assert client_uri(database) == "postgresql://ada:secret1@127.0.0.1/db"
    error = OSError("cannot connect to postgresql://ada:secret1@127.0.0.1/db")
    assert "secret1" not in str(unusable(database, error))


def test_a_request_that_is_refused_passes_unchanged(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match="400") as caught, unavailable_as_tracking_error("http://host"):
        MlflowClient(f"http://127.0.0.1:{port}/400").get_experiment_by_name("raycap")
    assert type(caught.value).__name__ == "MlflowException"
