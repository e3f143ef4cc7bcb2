"""The one policy for errors of a storage: which are waited out, how long, and what the message advises.

A storage that does not answer, is overloaded or refuses access for a while is asked again with growing delays, as MLflow is
(raycap/tracking/outbox.py). Errors that waiting does not mend, such as a missing file or a full disk, are raised at once.
"""

import errno
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raycap.errors import LeaseLostError, StorageUnavailableError

T = TypeVar("T")

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 15.0
"""Delay before the first retry, which doubles with each further failure, and its maximum."""
OUTAGE_LIMIT_S = 900.0
"""Time after which a running sweep whose storage does not answer stops."""


@dataclass(frozen=True)
class Patience:
    """How long errors of a storage are waited out."""

    limit_s: float
    with_refusals: bool = False
    """Whether to wait out refused access and missing buckets, too."""


NONE = Patience(0.0)
COMMAND = Patience(20.0)
"""For commands, and for the start of a sweep: a wrong bucket or missing rights are reported at once."""
TRIAL = Patience(OUTAGE_LIMIT_S + 300.0, with_refusals=True)
"""For trials, which had access when the sweep started. Longer than the sweep waits, so that no trial fails before."""

_waiting: set[int] = set()
"""Threads that wait for a storage."""

_LASTING = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "ENAMETOOLONG",
        "EINVAL",
        "ELOOP",
        "EMFILE",
        "ENFILE",
        "ENOTEMPTY",
        "EXDEV",
    )
}
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS}
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|PERMISSION_DENIED|UNAUTHENTICATED|FORBIDDEN|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN"
    r"|SIGNATURE|EXPIRED|UNRECOGNIZED_CLIENT|status (401|403)|bucket .* does not exist"
)


def patiently(operation: Callable[[], T], patience: Patience) -> T:
    """Call a function until it succeeds; returns its value.

    Raises:
        OSError: The error of the function, if waiting does not mend it.
        StorageUnavailableError: The function still fails after the limit.
    """
    deadline, backoff_s = time.monotonic() + patience.limit_s, MIN_BACKOFF_S
    while True:
        try:
            return operation()
        except OSError as error:
            left_s = deadline - time.monotonic()
            if not (patience.limit_s and _may_pass(error, patience)):
                raise
            if left_s <= 0:
                raise StorageUnavailableError(f"{error} (tried for {patience.limit_s:.0f} s)") from error
        _waiting.add(threading.get_ident())
        try:
            time.sleep(min(backoff_s, left_s))
        finally:
            _waiting.discard(threading.get_ident())
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def is_waiting() -> bool:
    """Return whether a thread of this process waits for a storage."""
    return bool(_waiting)


def _may_pass(error: OSError, patience: Patience) -> bool:
    if isinstance(error, LeaseLostError | StorageUnavailableError):
        return False
    if isinstance(error, ConnectionError):  # of Ray; those of object stores have no type of their own
        return False
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return False
    return patience.with_refusals if is_refusal(error) else error.errno not in _LASTING


def is_refusal(error: OSError) -> bool:
    """Return whether a storage answered that it does not exist or that access is not allowed."""
    return error.errno in _REFUSALS or bool(_REFUSED.search(str(error)))


def advice(error: OSError) -> str:
    """Return what to do about an error of a storage, to append to its message."""
    message = str(error)
    if "NO_SUCH_BUCKET" in message or "does not exist" in message:
        return "create the bucket, or set `storage` to another place"
    if error.errno in _REFUSALS:
        return "change the permissions of the folder, or set `storage` to another one"
    if is_refusal(error):
        return (
            "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials) and the rights "
            "to list, read and write there"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space, or set `storage` to a folder on another disk"
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
        return "set `storage` to another folder"
    return "check that this machine reaches the storage, then run the same command again"
