"""Parts of URIs of storages and tracking servers, and removal of passwords from them."""

import re

HIDDEN = "***"
NO_CREDENTIALS = (
    "must not contain credentials, because it is stored with the results; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials"
)
"""Rule for the URI of a storage."""
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    # Up to the last "@" before the path; or, since secret keys contain "/", a user and a password that is no port.
    r"(?P<userinfo>[^\s/?#]*|[^\s/?#:@\[]+:(?!\d{1,5}(?:[/?#\s'\"]|$))\S*)@"
)
_SECRET_PARAMETER = re.compile(
    r"([?&;][^\s=&;]*(?:passw|pwd|secret|token|sig|credential|access_?key|api_?key)[^\s=&;]*=)[^\s&;#'\"]+",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """Return a URI, or a text that contains URIs, with passwords replaced by `***`.

    Covers `scheme://user:password@host`, tokens instead of a user in `https://token@host`, and query parameters such as
    `?password=...`. A user without a password, as in `postgresql://ada@host/db`, stays.
    """

    def hide(match: re.Match[str]) -> str:
        scheme, userinfo = match["scheme"], match["userinfo"]
        is_public = userinfo == "anonymous" or (":" not in userinfo and scheme.lower() not in ("http", "https", "s3"))
        return match[0] if is_public or not userinfo else f"{scheme}://{HIDDEN}@"

    return _SECRET_PARAMETER.sub(rf"\1{HIDDEN}", _USERINFO.sub(hide, text))


def has_password(uri: str) -> bool:
    """Return whether a URI contains a password."""
    return without_password(uri) != uri


def join_uri(uri: str, relative: str) -> str:
    """Return the path or URI of something inside a folder; a query, such as `?region=...`, stays at the end."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{relative}{mark}{query}" if relative else uri


def split_uri(uri: str) -> tuple[str, str]:
    """Split the URI of a folder into the URI of its parent, which keeps the query, and its name."""
    base, mark, query = uri.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    return f"{parent}{mark}{query}", name
