"""Ray Train without a start per trial: a Tune driver steers its trials itself and hands its workers from one to the next.

As it comes, Ray Train starts five processes a trial, which import for ten seconds what the trial before had imported too:
a controller, a guard of its placement group, a dataset manager, a barrier, and the worker. Here the controller runs in
the driver, nobody manages datasets that were not given, and workers and barrier stay for the driver's next trial, if it
comes soon. They are started afresh after every failure.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import ray
from ray._private.state import state as cluster_state
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from raycap.cluster.retries import RetryPolicy

IDLE_TIMEOUT_S = 5.0
"""How long processes wait for the next trial of their driver, which comes within a moment if there is one."""
RESERVED = "raycap-"
"""Placement groups are named after the drivers they belong to: the cluster frees them only when the whole job ends."""


class ReusingTrainer(TorchTrainer):
    """A TorchTrainer whose controller runs in the process that calls fit(), on workers that are warm after the first."""

    def __init__(self, *arguments: Any, steps_done: Callable[[], int], **named: Any) -> None:
        """`steps_done` tells how far the checkpoints are."""
        super().__init__(*arguments, **named)
        self._steps_done = steps_done

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unneeded)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        arguments["failure_policy"] = RetryPolicy(self.run_config.failure_config, self._steps_done)

        async def control() -> Result:
            controller = _ReusingController(**arguments)
            await controller.run()
            return controller.get_result()

        return asyncio.run(control())


class _IdleState(WorkerGroupState):
    """The state of a group that is over, but whose processes stay."""

    def shutdown(self) -> None:
        """Nothing: the next trial takes them."""


class _IdleWorkers:
    """The processes of the driver's last trial, for a few seconds: what nobody takes must be free for others, above all for
    a trial whose machine was lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: WorkerGroupState | None = None

    def put(self, state: WorkerGroupState) -> None:
        """Keep the processes of a trial that is over."""
        with self._lock:
            self._state = state
        timer = threading.Timer(IDLE_TIMEOUT_S, self._let_go, [state])
        timer.daemon = True
        timer.start()

    def take(self) -> WorkerGroupState | None:
        """Processes that are kept and alive; they are the caller's from now on."""
        with self._lock:
            state, self._state = self._state, None
        if state is None:
            return None
        try:
            ray.get(state.sync_actor.reset.remote())
            ray.get([worker.actor.__ray_ready__.remote() for worker in state.workers])
        except ray.exceptions.RayError:  # their machine was lost meanwhile
            state.shutdown()
            return None
        return state

    def _let_go(self, state: WorkerGroupState) -> None:
        with self._lock:
            is_kept = self._state is state
            if is_kept:
                self._state = None
        if is_kept:
            state.shutdown()


class _ReusedWorkers(WorkerGroup):
    """A worker group that leaves its processes to the next one of the same driver, if its trial went well."""

    _kept: ClassVar[_IdleWorkers] = _IdleWorkers()

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        kept = self._kept.take()
        if kept is None:
            super()._start_impl(worker_group_state_builder)
            return
        self._assert_inactive()
        builder = worker_group_state_builder.with_placement_group_handle(kept.placement_group_handle)
        builder = builder.with_workers(kept.workers).with_sync_actor(kept.sync_actor)
        for callback in self._callbacks:
            callback.before_worker_group_start(self._worker_group_context)
        self._init_train_context(kept.workers, kept.sync_actor)
        self._worker_group_state = builder.build()
        self._replica_groups = [
            ReplicaGroup([worker], worker.resources, self._replica_group_callbacks) for worker in kept.workers
        ]
        self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(kept.workers))}
        for callback in self._callbacks:
            callback.after_worker_group_start(self)
        ray.get([w.actor.run_train_fn.remote(self._worker_group_context.train_fn_ref) for w in kept.workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        free_placement_groups(of_the_dead=True)
        context = worker_group_context
        group = placement_group(
            [context.resources_per_worker] * context.num_workers,
            strategy=context.placement_strategy,
            name=RESERVED + ray.get_runtime_context().get_actor_id(),
        )
        return DefaultPlacementGroupHandle(group)

    def shutdown(self) -> None:
        """The trial is over: keep the processes if it went well."""
        status, state = self.get_latest_poll_status(), self.get_worker_group_state()
        if status and status.finished and not status.errors:
            self.execute(_leave_process_group)
            self._worker_group_state = _IdleState(**vars(state))
            self._kept.put(state)
        super().shutdown()


class _ReusingController(TrainController):
    worker_group_cls = _ReusedWorkers


def _leave_process_group() -> None:
    """In a worker: the next trial makes a process group of its own."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def free_placement_groups(*, of_the_dead: bool) -> None:
    """Free what drivers of this job have reserved, or only what those have left behind that were killed."""
    job = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        driver = group["name"].removeprefix(RESERVED)
        if group["state"] == "REMOVED" or driver == group["name"] or not driver.endswith(job):
            continue
        if not of_the_dead or cluster_state.actor_table(driver).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))
