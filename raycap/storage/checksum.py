"""JSON that notices damage: its first line holds the SHA-256 of all that follows it.

    {"sha256": "0d2a…",
     "schema_version": 3,
     …

It stays one JSON object that anything can read; to check it, nothing needs to be parsed.
"""

import hashlib

from raycap.storage.files import DamagedError


def with_checksum(json_text: str) -> str:
    """A JSON object of at least one field, with its seal as the first."""
    body = json_text.removeprefix("{").removeprefix("\n")
    return f"{_first_line(body.encode()).decode()}\n{body}"


def verify_checksum(data: bytes) -> str:
    """The JSON object of a sealed file, without its seal.

    Raises DamagedError if any byte is not as it was written, and where there is no seal.
    """
    first_line, _, body = data.partition(b"\n")
    if first_line != _first_line(body):
        raise DamagedError("it is damaged")
    return "{" + body.decode()


def _first_line(body: bytes) -> bytes:
    return b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode()
