"""The thin layer between the engine and Ray Train v2: start the ranks, bring them together, run the engine.

It is built on DataParallelTrainer with a backend of its own instead of TorchTrainer, for the time to the first step:
TorchConfig makes the driver and the controller import torch (4 s of CPU each) only to pass an address around, and
forms the process group in the controller's call before any rank may import anything else. Here each rank imports
while the others do and joins the group itself. For the same reason the helpers that a run like ours never uses are
left out (`_Trainer`, `_FixedWorkers`, `_NoBarrier`), and Ray Train's controller, which Ray puts into an actor,
runs in the driver: each is one more Python process that starts before the first step, after the one before it. The
driver must live for the controller to be of use anyway, and a driver that dies takes its workers with it.

Ray's own checkpoints, retries and reports are not used: checkpoints are the engine's, restarts the driver's, and
reports go through the mailbox. Importing this file imports ray.train, but neither torch nor Ray Data.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from slipway_jobs.lean_ray_train import lean_ray_train

lean_ray_train()  # before the next line, or it is too late

from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: E402
from ray.train.backend import Backend, BackendConfig  # noqa: E402
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback  # noqa: E402
from ray.train.v2._internal.execution.controller.controller import TrainController  # noqa: E402
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy  # noqa: E402
from ray.train.v2._internal.execution.worker_group import state as worker_group_state  # noqa: E402
from ray.train.v2._internal.execution.worker_group import worker_group  # noqa: E402
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker  # noqa: E402
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup  # noqa: E402
from ray.train.v2.api.config import LoggingConfig  # noqa: E402
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: E402

from slipway_api.run import RunSpec  # noqa: E402
from slipway_jobs.ray_cluster import worker_resources  # noqa: E402
from slipway_jobs.storage import Storage  # noqa: E402
from slipway_jobs.train.failures import PEER_LOST, UNEXPECTED, job_error, ray_error  # noqa: E402
from slipway_jobs.train.mailbox import Mailbox, Topic  # noqa: E402
from slipway_jobs.train.rank_zero import RankZero  # noqa: E402

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.callback import RayTrainCallback
    from ray.train.v2._internal.execution.context import TrainRunContext

# A rank that fails of a broken connection waits this long before it says so: the rank that broke it is heard first.
_CONSEQUENCE_SECONDS = 3.0


class _RendezvousBackend(Backend):  # type: ignore[misc] # ray is not typed here
    """Tells every rank where rank 0 will wait for it (MASTER_ADDR, MASTER_PORT), and leaves the rest to the rank."""

    share_cuda_visible_devices = True  # NCCL reaches its peers on the same node directly

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_master, address, port)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Nothing: after a success the ranks have left the group; after a failure leaving it could only hang."""


def _free_address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port  # noqa: PLC0415 - runs in a worker

    address, port = get_address_and_port()
    return str(address), int(port)


def _set_master(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)


@dataclass
class _RendezvousConfig(BackendConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_RendezvousBackend]:
        return _RendezvousBackend


class _FixedWorkers(FixedScalingPolicy):  # type: ignore[misc]
    """A fixed number of workers, without telling Ray's AutoscalingCoordinator: an actor that the first run of a cluster
    waits for, and that would repeat to the autoscaler what the workers' placement group says anyway."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _NoBarrier:
    """In place of SynchronizationActor, the barrier behind `ray.train.report`: nobody calls that here."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoBarrier]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _NoBarrier:
        return cls()


class TrainWorker(RayTrainWorker):  # type: ignore[misc]
    """The process of a rank. That its class is of this file has Ray import this file before ray.train."""


class _Workers(WorkerGroup):  # type: ignore[misc]
    """The worker group of a controller that is no actor: workers get no handle to it (they would ask it for Ray's own
    checkpoints)."""

    _worker_cls = TrainWorker

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=None,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[place] for name, values in train_context_args.items()},
                )
                for place, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Workers


def _leave_barrier_out() -> None:
    """Both are called by name within Ray's own functions, so there is nothing to override."""
    kill = worker_group_state._shutdown_sync_actor
    if worker_group.SynchronizationActor is not _NoBarrier:
        worker_group.SynchronizationActor = _NoBarrier
        worker_group_state._shutdown_sync_actor = lambda actor: None if isinstance(actor, _NoBarrier) else kill(actor)


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        """Of Ray's own those that set up the ranks, whatever its variables say: a run's metrics are ours, and relative
        paths of a manifest mean the same everywhere. We have no datasets; and the cleaner of a dead controller's
        placement groups (ours die with the driver's job, and a dead controller ends the attempt) needs the dashboard,
        and fails where two Ray clusters share a machine."""
        backend = self.backend_config
        return [AcceleratorSetupCallback(backend, self.scaling_config), BackendSetupCallback(backend)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        _leave_barrier_out()
        controller = _Controller(**(options | {"scaling_policy": _FixedWorkers(self.scaling_config)}))
        try:
            asyncio.run(controller.run())
        finally:
            # It has shut its workers down unless it has failed itself.
            if (left := controller.get_worker_group()) is not None:
                left.abort()
        return controller.get_result()


def fit(run: RunSpec, mailbox: str) -> None:
    """Start the workers, train, and return when the model is complete. Raises JobError."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="slipway-ray-train-", ignore_cleanup_errors=True) as scratch:
        trainer = _Trainer(
            run_rank,
            train_loop_config={"run": run.model_copy(update={"report": None}).model_dump_json(), "mailbox": mailbox},
            backend_config=_RendezvousConfig(),
            scaling_config=ScalingConfig(
                num_workers=run.workers.count,
                use_gpu=run.workers.resources.gpu > 0,
                resources_per_worker=worker_resources(run.workers.resources),
            ),
            run_config=RunConfig(
                name="train",
                storage_path=scratch,  # Ray insists on one; nothing of the run goes there
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise ray_error(error, run.workers.count) from error


# --- in the workers -----------------------------------------------------------------------------------------------


def run_rank(config: dict[str, Any]) -> None:
    """One rank, from its process to the end of training. Raises nothing but JobError."""
    entered = time.time()
    logging.getLogger("ray.train.v2._internal.util").setLevel(logging.CRITICAL)  # prints every error with its traceback
    # A progress bar is for a terminal; in a log it is one endless line.
    os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    rank = ray.train.get_context().get_world_rank()
    try:
        _train(RunSpec.model_validate_json(config["run"]), Mailbox(config["mailbox"]), entered)
    except BaseException as error:
        failure = job_error(error, rank)
        if failure.reason == UNEXPECTED:
            traceback.print_exc(file=sys.stderr)
        if failure.reason == PEER_LOST:
            time.sleep(_CONSEQUENCE_SECONDS)
        raise failure from None


def _train(run: RunSpec, mailbox: Mailbox, entered: float) -> None:
    from torch.distributed import destroy_process_group  # noqa: PLC0415 - only ranks import torch

    from slipway_jobs.data import PreparedData  # noqa: PLC0415
    from slipway_jobs.train.engine import Engine, preload  # noqa: PLC0415
    from slipway_jobs.train.ranks import init_process_group  # noqa: PLC0415

    imported = time.time()
    ray_context = ray.train.get_context()
    context = init_process_group(
        ray_context.get_world_rank(),
        ray_context.get_world_size(),
        ray_context.get_local_rank(),
        # A job that asked for no GPU must not take one that somebody else was given.
        gpu=run.workers.resources.gpu > 0,
    )
    timeline = {"workers": entered, "import": imported, "group": time.time()}
    preload(run)  # beside the preparation of the data, not after it
    prepared = PreparedData.load(_wait_for(mailbox, "prepared"))
    listener = None
    if context.rank == 0:
        listener = RankZero(
            Storage(run.storage),
            run.attempt,
            tell=lambda text: mailbox.put("state", text),
            asked_to_stop=lambda: mailbox.get("stop"),
            timeline=timeline,
        )
    try:
        engine = Engine(run, prepared, context, listener)
        if listener is not None:
            listener.steps = engine.steps
        engine.train()
    finally:
        if listener is not None:
            listener.close()
    destroy_process_group()


def _wait_for(mailbox: Mailbox, topic: Topic) -> str:
    """The text of a topic, however long the driver takes: it ends every worker when it fails."""
    pause = 0.05
    while (text := mailbox.get(topic)) is None:
        time.sleep(pause)
        pause = min(1.0, 1.2 * pause)
    return text
