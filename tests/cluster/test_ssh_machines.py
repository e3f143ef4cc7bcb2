"""A sweep on machines that are reached by SSH, with the template, `ray up` and `ray job submit`, while one is cut off."""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import psutil
import pytest

from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from tests.support.decided import decided
from tests.support.faults import results_in, wait_until
from tests.support.hosts import HOME, Host, can_create_hosts, exposures_of, hosts_on_a_bridge, processes_on
from tests.support.ssh import can_start_ssh, ssh_server

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not (can_create_hosts() and can_start_ssh()), reason="needs root and OpenSSH's server"),
]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.executable).parents[1]
SPEC = """\
name: machines
trial:
  profiles: {num_profiles: 500, num_relations: 4, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 16, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 1500}, batch_size: 64, num_evaluations: 20, optimizer: {lr: 0.01}}
grid:
  training.seed: [0, 1, 2, 3, 4, 5, 6, 7]
execution: {checkpoint_every_s: 2}
"""
RAY = f"export PATH={ENVIRONMENT}/bin:$PATH RAY_AUTH_MODE=token; umask 077; cd /srv/project && ray"


def cluster_file(head: Host, worker: Host) -> str:
    """Return the template with the addresses of the hosts, and with an environment that needs no network to install."""
    text = decided(render_template(Template.ONPREM, Versions.of_environment()))
    for old, new in {
        r"head_ip: .*": f"head_ip: {head.address}",
        r"worker_ips: .*": f"worker_ips: [{worker.address}]",
        r"ssh_user: .*": "ssh_user: root",
        r"test -x ~/raycap-env/bin/python \|\| .*": f"ln -sfn {ENVIRONMENT} ~/raycap-env",
        r"~/raycap-env/bin/pip install .*": "echo 'export PYTHONPATH=$HOME/raycap OMP_NUM_THREADS=1' >> ~/.bashrc",
    }.items():
        text, changes = re.subn(old, new, text)
        assert changes
    return text


@contextmanager
def dashboard(laptop: Host) -> Iterator[None]:
    """Forward the port of the dashboard, as `ray dashboard` does for as long as it runs."""
    process = subprocess.Popen(
        laptop.command("bash", "-c", f"{RAY} dashboard machines.yaml"), stdout=subprocess.DEVNULL
    )
    try:
        answers = laptop.command("bash", "-c", "true < /dev/tcp/127.0.0.1/8265")
        wait_until(lambda: not subprocess.run(answers, capture_output=True, check=False).returncode, 60)
        yield
    finally:
        process.kill()
        process.wait()


def ray_processes(*hosts: Host) -> list[str]:
    """Return the names of Ray's processes on hosts."""
    names = []
    for process in processes_on(*hosts):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            names.append(process.name())
    return [name for name in names if "ray" in name or name == "gcs_server"]


def test_a_sweep_on_machines_reached_by_ssh_survives_the_loss_of_one(tmp_path: Path) -> None:
    with hosts_on_a_bridge(tmp_path, "laptop", "head", "worker") as (laptop, head, worker):
        with ssh_server(tmp_path, laptop, head, worker):
            project, runs = tmp_path / "shared" / "project", tmp_path / "shared" / "runs"
            (project / "sweeps").mkdir(parents=True)
            (project / "sweeps" / "spec.yaml").write_text(SPEC)
            shutil.copytree(ROOT / "raycap", project / "raycap", ignore=shutil.ignore_patterns("__pycache__"))
            (project / "machines.yaml").write_text(cluster_file(head, worker))

            def ray(command: str) -> str:
                done = subprocess.run(
                    laptop.command("bash", "-c", f"{RAY} {command} 2>&1"), capture_output=True, text=True, check=False
                )
                print(f"$ ray {command}\n{done.stdout}", flush=True)
                assert done.returncode == 0, done.stdout
                return done.stdout

            ray("get-auth-token --generate > /dev/null")
            ray("up -y machines.yaml")
            token = (tmp_path / "laptop" / HOME.removeprefix("/") / ".ray" / "auth_token").read_text().strip()
            with dashboard(laptop):
                command = (
                    "python -m raycap cluster wait 2 && python -m raycap.sweep spec.yaml "
                    "storage=file:///srv/runs tracking.uri=http://127.0.0.1:5000"
                )
                submitted = ray(
                    "job submit --no-wait --submission-id sweep --address http://127.0.0.1:8265 --working-dir sweeps "
                    f"-- bash -c '{command}'"
                )
                assert token not in submitted
                assert laptop.sees_token_required("head:6379")
                results = runs / "trials"
                wait_until(lambda: len(list(results.glob("*/result.json"))) >= 2, 400)
                assert exposures_of(token, runs, head, worker) == []
                worker.set_link("down")
                time.sleep(20)
                worker.set_link("up")
                wait_until(lambda: len(list(results.glob("*/result.json"))) == 8, 600)
                wait_until(lambda: "succeeded" in ray("job status --address http://127.0.0.1:8265 sweep"), 400)
                ray("job logs --address http://127.0.0.1:8265 sweep")
                assert ray_processes(worker)
            ray("down -y machines.yaml")
            # `ray down` stops the head; the raylets of other machines end once they have not reached it for a minute.
            wait_until(lambda: not ray_processes(head, worker), 180)
        found = results_in(runs)
        assert len(found) == 8
        assert {result.provenance.host for result in found.values()} == {"head", "worker"}
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/head{HOME}/mlflow.db")
        logged = client.search_runs([client.get_experiment_by_name("raycap").experiment_id])
        assert Counter(run.info.status for run in logged) == {"FINISHED": 9}
