"""Command `raycap ui`: serves MLflow's page on a sweep."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from raycap import pipeline
from raycap.commands.arguments import Overrides, open_sweep
from raycap.errors import CannotRunError
from raycap.results import SweepRecord
from raycap.spec.document import SpecError
from raycap.storage.sweep_folder import SweepFolder

START_TIMEOUT_S = 60.0
"""Time to wait for the server before the browser is opened."""


def ui(
    sweep: Annotated[str, typer.Argument(metavar="SPEC|FOLDER", help="Sweep file, or folder of a sweep.")],
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    opens: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the link in a browser.", show_default="open if there is a display"),
    ] = None,
) -> None:
    """Serve MLflow's page with little memory, and print or open the link to the comparison of this sweep's trials.

    Examples:

      raycap ui specs/grid.yaml

      raycap ui runs/grid --port 5001 --no-open
    """
    from raycap.tracking.environment import configure_mlflow

    configure_mlflow()
    from raycap.tracking.runs import find_pages

    record = _record_of(sweep, tuple(overrides or ()))
    uri = record.tracking_uri
    try:
        pages = find_pages(record)
    except CannotRunError as error:
        raise SpecError([f"{sweep}: {error}; run the sweep first, or raycap sync its folder"]) from error
    is_served = uri.startswith("http")  # a server is running already
    if not is_served:
        _check_free(port)
    base = uri.rstrip("/") if is_served else f"http://127.0.0.1:{port}"
    link = pages.comparison(base)
    print(f"Compare the trials: {link}")
    print(f"The sweep:          {pages.sweep(base)}", flush=True)
    opened = link if (opens if opens is not None else _has_display()) else None
    if not is_served:
        raise typer.Exit(_serve(uri, port, opened))
    if opened:
        webbrowser.open(opened)


def _record_of(sweep: str, overrides: tuple[str, ...]) -> SweepRecord:
    """Return the record of a sweep from its file, or from its folder with the current storage."""
    if not Path(sweep).is_dir() and "://" not in sweep:
        return pipeline.prepare(sweep, overrides)[0]
    if overrides:
        raise SpecError([f"{sweep}: overrides apply to a spec, but this is a folder; remove {overrides[0]}"])
    return open_sweep(sweep, SweepFolder.SWEEP)[0]


def _check_free(port: int) -> None:
    """Raise SpecError if a port is in use; MLflow would print a traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was closed a moment ago is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError([f"--port: {port} cannot be used ({error.strerror}); give another one"]) from None


def _has_display() -> bool:
    """Whether the session is interactive and can show a browser."""
    has_display = sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return has_display and sys.stdout.isatty()


def _serve(uri: str, port: int, opened: str | None) -> int:
    """Serve MLflow's page until interrupted, and open a link in a browser once the server answers.

    Returns the exit code of the server.
    """
    from raycap.tracking.client import client_uri

    # One worker and no job runner reduce the memory from 2.4 to 0.5 GiB.
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": client_uri(uri),  # not an argument, which other users could read
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], env=environment)
    try:
        if opened and _answers(server, port):
            webbrowser.open(opened)
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()  # Ctrl-C also reaches the server, but a signal sent to this process alone does not
        server.wait()
        return 0


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; returns whether it did before the timeout."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return True
        except OSError:
            time.sleep(0.2)
    return False
