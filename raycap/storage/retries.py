"""Retries of storage operations: which errors are retried, for how long, and what users are advised to do.

If a storage does not answer, is overloaded or temporarily refuses access, the operation is repeated with growing delays.
Errors that do not go away by themselves, such as a missing file or a full disk, are raised at once. The delivery to MLflow
has retries of its own (raycap/tracking/outbox.py).
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
class RetryLimit:
    """How long an operation of a storage that fails is retried."""

    limit_s: float
    with_refusals: bool = False
    """Whether to retry after refused access and missing buckets, too."""


NO_RETRIES = RetryLimit(0.0)
COMMAND_RETRIES = RetryLimit(20.0)
"""For commands and the start of a sweep. A wrong bucket and missing rights are reported at once."""
TRIAL_RETRIES = RetryLimit(OUTAGE_LIMIT_S + 300.0, with_refusals=True)
"""For trials. They had access when the sweep started, so refusals are retried as well. The limit is longer than that of the
sweep, so that the sweep stops before a trial fails."""

_waiting: set[int] = set()
"""Identifiers of the threads that wait for the next attempt."""

_PERMANENT = {
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


def with_retries(operation: Callable[[], T], retry_limit: RetryLimit) -> T:
    """Call a function until it succeeds; returns its value.

    Raises:
        OSError: The error of the function, if it is not one that is retried.
        StorageUnavailableError: The function still fails after the limit.
    """
    deadline, backoff_s = time.monotonic() + retry_limit.limit_s, MIN_BACKOFF_S
    while True:
        try:
            return operation()
        except OSError as error:
            left_s = deadline - time.monotonic()
            if not (retry_limit.limit_s and _is_transient(error, retry_limit)):
                raise
            if left_s <= 0:
                raise StorageUnavailableError(f"{error} (tried for {retry_limit.limit_s:.0f} s)") from error
        _waiting.add(threading.get_ident())
        try:
            time.sleep(min(backoff_s, left_s))
        finally:
            _waiting.discard(threading.get_ident())
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def is_waiting() -> bool:
    """Return whether a thread of this process waits for the next attempt of a storage operation."""
    return bool(_waiting)


def _is_transient(error: OSError, retry_limit: RetryLimit) -> bool:
    if isinstance(error, LeaseLostError | StorageUnavailableError):
        return False
    if isinstance(error, ConnectionError):  # raised by Ray; pyarrow raises OSError for connections to object stores
        return False
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return False
    return retry_limit.with_refusals if is_refusal(error) else error.errno not in _PERMANENT


def is_refusal(error: OSError) -> bool:
    """Return whether a storage answered that it does not exist or that access is not allowed."""
    return error.errno in _REFUSALS or bool(_REFUSED.search(str(error)))


def advice(error: OSError) -> str:
    """Return what to do about an error of a storage, to append to its message."""
    message = str(error)
    if "NO_SUCH_BUCKET" in message or "does not exist" in message:
        return "create the bucket, or set `storage` to another one"
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
