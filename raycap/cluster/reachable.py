"""Whether a Ray cluster answers, without joining it."""

import socket
from collections.abc import Mapping

from ray._private import services

from raycap.cluster.resources import CLUSTER_HEAD_MARKER

PATIENCE_S = 3.0


def where_trials_run(environment: Mapping[str, str]) -> str:
    """Where a sweep would run: on Ray of its own, or on a cluster. Raises OSError if that does not answer."""
    address = environment.get("RAY_ADDRESS", "")
    if address == "local" or not (address or CLUSTER_HEAD_MARKER.expanduser().exists()):
        return "this machine: a run starts Ray of its own"
    if address in ("", "auto"):
        found = services.find_gcs_addresses()
        if not found:
            raise OSError("no Ray runs on this machine")
        address = sorted(found)[0]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OSError(f"{address!r} is not of the form host:port")
    socket.create_connection((host, int(port)), PATIENCE_S).close()
    return f"the cluster at {address}, which answers"
