"""An S3 server on this machine, and a proxy before it that is slow, fails, refuses writes or is down."""

import http.client
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlencode

from moto.server import ThreadedMotoServer
from pyarrow import fs

CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 404: "NoSuchBucket"}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "bucket"


@dataclass
class Faults:
    """Faults of the proxy; change them at any time."""

    delay_s: float = 0.0
    error_rate: float = 0.0
    status: int = 503
    """Status of failed requests."""
    next_errors: int = 0
    """Number of requests that fail from now on."""
    readonly: bool = False
    down: bool = False
    """Close connections without an answer."""
    requests: list[str] = field(default_factory=list)


@dataclass
class ObjectStore:
    """A running S3 server with one bucket behind a proxy."""

    port: int
    faults: Faults

    def uri(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the URI of a folder, which processes need only CREDENTIALS to use; `host` is a name of this machine."""
        query = {"region": "us-east-1", "scheme": "http", "endpoint_override": f"{host}:{self.port}"}
        return f"s3://{BUCKET}/{path}?{urlencode(query)}"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run an S3 server and the proxy."""
    os.environ.update(CREDENTIALS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    faults = Faults()
    proxy = _proxy(server.get_host_and_port()[1], faults)
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        store = ObjectStore(proxy.server_address[1], faults)
        filesystem = fs.S3FileSystem(
            region="us-east-1", scheme="http", endpoint_override=f"127.0.0.1:{store.port}", allow_bucket_creation=True
        )
        filesystem.create_dir(BUCKET)
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def _proxy(upstream: int, faults: Faults) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _handle(self) -> None:
            body = self._body()
            faults.requests.append(f"{self.command} {self.path}")
            if faults.down:
                self.close_connection = True
                self.connection.close()
                return
            time.sleep(faults.delay_s)
            fails = faults.next_errors > 0 or random.random() < faults.error_rate
            faults.next_errors = max(0, faults.next_errors - 1)
            if fails or (faults.readonly and self.command in ("PUT", "POST", "DELETE")):
                status = faults.status if fails else 403
                content = f'<?xml version="1.0"?><Error><Code>{CODES[status]}</Code></Error>'.encode()
                headers = {"Content-Type": "application/xml", "Content-Length": str(len(content))}
                self._answer(status, headers, content)
                return
            dropped = ("transfer-encoding", "connection", "expect", "content-length", "date", "server")
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            try:
                sent = {name: value for name, value in self.headers.items() if name.lower() not in dropped[:4]}
                connection.request(self.command, self.path, body=body, headers=sent)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, headers | {"Content-Length": length or str(len(content))}, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            """Ignore clients that were killed."""

    return Server(("127.0.0.1", 0), Handler)
