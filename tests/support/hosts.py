"""Hosts on this machine: network namespaces with their own address, host name, processes and folders. They require root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

BRIDGE = "raycap-test"
NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.1"
"""Address of this machine on the bridge to the hosts."""
UNSHARE = ["unshare", "--fork", "--pid", "--mount-proc", "--mount", "--uts", "--net", "--kill-child"]
SHARED = Path("/srv")
"""Folder that all hosts share."""
HOME = "/home/lab"
"""Home folder of the user of a host, who is root."""
INIT = """\
set -e
hostname {name}
ip link set lo up
mount --bind {folder}/shared /srv
mount --bind {folder}/{name}/home /home
mount --bind {folder}/{name}/run /run
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/{name}/tmp /tmp
echo ready
while true; do sleep 1 & wait; done
"""
"""Program of the first process of a host. It collects the exit codes of processes that have lost their parent."""


@dataclass(frozen=True)
class Host:
    """A host with private folders /tmp, /run and /home; all other folders are those of this machine."""

    name: str
    address: str
    pid: int
    """Id of the host's first process on this machine."""

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another command on the host."""
        spaces = ["--mount", "--uts", "--net", "--pid"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--wd=/", "--", "env", f"HOME={HOME}", *words]

    def run(self, *words: str, environment: dict[str, str] | None = None) -> str:
        """Run a command on the host and return its output. Raises CalledProcessError if it fails."""
        done = subprocess.run(self.command(*words), env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def sees_token_required(self, address: str) -> bool:
        """Whether Ray's control store at an address answers this host, but only with a token."""
        program = (
            f"from raycap.cluster import address as a; a.CONNECT_TIMEOUT_S = 60; print(a.requires_token('{address}'))"
        )
        root = Path(__file__).parents[2]
        return self.run("env", f"PYTHONPATH={root}", sys.executable, "-c", program).strip() == "True"

    def set_link(self, state: str) -> None:
        """Connect the host to the network ("up"), or cut it off ("down")."""
        _ip("link", "set", f"rc-{self.name}", state)


def can_create_hosts() -> bool:
    """Whether this process may create namespaces, and the programs for it are installed."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("nsenter")):
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def processes_on(*hosts: Host) -> list[psutil.Process]:
    """Return the processes that run on hosts."""
    spaces = {os.readlink(f"/proc/{host.pid}/ns/pid") for host in hosts}
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it has ended
            if os.readlink(f"/proc/{process.pid}/ns/pid") in spaces and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def exposures_of(secret: str, folder: Path, *hosts: Host) -> list[str]:
    """Return the command lines of processes on hosts, and the files in a folder, that contain a secret."""
    found = []
    for process in processes_on(*hosts):
        with suppress(psutil.Error):
            found += [word for word in process.cmdline() if secret in word]
    return found + [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@contextmanager
def hosts_on_a_bridge(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Create hosts that reach each other and this machine by name and address, and remove them at the end.

    `folder` gets the private folders of the hosts, and the folder `shared` that they all see as /srv.
    """
    addresses = {name: f"{NETWORK}.{10 + index}" for index, name in enumerate(names)}
    lines = ["127.0.0.1 localhost", f"{GATEWAY} {os.uname().nodename}", *(f"{a} {n}" for n, a in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "passwd").write_text(Path("/etc/passwd").read_text().replace(":/root:", f":{HOME}:", 1))
    (folder / "shared").mkdir()
    with ExitStack() as stack:
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "delete", BRIDGE)
        _ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield [_start_host(folder, name, address, stack) for name, address in addresses.items()]


def _start_host(folder: Path, name: str, address: str, stack: ExitStack) -> Host:
    """Start a host and connect it to the bridge; `stack` removes it."""
    for each in ("tmp", "run", "home/lab"):
        (folder / name / each).mkdir(parents=True)
    (folder / name / "tmp").chmod(0o1777)
    program = INIT.format(name=name, folder=folder)
    init = stack.enter_context(
        subprocess.Popen([*UNSHARE, "bash", "-c", program], stdout=subprocess.PIPE, text=True, cwd="/")
    )
    stack.callback(init.kill)  # its child, and with it all processes of the host, are killed as well
    assert init.stdout
    if init.stdout.readline() != "ready\n":
        raise OSError(f"the host {name} does not start")
    pid = int(Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()[0])
    _ip("link", "add", f"rc-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    stack.callback(_ip, "link", "delete", f"rc-{name}")  # the system removes it too, but seconds later
    _ip("link", "set", f"rc-{name}", "master", BRIDGE, "up")
    host = Host(name, address, pid)
    host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    host.run("ip", "link", "set", "eth0", "up")
    host.run("ip", "route", "add", "default", "via", GATEWAY)
    return host


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
