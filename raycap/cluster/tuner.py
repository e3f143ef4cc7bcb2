"""Ray Tune: one Tune trial per TrialSpec, as many at once as the cluster holds, and only those not finished yet."""

import contextlib
import io
import math
import tempfile
import traceback
from typing import Any

import ray
import ray.tune
from ray._private.state import state as cluster_state
from ray.actor import ActorHandle

from raycap.cluster.errors import ResourceError
from raycap.cluster.worker import TrialError, fit
from raycap.results import Failure, PlannedTrial
from raycap.spec import ExecutionSpec, TrialSpec
from raycap.storage import Storage, failure_path, result_path


def concurrent_slots(execution: ExecutionSpec) -> int:
    """How many trials the connected cluster, as large as its autoscaler may make it, holds at once.

    Raises ResourceError, with the arithmetic, if one trial can never fit.
    """
    need = {
        "CPU": execution.num_workers * execution.cpus_per_worker,
        "GPU": execution.num_workers * execution.gpus_per_worker,
    }
    now, most = ray.cluster_resources(), _autoscaler_maximum()
    have = {name: max(now.get(name, 0.0), most.get(name, 0.0)) for name in need}
    slots = min(math.floor(have[name] / amount + 1e-9) for name, amount in need.items() if amount > 0)
    if slots < 1:
        raise ResourceError(
            f"one trial needs {need['CPU']:g} CPUs and {need['GPU']:g} GPUs ({execution.num_workers} workers x "
            f"{execution.cpus_per_worker:g} CPUs and {execution.gpus_per_worker:g} GPUs), but the cluster has at most "
            f"{have['CPU']:g} CPUs and {have['GPU']:g} GPUs; lower execution.num_workers, execution.cpus_per_worker or "
            "execution.gpus_per_worker"
        )
    return min(slots, execution.max_concurrent_trials)


def _autoscaler_maximum() -> dict[str, float]:
    return dict(cluster_state.get_max_resources_from_cluster_config() or {})


def run_trials(
    trials: list[PlannedTrial],
    execution: ExecutionSpec,
    storage_location: str,
    source_commit: str,
    analyst: ActorHandle,
    *,
    slots: int,
) -> None:
    """Run trials in order to their result.json or failure.json; returns early if interrupted.

    Drivers hold no CPU: with one each they could fill a small cluster and wait for ever for their own workers.
    """
    with tempfile.TemporaryDirectory(prefix="raycap-tune-") as folder:  # Tune's own notes; relaunching never reads them
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(_drive_trial, {"node:__internal_head__": 0.001}),
            param_space={
                "spec": ray.tune.grid_search([trial.spec.model_dump_json() for trial in trials]),
                "execution": execution.model_dump_json(),
                "storage": storage_location,
                "source_commit": source_commit,
                "analyst": analyst,
            },
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=slots, reuse_actors=True),
            run_config=ray.tune.RunConfig(name="tune", storage_path=folder, verbose=0),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Tune talks whatever its verbosity; Progress says it better
            tuner.fit()


def _drive_trial(config: dict[str, Any]) -> None:
    """The Tune trial: train, then write result.json last; or write failure.json."""
    spec = TrialSpec.model_validate_json(config["spec"])
    storage = Storage.at(config["storage"])
    execution = ExecutionSpec.model_validate_json(config["execution"])
    storage.delete(failure_path(spec.trial_id))
    config["analyst"].start_trial.remote(spec.trial_id)
    try:
        result = fit(spec, execution, config["storage"], config["source_commit"], config["analyst"])
    except Exception as error:
        failure = Failure(trial_id=spec.trial_id, cause=root_cause(error), traceback=traceback.format_exc())
        storage.write(failure_path(spec.trial_id), failure.model_dump_json(indent=1))
        ray.get(config["analyst"].record_failure.remote(failure.model_dump_json()))
        raise
    storage.write(result_path(spec.trial_id), result.model_dump_json(indent=1))
    ray.get(config["analyst"].record_result.remote(result.model_dump_json()))


def root_cause(error: BaseException) -> str:
    """The exception that started it, below the wrappers of Ray Train and Ray, in one line."""
    while True:
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else None
        inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    if isinstance(error, TrialError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
