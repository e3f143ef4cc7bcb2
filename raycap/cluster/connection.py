"""Connection to Ray: to the cluster that the environment names, or to a private instance on this machine."""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycap.cluster.private_folder import RAY_FOLDER, private_folder
from raycap.cluster.processes import LocalProcesses
from raycap.errors import CannotRunError
from raycap.host.isolation import child_environment
from raycap.host.machine import cpu_limit
from raycap.host.preflight import refuse_failed_preflight

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Interval at which Tune saves its state; 1e9 s means never. raycap does not resume from this state, and Tune keeps a
    # copy of it for each trial in memory.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # The session handles Ctrl-C itself, so that trials save a checkpoint.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Calls of Ray after ray.shutdown must fail instead of starting another instance.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Each trial has about a dozen small processes. With the default, the number of CPUs, Ray warns of each new one on
    # small machines.
    "RAY_worker_maximum_startup_concurrency": "16",
    # Ray stores 100,000 task records by default, dozens per trial, which would be the largest part of the head's memory.
    "RAY_task_events_max_num_task_in_gcs": "5000",
    # Number of idle worker processes that Ray keeps, so that the read task of the next trial finds one.
    "RAY_num_workers_soft_limit": str(8 * (os.cpu_count() or 1)),
}
"""Environment variables of Ray and MLflow in the process that calls ray.init."""
WORKER_ENVIRONMENT = RAY_ENVIRONMENT | {
    # Interval at which Ray Train's controller polls its workers (2 s by default); reports are delivered at polls.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Time after which a worker that does not answer is replaced (600 s by default).
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # Workers keep the working directory of the command, to which relative paths in a spec refer.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Environment variables in Ray's worker processes, which include the drivers of trials and the analyst."""
LOCAL_ENVIRONMENT = WORKER_ENVIRONMENT | {
    # The preemption watcher, one process per trial, serves no purpose on a single machine.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # All processes listen on the loopback interface only. On Linux, this variable has no other effect.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # After the death of the control store, Ray would end this process after a minute; the session ends the run by itself.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Every connection needs the token in RAY_AUTH_TOKEN, which is drawn at random for each run.
    "RAY_AUTH_MODE": "token",
}
"""Environment variables of a local instance, whose processes all inherit them."""


@dataclass(frozen=True)
class RayConnection:
    """A connection to Ray."""

    folder: Path
    """Private folder for temporary files on this machine, removed at the end of the connection."""
    processes: LocalProcesses | None = None
    """Processes of a local instance that ends with the connection; None for other instances and clusters."""


@contextmanager
def ray_session() -> Iterator[RayConnection]:
    """Connect to Ray within the context.

    Uses the first of these that exists: the connection that this process already has (as in tests and notebooks), which
    stays open; the cluster at RAY_ADDRESS; the cluster of `ray up` if this machine is its head; a new local instance, which
    ends with the context and keeps its files in the private folder.

    Raises:
        CannotRunError: Ray is not installed, does not start, or its cluster does not answer or cannot be used.
    """
    # Set before the import, because Ray reads some of these variables when it is imported.
    os.environ.update({key: value for key, value in RAY_ENVIRONMENT.items() if key not in os.environ})
    try:
        import ray

        from raycap.cluster.address import LOCAL, cluster_address, requires_token
        from raycap.cluster.job_config import isolated_job_config
    except ImportError as error:
        raise CannotRunError(
            f"Ray cannot be imported: {error}", "install raycap with its dependencies again"
        ) from error
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        if ray.is_initialized():
            yield RayConnection(folder)
            return
        address = cluster_address(os.environ)
        options: dict[str, Any]
        if address == LOCAL:
            refuse_failed_preflight()
            where = "Ray does not start on this machine"
            # A runtime_env would set the variables as well, but then Ray could not use the workers that it has already
            # started in advance.
            token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            stack.enter_context(_environment(LOCAL_ENVIRONMENT | child_environment() | token))
            stack.enter_context(_settings_of_environment())
            # Without the dashboard's agent, killed trials leave their placement groups behind and retries hang.
            # Ray counts all cores, whatever the affinity and the control group of this process allow.
            options = {
                "num_cpus": max(1, int(cpu_limit())),
                "include_dashboard": True,
                "_temp_dir": str(folder / RAY_FOLDER),
            }
        else:
            where = f"the Ray cluster at {address} cannot be used"
            options = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
            if requires_token(address):
                _use_token(address)
        stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            options["job_config"] = isolated_job_config()
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as error:  # Ray raises errors of many types, and Exception itself if a process is late
            message = " ".join(str(error).split()) or type(error).__name__
            raise CannotRunError(
                f"{where}: {message}", "run `raycap doctor`, which checks this machine and the cluster"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init installs one that exits with an exit code of its own
        yield RayConnection(folder, LocalProcesses() if address == LOCAL else None)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _settings_of_environment() -> Iterator[None]:
    """Make Ray read the environment again, as it did when it was imported, now and at the end of the context."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    def read() -> None:
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    read()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        read()


def _use_token(address: str) -> None:
    """Let Ray send the user's token, which it does by default only to clusters that it finds itself.

    It cannot be enabled always: a cluster without authentication rejects connections that use a token.
    """
    from ray._private.authentication import authentication_token_setup as authentication

    authentication.logger.setLevel(logging.ERROR)
    if not authentication.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
        raise CannotRunError(
            f"the Ray cluster at {address} requires a token",
            "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that contains it, and do not set RAY_AUTH_MODE",
        )
