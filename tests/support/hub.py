"""A Hugging Face hub on this machine: what creating a repository and committing to it ask of the real one, over HTTP."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TOKEN = "hf_of_nobody"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their messages."""


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By kind and name, such as models/me/told."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Of a process that knows this hub and has a token for it."""
        own = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
        # Large files go by git-lfs over HTTP: the other way, Xet, is a protocol of its own.
        return os.environ | own | {"NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['type']}s/{asked['organization']}/{asked['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
            return (409 if known else 200), {"url": f"{self.url}/{name.removeprefix('models/')}"}
        if path == "/api/validate-yaml":
            asked = json.loads(body)
            faults = faults_of_card(asked["content"], asked["repoType"])
            return (400 if faults else 200), {"errors": [{"message": fault} for fault in faults], "warnings": []}
        if (found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path)) and method == "POST":
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if method == "PUT" and path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, {}
        found = re.fullmatch(r"/api/((?:model|dataset)s/[^/]+/[^/?]+)(?:/(\w+)/main)?(?:\?.*)?", path)
        if not found or found[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, self._asked_of(self.repositories[found[1]], found[1], found[2], body)

    def _asked_of(self, repository: Repository, name: str, what: str | None, body: bytes) -> Any:
        match what:
            case None:
                return {"id": name.partition("/")[2], "private": repository.private, "siblings": []}
            case "tree":
                return [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in repository.files]
            case "preupload":
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = {path: "lfs" if path.endswith((".safetensors", ".parquet")) else "regular" for path in files}
                return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            case "commit":
                header, *operations = [json.loads(line) for line in body.splitlines()]
                for operation, value in ((o["key"], o["value"]) for o in operations):
                    match operation:
                        case "file":
                            repository.files[value["path"]] = base64.b64decode(value["content"])
                        case "lfsFile":
                            repository.files[value["path"]] = self.objects[value["oid"]]
                        case "deletedFile":
                            del repository.files[value["path"]]
                repository.commits.append(header["value"]["summary"])
                return {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40}
        raise AssertionError(f"the hub was asked for {what}")


def faults_of_card(card: str, kind: str) -> list[str]:
    """What the hub would not take in the front matter of a README.md."""
    match = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if not match:
        return ["no front matter"]
    data = YAML(typ="safe").load(match[1])
    rules = {"license": str, "language": list, "tags": list, "datasets": list}
    rules |= {"library_name": str, "pipeline_tag": str} if kind == "model" else {"task_categories": list}
    needed = rules.keys() - {"datasets"}
    return [f"{field} must be there" for field in sorted(needed - data.keys())] + [
        f"{field} must be a {kind.__name__}"
        for field, kind in rules.items()
        if not isinstance(data.get(field, kind()), kind)
    ]


@contextmanager
def local_hub() -> Iterator[Hub]:
    """An empty hub, for as long as the context lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            known = self.headers["Authorization"] == f"Bearer {TOKEN}" or self.path.startswith("/lfs/")
            status, answer = hub.answer(self.command, self.path, body) if known else (401, {"error": "Bad token"})
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
