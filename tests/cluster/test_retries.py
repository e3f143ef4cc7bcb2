"""The rule of retries: retries after lost processes as long as a trial advances, but not after a repeated error."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api import exceptions
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raycap.cluster.errors import TrainingError
from raycap.cluster.retries import MAX_START_FAILURES, RetryRule
from raycap.errors import StorageUnavailableError

RETRY, RAISE = True, False


def failed(error: Exception) -> WorkerGroupError:
    return WorkerGroupError(error_message="a worker failed", worker_failures={0: error})


def decisions(history: list[tuple[int, Exception]], max_failures: int = 3) -> list[bool]:
    """Return the decisions about a history of (step of the last checkpoint, error)."""
    steps = iter([step for step, _ in history])
    rule = RetryRule(max_failures, lambda: next(steps))
    return [rule.should_retry(failed(error)) for _, error in history]


def out_of_memory(num_bytes: int) -> MemoryError:
    return MemoryError(f"Unable to allocate {num_bytes} bytes at 0x7f{num_bytes:x}")


def test_the_same_error_at_the_same_step_is_retried_once() -> None:
    assert decisions([(100, out_of_memory(1)), (100, out_of_memory(2))], max_failures=1000) == [RETRY, RAISE]
    assert decisions([(100, OSError("a")), (100, OSError("b")), (100, OSError("b"))]) == [RETRY, RETRY, RAISE]


def test_the_same_error_at_a_later_step_is_retried() -> None:
    assert decisions([(step, OSError("gone")) for step in range(100)]) == [RETRY] * 100


def test_dead_workers_are_replaced_while_the_trial_advances() -> None:
    assert decisions([(100, ActorDiedError())] * 4) == [RETRY, RETRY, RETRY, RAISE]
    advancing = [(step, ActorDiedError()) for step in range(20)]
    assert decisions(advancing) == [RETRY] * 20


def test_a_trial_waits_for_resources_without_limit() -> None:
    rule = RetryRule(0, lambda: 0)
    no_resources = ControllerError(WorkerGroupStartupTimeoutError(num_workers=1))
    assert [rule.should_retry(no_resources) for _ in range(100)] == [RETRY] * 100
    broken = ControllerError(WorkerGroupStartupFailedError("it does not start"))
    decided = [rule.should_retry(broken) for _ in range(MAX_START_FAILURES + 1)]
    assert decided == [RETRY] * MAX_START_FAILURES + [RAISE]
    assert RetryRule(3, lambda: 0).should_retry(ControllerError(ValueError("a fault of Ray"))) is RAISE


def test_a_trial_that_waited_for_its_storage_until_the_limit_is_not_retried() -> None:
    for error in (StorageUnavailableError("AWS Error ACCESS_DENIED"), TrainingError(7, StorageUnavailableError("x"))):
        assert decisions([(100, error)]) == [RAISE]


def test_max_failures_of_zero_means_no_retry() -> None:
    assert decisions([(0, ActorDiedError())], max_failures=0) == [RAISE]
    assert RetryRule(0, lambda: 0).should_retry(WorkerGroupError("of no worker", {})) is RAISE


def test_preempted_machines_are_replaced_without_limit() -> None:
    rule = RetryRule(0, lambda: 0)
    preemption = pytest.importorskip("ray.train.v2.api.preemption", reason="Ray 2.56 announces none")
    announced = exceptions.PreemptionError(preemption.PreemptionInfo(None, {}))
    lost = failed(WorkerHealthCheckFailedError("dead", RayActorError(preempted=True)))
    assert [rule.should_retry(error) for error in (announced, lost) * 10] == [RETRY] * 20


def test_a_dead_worker_is_recognised_in_a_pickled_error() -> None:
    died = failed(WorkerHealthCheckFailedError("worker 0", ActorDiedError()))
    rule = RetryRule(2, lambda: 100)
    assert [rule.should_retry(pickle.loads(pickle.dumps(died))) for _ in range(3)] == [RETRY, RETRY, RAISE]
