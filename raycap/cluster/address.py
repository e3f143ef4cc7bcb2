"""Address of the Ray cluster that a sweep uses, and a check within seconds that it answers."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from ray._private import services
from ray._private.utils import read_ray_address

from raycap.errors import CannotRunError

LOCAL = "local"
"""Value of RAY_ADDRESS that names no cluster: the run starts Ray on this machine."""
AUTO = "auto"
"""Value of RAY_ADDRESS that names the cluster that was started on this machine."""
CONNECT_TIMEOUT_S = 3.0
"""Time to wait for a connection to a cluster, and for its answer."""
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""Method of Ray's control store that every client may call. An empty message is a valid request."""
REMEDY = "start the cluster, set RAY_ADDRESS to another one, or set RAY_ADDRESS=local to run on this machine alone"


def cluster_configuration() -> Path:
    """Return the path at which `ray up` leaves the cluster's configuration on the head node."""
    return Path(os.path.expanduser("~"), "ray_bootstrap_config.yaml")  # Path.expanduser raises if there is no home


def cluster_address(environment: Mapping[str, str]) -> str:
    """Return the address of the cluster that a sweep with these environment variables uses, as host:port, or LOCAL.

    It is the first of these that exists: RAY_ADDRESS; the cluster of `ray up` if this machine is its head; this machine.

    Raises:
        CannotRunError: The address has another form, or none or several clusters run on this machine although one is
            expected.
    """
    given = environment.get("RAY_ADDRESS", "").strip()
    address = given or (AUTO if cluster_configuration().exists() else LOCAL)
    if address == LOCAL:
        return LOCAL
    if address == AUTO:
        reason = "RAY_ADDRESS=auto" if given else f"{cluster_configuration()} belongs to the head of a cluster"
        return _address_on_this_machine(reason)
    if address.startswith("ray://"):
        raise CannotRunError(
            f"RAY_ADDRESS={address}: a connection through Ray Client cannot pause trials",
            "start the command on a machine of the cluster with RAY_ADDRESS=HOST:6379, or with `ray job submit`",
        )
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise CannotRunError(f"RAY_ADDRESS={address}: must be host:port, auto or local", REMEDY)
    return address


def _address_on_this_machine(reason: str) -> str:
    """Return the address of the cluster that `ray start` started on this machine.

    `reason`, the reason for which one is expected, begins the message of the error if there is none.
    """
    started: str | None = read_ray_address()  # from a file that Ray removes when the cluster is stopped
    if started:
        return started
    # Addresses on the loopback interface belong to the local Ray instances of other sweeps, which are not clusters.
    found = sorted(address for address in services.find_gcs_addresses() if not _is_loopback(address))
    if len(found) == 1:
        return str(found[0])
    problem = f"several clusters run on this machine: {', '.join(found)}" if found else "no Ray runs on this machine"
    raise CannotRunError(f"{reason}, but {problem}", REMEDY)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def requires_token(address: str) -> bool:
    """Check that a Ray cluster answers at host:port, and return whether it requires a token.

    Without this check, `ray.init` would retry for 15 minutes.

    Raises:
        CannotRunError: No process answers there, or one that is not Ray.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is no valid host name
        problem = f"no Ray cluster answers at {address} ({error or type(error).__name__})"
        raise CannotRunError(problem, REMEDY) from None
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise CannotRunError(
                f"the server at {address} does not answer as a Ray cluster ({error.code().name})", REMEDY
            ) from None
    return False
