"""Reuse of Ray Train's worker processes from one trial to the next, which saves 35 s of processor time per trial.

By default Ray Train starts five actors per trial: the controller, the placement group cleaner, the dataset manager, the
synchronization actor (a barrier for the workers), and the workers. Each is a new process that imports Ray, and the workers
import torch as well. With `ReusingTrainer`:

- the controller runs in the Tune driver's process, which Tune reuses from trial to trial (`reuse_actors`);
- the placement group cleaner is replaced by `free_placement_groups`, and the dataset manager is left out, because trials
  read through `raycap.cluster.data_stream` and pass no datasets to Ray Train;
- the workers, the synchronization actor and the placement group of a successful trial are kept for `IDLE_TIMEOUT_S`, and the
  driver's next trial uses them. After a failure new processes are started.

This overrides private methods and callbacks of `ray.train.v2._internal`, which have no stability guarantee. It is used only
with the versions of Ray in `ray_version.REUSE_TESTED_WITH`, and unless `execution.reuse_workers` is false; otherwise,
`new_workers` is used. The assumptions are stated at each override; check them before a version is added. All trials of a
sweep reserve the same resources (they share one `ExecutionSpec`), so kept workers fit every later trial.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import ray
import ray.tune
from ray._private.state import state as cluster_state
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from raycap.cluster.retries import RetryRule
from raycap.cluster.trial_queue import PLACED

IDLE_TIMEOUT_S = 5.0
"""Time after which idle workers are released. The driver's next trial, if there is one, starts sooner."""
PLACEMENT_GROUP_PREFIX = "raycap-"
"""Prefix of the names of placement groups; the actor id of the driver that owns the group follows."""


class _ReportStart(WorkerGroupCallback):
    """Reports to Tune, and by a function, that the workers of a trial have started, also after every restart."""

    def __init__(self, report_start: Callable[[], None]) -> None:
        self._report_start = report_start

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray Train once the workers run."""
        ray.tune.report({PLACED: True})
        self._report_start()


class _RetryPolicy(FailurePolicy):
    """Lets a `RetryRule` decide whether Ray Train starts the workers again."""

    def __init__(self, rule: RetryRule) -> None:
        super().__init__(FailureConfig())  # not used
        self._rule = rule

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return RETRY or RAISE for one error."""
        return FailureDecision.RETRY if self._rule.should_retry(training_failed_error) else FailureDecision.RAISE


class ReusingTrainer(TorchTrainer):
    """A `TorchTrainer` that reuses workers, and whose controller runs in the process that calls `fit`."""

    def __init__(self, *args: Any, rule: RetryRule, report_start: Callable[[], None], **kwargs: Any) -> None:
        """Initialize the trainer of one trial.

        Args:
            rule: Decides whether the workers are started again after an error.
            report_start: Called whenever the workers have started.
            *args: Arguments of `TorchTrainer`.
            **kwargs: Keyword arguments of `TorchTrainer`.
        """
        super().__init__(*args, **kwargs)
        self._rule, self._report_start = rule, report_start

    def _create_default_callbacks(self) -> list[Any]:
        # DatasetsCallback starts the dataset manager even if there are no datasets. PlacementGroupCleanerCallback starts a
        # detached actor that removes the placement group when the controller's actor dies.
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]
        return [*callbacks, _ReportStart(self._report_start)]

    def _initialize_and_run_controller(self, **controller_kwargs: Any) -> Result:
        # The original method creates an actor from TrainController and calls run() and get_result() on it. The class is an
        # ordinary one whose run() is a coroutine, so it can also run in this process. Two steps of the original are not
        # needed then: passing environment variables to the controller, and the SIGINT handler, which Ray does not install
        # in a Tune trial anyway, because it does not run in the main thread. Only the failure policy is replaced.
        controller_kwargs["failure_policy"] = _RetryPolicy(self._rule)

        async def run_controller() -> Result:
            controller = _ReusingController(**controller_kwargs)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run_controller())


class _IdleState(WorkerGroupState):
    """State of a worker group that has ended and whose processes are kept."""

    def shutdown(self) -> None:
        """Do nothing. The original method kills the workers and the barrier, and removes the placement group."""


class _IdleWorkers:
    """Holds the workers of the driver's last trial until the next trial takes them or `IDLE_TIMEOUT_S` is over.

    Idle workers keep their CPUs and GPUs reserved. They are released after the timeout so that other trials can be
    scheduled, for example one that has lost its machine. If the driver's process ends first, Ray kills the workers, because
    the driver owns these actors, and `free_placement_groups` removes their placement group. All methods are thread-safe,
    because the timeout runs in a timer thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: WorkerGroupState | None = None

    def put(self, state: WorkerGroupState) -> None:
        """Keep the workers of a trial that has ended, and start their timeout."""
        with self._lock:
            self._state = state
        timer = threading.Timer(IDLE_TIMEOUT_S, self._release, [state])
        timer.daemon = True  # must not keep the driver's process alive
        timer.start()

    def take(self) -> WorkerGroupState | None:
        """Return kept workers that are still alive, or None. The caller owns them from then on."""
        with self._lock:
            state, self._state = self._state, None
        if state is None:
            return None
        try:
            ray.get(state.sync_actor.reset.remote())  # does nothing to an unused barrier, but fails if it is dead
            ray.get([worker.actor.__ray_ready__.remote() for worker in state.workers])
        except ray.exceptions.RayError:  # a process died while idle, for example because its machine was lost
            state.shutdown()  # the original shutdown: put() is given the original state, not an _IdleState
            return None
        return state

    def _release(self, state: WorkerGroupState) -> None:
        with self._lock:
            is_idle = self._state is state  # otherwise a trial has taken these workers; the timer is not cancelled then
            if is_idle:
                self._state = None
        if is_idle:
            state.shutdown()  # without the lock, since it waits for Ray


class _ReusedWorkers(WorkerGroup):
    """A worker group that starts on idle workers if there are any, and leaves its own to the next group of the driver."""

    _idle: ClassVar[_IdleWorkers] = _IdleWorkers()
    """One per driver process, which runs one trial at a time."""

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        idle = self._idle.take()
        if idle is None:
            super()._start_impl(worker_group_state_builder)
            return
        # The same steps in the same order as WorkerGroup._start_impl of Ray 2.60, without those that create the placement
        # group, the barrier and the workers. It leaves out callback.on_worker_group_start, a context manager that only
        # measures the time for Ray's metrics. The distributed context (ranks) of the workers remains as it was assigned by
        # their first group, so ranks stay the same for the same processes.
        self._assert_inactive()
        builder = worker_group_state_builder.with_placement_group_handle(idle.placement_group_handle)
        builder = builder.with_workers(idle.workers).with_sync_actor(idle.sync_actor)
        for callback in self._callbacks:
            callback.before_worker_group_start(self._worker_group_context)
        self._init_train_context(idle.workers, idle.sync_actor)  # gives the workers the context of the new trial
        self._worker_group_state = builder.build()
        # Ray Train puts each worker into a replica group of its own. (These groups are unrelated to raycap's replicas.)
        self._replica_groups = [
            ReplicaGroup([worker], worker.resources, [*self._replica_group_callbacks]) for worker in idle.workers
        ]
        self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(idle.workers))}
        for callback in self._callbacks:
            callback.after_worker_group_start(self)  # among others, torch.distributed.init_process_group in the workers
        # Starts the training function in a thread of each worker and returns.
        ray.get([w.actor.run_train_fn.remote(self._worker_group_context.train_fn_ref) for w in idle.workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        # Does the work of the placement group cleaner: a driver that was killed has left its group reserved, and the trial
        # that its successor starts may need those resources. Ray itself removes groups only when the whole job ends. The
        # name of the new group identifies its owner. Slices of TPUs, which the original method handles, are not supported.
        free_placement_groups(dead_drivers_only=True)
        context = worker_group_context
        group = placement_group(
            [context.resources_per_worker] * context.num_workers,
            strategy=context.placement_strategy,
            name=f"{PLACEMENT_GROUP_PREFIX}{ray.get_runtime_context().get_actor_id()}",
        )
        return DefaultPlacementGroupHandle(group)

    def shutdown(self) -> None:
        """End the group, and keep its workers if all of them finished without an error.

        After an error the workers are killed as usual, since their state (CUDA, process group, memory) is unknown.
        """
        status, state = self.get_latest_poll_status(), self.get_worker_group_state()
        if status and status.finished and not status.errors:
            self.execute(_destroy_process_group)
            # super().shutdown() calls the callbacks, then shutdown() of the state, which must not kill the kept workers.
            self._worker_group_state = _IdleState(**vars(state))
            self._idle.put(state)
        super().shutdown()


class _ReusingController(TrainController):
    worker_group_cls = _ReusedWorkers  # TrainController creates its worker groups through this class attribute


def _destroy_process_group() -> None:
    """Destroy the worker's process group, since the next trial initializes a new one. Runs in the worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def free_placement_groups(*, dead_drivers_only: bool) -> None:
    """Remove the placement groups of drivers of this Ray job, either of all drivers or only of dead ones."""
    job = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        name = group["name"]
        driver = name.removeprefix(PLACEMENT_GROUP_PREFIX)
        # The id of an actor ends with the id of its job. Groups of other jobs on the cluster are left alone.
        if group["state"] == "REMOVED" or driver == name or not driver.endswith(job):
            continue
        if not dead_drivers_only or cluster_state.actor_table(driver).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))
