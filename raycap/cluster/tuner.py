"""Ray Tune: one Tune trial per TrialSpec, or per stack of them, as many at once as the cluster holds, and only those that
are not finished yet.
"""

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
from raycap.cluster.warm import free_placement_groups
from raycap.cluster.worker import Setting, fit
from raycap.results import Failure, PlannedTrial
from raycap.spec import ExecutionSpec, TrialSpec
from raycap.storage import Storage, checkpoint_steps, failure_path, forget_checkpoints, result_path, trial_folder


class TrialError(RuntimeError):
    """A trial that failed for a reason of its own and would fail again."""


def concurrent_slots(execution: ExecutionSpec, places: dict[str, str]) -> int:
    """How many trials the connected cluster, as large as its autoscaler may make it, holds at once.

    `places` is what trials read and write, by name. Raises ResourceError, with the arithmetic, if one trial can never fit,
    or if several machines would look for a place in folders of their own.
    """
    machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    for name, place in places.items():
        if "://" not in place and (len(machines) > 1 or _autoscaler_maximum()):
            raise ResourceError(
                f"{name} {place} is a folder of one machine, but the cluster has or may have several; use file:///... for "
                "one that all of them share" + ("" if name.endswith("profiles.path") else ", s3://... or gs://...")
            )
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


def run_trials(groups: list[tuple[PlannedTrial, ...]], setting: Setting, *, slots: int) -> dict[str, Exception]:
    """Run groups of trials in order, each trial to its result.json or failure.json; returns early if interrupted.

    Returns the errors of the groups in which something failed, by the trial_id of each of its trials, whether or not they
    could write their failure.json.

    Drivers hold no CPU: with one each they could fill a small cluster and wait for ever for their own workers.
    """
    with tempfile.TemporaryDirectory(prefix="raycap-tune-") as folder:  # Tune's own notes; relaunching never reads them
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(_drive_trials, {"node:__internal_head__": 0.001}),
            param_space={
                "specs": ray.tune.grid_search([[trial.spec.model_dump_json() for trial in group] for group in groups]),
                "setting": setting,
            },
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=slots, reuse_actors=True),
            run_config=ray.tune.RunConfig(name="tune", storage_path=folder, verbose=0),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Tune talks whatever its verbosity; Progress says it better
            try:
                grid = tuner.fit()
            finally:
                free_placement_groups(of_the_dead=False)
        failed = {}
        for outcome in grid:
            if outcome.error is not None:
                for spec in outcome.config["specs"]:
                    failed[TrialSpec.model_validate_json(spec).trial_id] = outcome.error
        return failed


def _drive_trials(config: dict[str, Any]) -> None:
    """The Tune trial: train, then write every result.json last."""
    specs = tuple(map(TrialSpec.model_validate_json, config["specs"]))
    setting: Setting = config["setting"]
    storage, analyst = Storage.at(setting.storage), setting.analyst
    for spec in specs:
        storage.delete(failure_path(spec.trial_id))
        afresh = not checkpoint_steps(storage.names(trial_folder(spec.trial_id)))
        analyst.start_trial.remote(spec.trial_id, afresh)
    try:
        outcomes = fit(specs, setting)
    except Exception as error:
        for spec in specs:
            record_failure(storage, spec.trial_id, error, analyst)
        raise
    failed = []
    for trial_id, outcome in outcomes.items():
        if isinstance(outcome, str):
            failed.append(TrialError(outcome))
            record_failure(storage, trial_id, failed[-1], analyst)
            continue
        storage.write(result_path(trial_id), outcome.model_dump_json(indent=1))
        forget_checkpoints(storage, trial_id)
        analyst.record_result.remote(outcome.model_dump_json())
    analyst.refresh.remote()
    if failed:
        raise failed[0]


def record_failure(storage: Storage, trial_id: str, error: BaseException, analyst: ActorHandle) -> None:
    """Write a trial's failure.json, and tell the analyst."""
    text = "".join(traceback.format_exception(error))
    failure = Failure(trial_id=trial_id, cause=root_cause(error), traceback=text)
    storage.write(failure_path(trial_id), failure.model_dump_json(indent=1))
    ray.get(analyst.record_failure.remote(failure.model_dump_json()))


def root_cause(error: BaseException) -> str:
    """The exception that started it, below the wrappers of Ray Train and Ray, in one line."""
    while True:
        failures = getattr(error, "worker_failures", None)
        # When one worker dies the others fail too, of a broken connection: a RuntimeError tells least.
        inner = min(failures.values(), key=lambda e: isinstance(e, RuntimeError)) if failures else None
        inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    if isinstance(error, TrialError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
