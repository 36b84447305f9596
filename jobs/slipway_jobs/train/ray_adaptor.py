"""The thin layer between the engine and Ray Train v2: start the ranks, bring them together, run the engine.

It is built on DataParallelTrainer with a backend of its own instead of TorchTrainer, for the time to the first step:
TorchConfig makes the driver and the controller import torch (4 s of CPU each) only to pass an address around, and
forms the process group in the controller's call before any rank may import anything else. Here each rank imports
while the others do and joins the group itself. For the same reason the helpers that a run like ours never uses are
left out (`_UNUSED_CALLBACKS`, `_FixedWorkers`): each is one more Python process that starts before the first step.

Ray's own checkpoints, retries and reports are not used: checkpoints are the engine's, restarts the driver's, and
reports go through the mailbox. Importing this file imports ray.train and no torch.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from slipway_api.quantity import parse_quantity
from slipway_api.run import RunSpec
from slipway_api.trainjob import WorkerResources
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.storage import Storage
from slipway_jobs.train.failures import PEER_LOST, UNEXPECTED, job_error, ray_error
from slipway_jobs.train.mailbox import Mailbox, Topic
from slipway_jobs.train.rank_zero import RankZero

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.callback import RayTrainCallback
    from ray.train.v2._internal.execution.context import TrainRunContext

# A rank that fails of a broken connection waits this long before it says so: the rank that broke it is heard first.
_CONSEQUENCE_SECONDS = 3.0

# The cleaner removes placement groups of a dead controller (ours die with the driver's job, and a dead controller ends
# the attempt); it needs the dashboard as well, and fails where two Ray clusters share a machine. We have no datasets.
_UNUSED_CALLBACKS = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


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


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in _UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        return super()._initialize_and_run_controller(
            **(controller | {"scaling_policy": _FixedWorkers(self.scaling_config)})
        )


def connect(address: str | None = None) -> None:
    """Join the Ray cluster (default: the one of RAY_ADDRESS, or of this machine).

    Raises InfrastructureError RayUnreachable, at once or after minutes: the caller must not wait for it.
    """
    # Ray complains that it cannot install its own SIGTERM handler from a thread. The driver has one.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=where, logging_level=logging.WARNING, log_to_driver=True)
    except Exception as error:
        raise InfrastructureError("RayUnreachable", f"cannot join the Ray cluster at {where}: {error}") from error


def disconnect() -> None:
    """Leave the cluster: every process of this job ends."""
    ray.shutdown()


def worker_resources(resources: WorkerResources) -> dict[str, float]:
    """What each worker asks of Ray. Not memory: the pod bounds it, and Ray's own figure is 70% of the pod's."""
    wanted = {"CPU": float(parse_quantity(resources.cpu))}
    if resources.gpu:
        wanted["GPU"] = float(resources.gpu)
    return wanted


def missing_resources(run: RunSpec) -> str:
    """What the whole cluster lacks for all workers at once, in words; empty when there is enough."""
    there = ray.cluster_resources()
    lacking = []
    for name, each in worker_resources(run.workers.resources).items():
        if each * run.workers.count > there.get(name, 0.0) + 1e-9:
            lacking.append(f"{each * run.workers.count:g} {name}, there are {there.get(name, 0.0):g}")
    return "; ".join(lacking)


def fit(run: RunSpec, mailbox: str) -> None:
    """Start the workers, train, and return when the model is complete. Raises JobError."""
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
