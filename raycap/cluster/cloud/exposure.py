"""Services of a cluster file that others can reach without a token or password, for `raycap cluster check`."""

import re
from collections.abc import Iterator

from raycap.cluster.cloud.document import ClusterDocument, Fault

TOKEN = "RAY_AUTH_MODE=token"
MLFLOW = re.compile(r"\bmlflow server\b.*--host[= ]+(?:0\.0\.0\.0|::)")
PUBLIC_SERVICES = ("LoadBalancer", "NodePort")


def exposed_services(documents: list[ClusterDocument], *, sets_token: bool) -> Iterator[Fault]:
    """Yield the services that accept connections from other machines without a token or password.

    `sets_token` states that Ray's token is required by a setting that is not part of the command that starts Ray.
    """
    has_policy = any(document.value_at("kind") == "NetworkPolicy" for document in documents)
    for document in documents:
        yield from _ray_of_pods(document)
        for path in document.lines:
            value = document.value_at(*path)
            if isinstance(value, list) and path[-1:] in (("args",), ("command",)):
                value = " ".join(map(str, value)).replace(",", "")
            if not isinstance(value, str):
                continue
            if "ray start" in value and not (sets_token or TOKEN in value):
                yield document.fault(path, _ray_rule(TOKEN))
            if MLFLOW.search(value) and "basic-auth" not in value and not has_policy:
                rule = "MLflow on all interfaces: everyone who can reach it can read and change runs"
                yield document.fault(path, f"{rule}; use --host 127.0.0.1, --app-name basic-auth, or a NetworkPolicy")
        if document.value_at("kind") == "Service" and document.value_at("spec", "type") in PUBLIC_SERVICES:
            name = document.value_at("metadata", "name")
            rule = f"the service {name}, from outside of the Kubernetes cluster"
            yield document.fault(("spec", "type"), f"{rule}; use `kubectl port-forward service/{name}` instead")


def _ray_of_pods(document: ClusterDocument) -> Iterator[Fault]:
    """Yield an exposed Ray of KubeRay, whose operator starts it."""
    for path in (("spec", "rayClusterSpec"), ("spec",)):
        if document.value_at(*path, "headGroupSpec") and document.value_at(*path, "authOptions", "mode") != "token":
            yield document.fault((*path, "authOptions"), _ray_rule("authOptions: { mode: token }"))


def _ray_rule(setting: str) -> str:
    return f"Ray, with its dashboard and job API: everyone who can reach a machine can run code there; set {setting}"
