"""raycap ui: MLflow's page on a sweep."""

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
from raycap.spec import SweepSpec
from raycap.spec.file import SpecError

START_TIMEOUT_S = 60.0
"""How long a browser waits for the page."""


def ui(
    sweep: Annotated[str, typer.Argument(metavar="SPEC|FOLDER", help="Sweep file, or the folder of a sweep.")],
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page, on this machine alone.")] = 5000,
    opens: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the link in a browser.", show_default="where there is a screen"),
    ] = None,
) -> None:
    """Start MLflow's page, light, and print or open the link that sets this sweep's trials side by side.

    Examples:

      raycap ui specs/grid.yaml

      raycap ui runs/grid --port 5001 --no-open
    """
    from raycap.tracking.tracker import find_pages

    spec = _spec_of(sweep, tuple(overrides or ()))
    uri = spec.tracking.uri
    try:
        pages = find_pages(spec.tracking, spec.name, spec.storage)
    except CannotRunError as error:
        raise SpecError([f"{sweep}: {error}; run the sweep first, or raycap sync its folder"]) from error
    is_served = uri.startswith("http")  # by somebody else
    if not is_served:
        _check_free(port)
    base = uri.rstrip("/") if is_served else f"http://127.0.0.1:{port}"
    link = pages.comparison(base)
    print(f"Compare the trials: {link}")
    print(f"The sweep itself:   {pages.sweep(base)}", flush=True)
    opened = link if (opens if opens is not None else _has_screen()) else None
    if not is_served:
        raise typer.Exit(_serve(uri, port, opened))
    if opened:
        webbrowser.open(opened)


def _spec_of(sweep: str, overrides: tuple[str, ...]) -> SweepSpec:
    """The spec of a sweep, which is named by its file or by its folder, with its storage as it is now."""
    if not Path(sweep).is_dir() and "://" not in sweep:
        return pipeline.prepare(sweep, overrides)[0].spec
    if overrides:
        raise SpecError([f"{sweep}: overrides belong to a spec, but this is a folder; leave {overrides[0]} out"])
    return open_sweep(sweep, "sweep.json")[0].spec


def _check_free(port: int) -> None:
    """Raise SpecError if something listens at a port already: MLflow would only say so in a traceback."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left a moment ago is free
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError([f"--port: {port} cannot be used ({error.strerror}); take another"]) from None


def _has_screen() -> bool:
    """Whether a person sits here, and a browser would be seen."""
    shows = sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return shows and sys.stdout.isatty()


def _serve(uri: str, port: int, opened: str | None) -> int:
    """Serve the page until it is interrupted, and show it in a browser once it is there; the exit code."""
    # One worker and no job runner: 0.5 GiB instead of 2.4.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], env=environment)
    try:
        if opened and _answers(server, port):
            webbrowser.open(opened)
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()  # a terminal has interrupted it too, but whoever sent a signal to us alone has not
        server.wait()
        return 0


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait for the page. Whether it came."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return True
        except OSError:
            time.sleep(0.2)
    return False
