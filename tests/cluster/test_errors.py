"""The cause of a failure and the completed steps are found below the wrappers of Ray and of the worker."""

import pickle

from raycap.cluster.errors import TrainingError, TrialError, completed_steps, root_cause, root_error


class WorkersFailedError(Exception):
    """Has the attribute of Ray Train's WorkerGroupError that is read."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__()
        self.worker_failures = failures


def test_cause_and_completed_steps_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(TrainingError(120, OSError("no space left"))))
    failed = WorkersFailedError({0: error})
    assert isinstance(root_error(failed), OSError)
    assert root_cause(failed) == "OSError: no space left"
    assert completed_steps(failed) == 120


def test_a_broken_connection_of_another_worker_is_not_the_cause() -> None:
    lost = TrainingError(120, RuntimeError("connection closed by peer"))
    failed = WorkersFailedError({0: lost, 1: TrainingError(119, OSError("no space left"))})
    assert root_cause(failed) == "OSError: no space left"
    assert completed_steps(failed) == 119


def test_completed_steps_are_unknown_before_training() -> None:
    assert completed_steps(WorkersFailedError({0: OSError("no space left")})) is None
    assert completed_steps(TrialError("the data are missing")) is None
    assert completed_steps(TrialError.of("DivergedError: not finite", 7, "traceback")) == 7
