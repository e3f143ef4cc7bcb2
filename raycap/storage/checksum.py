"""JSON files with a SHA-256 checksum in their first line, which covers all following bytes.

    {"sha256": "0d2a…",
     "schema_version": 3,
     …

The file is one valid JSON object. The checksum is verified on the bytes, without parsing them.
"""

import hashlib

from raycap.storage.files import DamagedError


def with_checksum(json_text: str) -> str:
    """Return a JSON object of at least one field with its checksum added as the first field."""
    body = json_text.removeprefix("{").removeprefix("\n")
    return f"{_first_line(body.encode()).decode()}\n{body}"


def verify_checksum(data: bytes) -> str:
    """Return the JSON object of a file written by `with_checksum`, without the checksum.

    Raises DamagedError if the checksum is missing or does not match, or the file is not UTF-8.
    """
    first_line, _, body = data.partition(b"\n")
    if first_line != _first_line(body):
        raise DamagedError("the checksum does not match")
    try:
        return "{" + body.decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"the file is not UTF-8: {error}") from None


def _first_line(body: bytes) -> bytes:
    return b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode()
