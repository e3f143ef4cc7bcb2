"""Command `raycap ui`: serves MLflow's page on a sweep."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Callable
from typing import Annotated

import typer

from raycap.commands.arguments import DEFAULT_STORAGE, Overrides, StorageOption, SweepArgument
from raycap.commands.named import find_sweep
from raycap.errors import CannotRunError
from raycap.host.isolation import child_environment
from raycap.pipeline import refuse_pool
from raycap.spec.document import SpecError
from raycap.storage.claims import holder_of
from raycap.storage.sweep_folder import SweepFolder


def ui(
    argument: SweepArgument,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    opens: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the link in a browser.", show_default="open if there is a display"),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Serve MLflow's web page, and print or open the link that compares the trials of this sweep.

    Examples:

      raycap ui specs/grid.yaml

      raycap ui runs/grid --port 5001 --no-open
    """
    from raycap.tracking.environment import configure_mlflow

    configure_mlflow()
    from raycap.tracking.runs import find_pages

    record, sweep_storage = find_sweep(argument, SweepFolder.SWEEP, overrides=tuple(overrides or ()), storage=storage)
    refuse_pool(record, "is not logged to MLflow")
    uri = record.tracking_uri
    try:
        pages = find_pages(record, is_running=holder_of(sweep_storage, record.spec.name) is not None)
    except CannotRunError as error:
        raise SpecError([f"{argument}: {error}"]) from error
    opens_browser = opens if opens is not None else _has_display()

    def show(base: str) -> None:
        link = pages.comparison(base)
        print(f"Compare the trials: {link}")
        print(f"The sweep:          {pages.sweep(base)}", flush=True)
        if opens_browser:
            webbrowser.open(link)

    if uri.startswith("http"):  # a server is running already
        show(uri)
    else:
        _check_free(port)
        raise typer.Exit(_serve(uri, port, show))


def _check_free(port: int) -> None:
    """Raise SpecError if a port is in use; MLflow would print a traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was closed a moment ago is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError([f"--port: {port} cannot be used ({error.strerror}); give another one"]) from None


def _has_display() -> bool:
    """Return whether the session is interactive and can show a browser."""
    has_display = sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return has_display and sys.stdout.isatty()


def _serve(uri: str, port: int, show: Callable[[str], None]) -> int:
    """Serve MLflow's page until interrupted, and call `show` with its address once the server listens.

    Returns the exit code of the server. Raises SpecError if it ends before it listens.
    """
    from raycap.tracking.client import client_uri

    # One worker and no job runner reduce the memory from 2.4 to 0.5 GiB.
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": client_uri(uri),  # not an argument, which other users could read
    }
    environment = os.environ | child_environment() | settings
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # By default, uvicorn prepends the working directory to its search path.
    options = shlex.join(["--app-dir", os.path.dirname(os.__file__)])
    command += ["--uvicorn-opts", options]
    server = subprocess.Popen(
        command, env=environment, stdout=2
    )  # to standard error: standard output has the links only
    try:
        if not _listens(server, port):
            problem = f"MLflow's server ended with exit code {server.returncode} before it listened on port {port}"
            raise SpecError([f"{problem}; its messages are above; try another --port"])
        show(f"http://127.0.0.1:{port}")
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()  # Ctrl-C also reaches the server, but a signal sent to this process alone does not
        server.wait()
        return 0


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers, and return whether it does; false if it ends before."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server.poll() is None  # otherwise another process answers
        except OSError:
            time.sleep(0.2)
    return False
