"""A Slurm cluster on hosts of this machine, from the packages slurm-wlm and munge of the system."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import SHARED, Host, hosts_on_a_bridge

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/srv/slurm/munge.socket
StateSaveLocation=/srv/slurm/state
SlurmdSpoolDir=/srv/slurm/spool-%n
SlurmctldPidFile=/srv/slurm/slurmctld.pid
SlurmdPidFile=/srv/slurm/slurmd-%n.pid
SlurmctldLogFile=/srv/slurm/slurmctld.log
SlurmdLogFile=/srv/slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=spot Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def can_start_slurm() -> bool:
    """Whether Slurm and munge are installed."""
    return all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged"))


@dataclass(frozen=True)
class Slurm:
    """A running Slurm cluster."""

    controller: Host
    nodes: list[Host]
    shared: Path
    """Folder of this machine that the hosts see as /srv."""

    def run(self, *words: str) -> str:
        """Run one of Slurm's commands and return its output."""
        return self.controller.run("env", "SLURM_CONF=/srv/slurm/slurm.conf", *words)

    def submit(self, *words: str) -> str:
        """Submit a job and return its id."""
        return self.run("sbatch", "--parsable", f"--chdir={SHARED}", *words).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return the properties of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def seconds_running(self, job_id: str) -> float:
        """Return how long the current attempt of a job has run."""
        hours, minutes, seconds = map(int, self.job(job_id)["RunTime"].split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def wait_for(self, job_id: str, *states: str, timeout_s: float = 300) -> dict[str, str]:
        """Wait until a job is in one of the states and return its properties."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(json.dumps(job))
            time.sleep(1)
        return job


@contextmanager
def slurm_cluster(folder: Path, *names: str) -> Iterator[Slurm]:
    """Start a controller and nodes with one CPU and one simulated GPU each."""
    with ExitStack() as stack:
        controller, *nodes = stack.enter_context(hosts_on_a_bridge(folder, "controller", *names))
        slurm, shared = folder / "shared" / "slurm", folder / "shared"
        (slurm / "state").mkdir(parents=True)
        (slurm / "munge.key").write_bytes(b"a key of tests, not a secret" * 40)
        (slurm / "munge.key").chmod(0o400)
        lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=1 Gres=gpu:1 State=UNKNOWN" for node in nodes]
        (slurm / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (slurm / "slurm.conf").write_text(CONFIGURATION.format(controller="controller", nodes="\n".join(lines)))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        munged = ["--foreground", "--force", *(f"--{o}=/srv/slurm/munge.{name}" for o, name in files.items())]
        daemons = [(controller, ["munged", *munged]), (controller, ["slurmctld", "-D"])]
        daemons += [(node, ["slurmd", "-D", "-N", node.name]) for node in nodes]
        for host, words in daemons:
            log = stack.enter_context((slurm / f"{words[0]}-{host.name}.out").open("w"))
            command = host.command("env", "SLURM_CONF=/srv/slurm/slurm.conf", *words)
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.kill)
            if words[0] == "munged":
                time.sleep(1)
        yield Slurm(controller, nodes, shared)
