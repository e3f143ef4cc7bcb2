"""Connections to Ray: who can reach a run's own instance, clusters that do not answer, and temporary folders of runs."""

import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from raycap.cluster.address import LOCAL, cluster_address, requires_token
from raycap.cluster.private_folder import MAX_BASE_BYTES, MIN_ORPHAN_AGE_S, PREFIX, private_folder
from raycap.errors import CannotRunError
from tests.support.faults import WORKER, processes
from tests.support.simulated_cluster import free_port


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_run_s_ray_listens_on_loopback_and_requires_its_token() -> None:
    import ray

    node = ray._private.worker._global_node
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        if process not in processes(WORKER)  # several workers of a trial meet at a port that is open
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert requires_token(node.gcs_address)
    for path, body in (("api/version", None), ("api/jobs/", b'{"entrypoint": "id"}')):
        request = urllib.request.Request(f"http://{node.webui_url}/{path}", body, {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 401
    private = next(folder for folder in Path(node.get_session_dir_path()).parents if folder.name.startswith(PREFIX))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    token = os.environ["RAY_AUTH_TOKEN"]
    assert not any(
        token in argument for child in psutil.Process().children(recursive=True) for argument in child.cmdline()
    )


@pytest.mark.parametrize("kind", ["nothing", "silent", "web server"])
def test_a_cluster_that_does_not_answer_is_refused(kind: str) -> None:
    """Ray itself would try to connect for a quarter of an hour."""
    with socket.socket() as silent, HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        threading.Thread(target=web.serve_forever, daemon=True).start()
        port = {"nothing": free_port(), "silent": silent.getsockname()[1], "web server": web.server_port}[kind]
        with pytest.raises(CannotRunError, match=f"127.0.0.1:{port}.*RAY_ADDRESS=local"):
            requires_token(cluster_address({"RAY_ADDRESS": f"127.0.0.1:{port}"}))
        web.shutdown()


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:0", "host:port", ":6379"])
def test_addresses_of_other_forms_are_refused(address: str) -> None:
    with pytest.raises(CannotRunError, match=address):
        cluster_address({"RAY_ADDRESS": address})


def test_the_head_of_a_cluster_that_does_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster_address({}) == LOCAL
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    (tmp_path / "ray").mkdir()
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    assert cluster_address({"RAY_ADDRESS": "local"}) == LOCAL
    with pytest.raises(CannotRunError, match=address):
        requires_token(cluster_address({}))


def test_a_home_that_is_unknown_means_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # a user without a name
    assert cluster_address({}) == LOCAL


def test_the_folder_of_a_run_is_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "ray").mkdir()
            (folder / "ray" / "log").touch()
    finally:
        os.umask(before)
    assert not folder.exists()
    for unusable in (tmp_path / ("x" * MAX_BASE_BYTES), tmp_path / "missing"):
        monkeypatch.setenv("RAY_TMPDIR", str(unusable))
        with pytest.raises(CannotRunError, match="set RAY_TMPDIR"), private_folder():
            pass


HOLD = """\
import sys
from raycap.cluster.private_folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_runs_are_removed_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
    processes[0].kill()
    processes[0].wait()
    long_ago = time.time() - 2 * MIN_ORPHAN_AGE_S
    for folder in (dead, alive):
        (folder / "file").touch()
        os.utime(folder, (long_ago, long_ago))
    with private_folder():
        assert not dead.exists()
        assert (alive / "file").exists()
    processes[1].communicate()
    assert not alive.exists()
