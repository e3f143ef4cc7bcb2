"""Servers of OpenSSH on hosts of this machine, and a key that all of them accept."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.hosts import HOME, Host

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
CONFIGURATION = f"""\
HostKey /srv/ssh/host_key
AuthorizedKeysFile {HOME}/.ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


def can_start_ssh() -> bool:
    """Whether OpenSSH's server is installed."""
    return SSHD is not None


@contextmanager
def ssh_server(folder: Path, client: Host, *servers: Host) -> Iterator[None]:
    """Start servers, and create the key of the user of `client` that they accept; `folder` is that of the hosts."""
    files = folder / "shared" / "ssh"
    files.mkdir()
    home = folder / client.name / HOME.removeprefix("/")
    (home / ".ssh").mkdir(mode=0o700)
    for key in (files / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (files / "sshd_config").write_text(CONFIGURATION)
    with ExitStack() as stack:
        for server in servers:
            accepted = folder / server.name / HOME.removeprefix("/") / ".ssh" / "authorized_keys"
            accepted.parent.mkdir(mode=0o700)
            accepted.write_text((home / ".ssh" / "id_ed25519.pub").read_text())
            (folder / server.name / "run" / "sshd").mkdir()
            command = server.command(str(SSHD), "-D", "-e", "-f", "/srv/ssh/sshd_config")
            log = stack.enter_context((files / f"{server.name}.log").open("w"))
            stack.callback(stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log)).kill)
        time.sleep(1)
        yield
