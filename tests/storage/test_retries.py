"""Tests of errors of the storage: which are retried, for how long, and what the message says."""

import errno
import threading
from dataclasses import replace

import pytest

from raycap.errors import LeaseLostError, StorageUnavailableError
from raycap.storage import Storage
from raycap.storage.lock import locked
from raycap.storage.retries import COMMAND_RETRIES, TRIAL_RETRIES, RetryLimit, advice, with_retries
from tests.support.object_store import ObjectStore

SHORT = RetryLimit(1.0)


def use_everything(storage: Storage, folder: str) -> None:
    """Call every method that reads or writes."""
    storage.write(f"{folder}/a", "1")
    assert storage.read_text(f"{folder}/a") == "1"
    assert storage.exists(f"{folder}/a")
    assert not storage.exists(f"{folder}/b")
    assert storage.names(folder) == ["a"]
    assert folder in storage.folders("")
    assert storage.modified_ns(f"{folder}/a")
    storage.set_aside(f"{folder}/a")
    storage.delete(f"{folder}/a.damaged")
    assert not storage.exists(f"{folder}/a.damaged")


@pytest.mark.parametrize("status", [500, 503])
def test_an_operation_succeeds_despite_single_errors_of_the_server(s3: ObjectStore, status: int) -> None:
    storage = Storage.at(s3.uri(f"single{status}"))
    s3.faults.status, s3.faults.error_rate = status, 0.1
    for turn in range(3):
        use_everything(storage, f"{turn}")
    assert len(s3.faults.requests) > 60


@pytest.mark.slow
def test_a_slow_store_works_and_can_be_locked(s3: ObjectStore) -> None:
    s3.faults.delay_s = 0.5
    storage = Storage.at(s3.uri("slow"))
    with locked(storage, "grid") as lease:
        use_everything(storage, "x")
        lease.check()
        assert not lease.is_lost


def outage(s3: ObjectStore, seconds: float, **faults: object) -> threading.Timer:
    """Begin an outage that ends after some seconds."""

    def end() -> None:
        for name in faults:
            setattr(s3.faults, name, 0 if name == "error_rate" else False)

    for name, value in faults.items():
        setattr(s3.faults, name, value)
    timer = threading.Timer(seconds, end)
    timer.start()
    return timer


@pytest.mark.parametrize(
    "faults",
    [
        {"down": True},
        {"error_rate": 1.0, "status": 503},
        pytest.param({"readonly": True}, marks=pytest.mark.slow),
        *(pytest.param({"error_rate": 1.0, "status": status}, marks=pytest.mark.slow) for status in (403, 404, 500)),
    ],
)
def test_trials_wait_until_an_outage_ends(s3: ObjectStore, faults: dict[str, object]) -> None:
    """Refused access and missing buckets are retried too, because the sweep could use the storage when it started."""
    storage = Storage.at(s3.uri(f"outage{'-'.join(map(str, faults.values()))}"), TRIAL_RETRIES)
    storage.write("old/a", "1")
    timer = outage(s3, 1.0, **faults)
    try:
        storage.write("x/a", "1")
        assert not timer.is_alive()
    finally:
        timer.join()
    timer = outage(s3, 1.0, **faults)
    try:
        assert storage.names("old") == ["a"]
        assert storage.exists("old/a")
        assert storage.read_text("old/a") == "1"
        assert "readonly" in faults or not timer.is_alive()
    finally:
        timer.join()


@pytest.mark.parametrize(("status", "words"), [(403, ["AWS_ACCESS_KEY_ID", "rights"]), (404, ["bucket"])])
def test_commands_report_refused_access_at_once(s3: ObjectStore, status: int, words: list[str]) -> None:
    storage = Storage.at(s3.uri("refused"))
    s3.faults.error_rate, s3.faults.status = 1.0, status
    for call in (storage.names, storage.exists, storage.read, lambda path: storage.write(path, "1")):
        s3.faults.requests.clear()
        with pytest.raises(OSError, match=r"ACCESS_DENIED|NO_SUCH_BUCKET|does not exist|not found") as caught:
            call("x")
        assert len(s3.faults.requests) <= 3
        assert all(word in advice(caught.value) for word in words)


def test_a_missing_bucket_is_no_empty_storage(s3: ObjectStore) -> None:
    storage = Storage.at(s3.uri("x").replace("//bucket/", "//missing/"))
    for call in (storage.names, storage.folders, storage.exists, storage.read):
        with pytest.raises(OSError, match="bucket missing does not exist"):
            call("x")


def test_waiting_ends_at_its_limit_with_the_last_error(s3: ObjectStore) -> None:
    storage = Storage.at(s3.uri("limit"), SHORT)
    s3.faults.error_rate = 1.0
    with pytest.raises(StorageUnavailableError, match=r"HeadObject.*tried for 1 s"):
        storage.read("x")


@pytest.mark.parametrize(
    ("error", "command_waits", "trial_waits"),
    [
        (FileNotFoundError(errno.ENOENT, "x"), False, False),
        (IsADirectoryError(errno.EISDIR, "x"), False, False),
        (OSError(errno.ENOSPC, "x"), False, False),
        (OSError(errno.EDQUOT, "x"), False, False),
        (LeaseLostError("x"), False, False),
        (PermissionError(errno.EACCES, "x"), False, True),
        (OSError(errno.EROFS, "x"), False, True),
        (OSError("google::cloud::Status(PERMISSION_DENIED: x)"), False, True),
        (OSError(errno.ESTALE, "x"), True, True),
        (OSError(errno.EIO, "x"), True, True),
        (TimeoutError(errno.ETIMEDOUT, "x"), True, True),
        (OSError("google::cloud::Status(UNAVAILABLE: x)"), True, True),
    ],
)
def test_only_errors_that_may_pass_are_retried(error: OSError, command_waits: bool, trial_waits: bool) -> None:
    for retry_limit, waits in ((COMMAND_RETRIES, command_waits), (TRIAL_RETRIES, trial_waits)):
        calls = []

        def operation(calls: list[int] = calls) -> str:
            calls.append(1)
            if len(calls) == 1:
                raise error
            return "done"

        if waits:
            assert with_retries(operation, retry_limit) == "done"
        else:
            with pytest.raises(type(error)):
                with_retries(operation, retry_limit)
            assert len(calls) == 1


def test_a_guarded_storage_does_not_write_once_an_outage_is_over(s3: ObjectStore) -> None:
    """The lock may have been lost meanwhile, so it is checked before every attempt."""
    lost = threading.Event()

    def guard() -> None:
        if lost.is_set():
            raise LeaseLostError("lost")

    storage = replace(Storage.at(s3.uri("guarded"), TRIAL_RETRIES), guard=guard)
    s3.faults.readonly = True
    timer = threading.Timer(1.0, lambda: (lost.set(), setattr(s3.faults, "readonly", False)))
    timer.start()
    with pytest.raises(LeaseLostError):
        storage.write("x", "1")
    assert lost.is_set()
    timer.join()
    assert not storage.exists("x")
