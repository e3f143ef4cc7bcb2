"""A local server with the part of the Hugging Face hub's HTTP API that creates repositories and commits to them."""

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

TOKEN = "hf_local_test_token"


@dataclass
class Repository:
    """One repository of the hub."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Messages of the commits, in order."""


@dataclass
class Hub:
    """The state of the server and the handlers of its requests."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """Repositories by kind and name, such as `models/USER/NAME`."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Environment of a process that uses this hub with a valid token; `folder` takes its cache."""
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
        # Without Xet, large files are uploaded by the git-lfs protocol, which this server implements.
        return os.environ | settings | {"NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """HTTP status and JSON body of the response to a request."""
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['type']}s/{request['organization']}/{request['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, Repository(request.get("visibility") == "private"))
            return (409 if known else 200), {"url": f"{self.url}/{name.removeprefix('models/')}"}
        if path == "/api/validate-yaml":
            request = json.loads(body)
            faults = faults_of_card(request["content"], request["repoType"])
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
        return 200, self._answer_about(self.repositories[found[1]], found[1], found[2], body)

    def _answer_about(self, repository: Repository, name: str, endpoint: str | None, body: bytes) -> Any:
        match endpoint:
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
        raise AssertionError(f"the local hub has no endpoint {endpoint}")


def faults_of_card(card: str, kind: str) -> list[str]:
    """Faults for which the hub rejects the front matter of a README.md: missing fields and wrong types."""
    match = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if not match:
        return ["no front matter"]
    data = YAML(typ="safe").load(match[1])
    rules = {"license": str, "language": list, "tags": list, "datasets": list}
    rules |= {"library_name": str, "pipeline_tag": str} if kind == "model" else {"task_categories": list}
    required = rules.keys() - {"datasets"}
    return [f"{field} is missing" for field in sorted(required - data.keys())] + [
        f"{field} must be a {kind.__name__}"
        for field, kind in rules.items()
        if not isinstance(data.get(field, kind()), kind)
    ]


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
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
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
