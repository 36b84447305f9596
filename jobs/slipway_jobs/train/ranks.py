"""Who this process is among the ranks, and how ranks agree on something that is not a tensor of the model.

Three process groups keep three kinds of traffic apart, because two threads must never share one:
the default group carries the step (and belongs to whoever started the ranks: Ray Train or torchrun), `control` carries
decisions of the main thread, `storage` waits for slow storage and belongs to the checkpoint thread. The last two are
gloo everywhere: what they carry is small and lives in host memory.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from slipway_jobs.errors import InfrastructureError, JobError, OutOfMemory

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(seconds=120)  # a step's collective that takes longer has a dead or stopped peer
STORAGE_TIMEOUT = timedelta(minutes=30)  # rank 0 may write a whole model while the others wait


@dataclass(frozen=True)
class RankContext:
    """This process among the ranks. `backend` is the default group's: gloo, nccl, or cpu:gloo,cuda:nccl."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    backend: str
    timeout: timedelta = COLLECTIVE_TIMEOUT  # a peer that is silent for longer counts as lost

    @property
    def device_name(self) -> str:
        """cpu, or the GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def collective(self) -> str:
        """The library that carries the step's tensors: gloo or nccl."""
        return "nccl" if "nccl" in self.backend else "gloo"


def init_process_group(
    rank: int,
    world_size: int,
    local_rank: int,
    *,
    gpu: bool | None = None,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
    init_method: str = "env://",
) -> RankContext:
    """Join the default process group on this rank's GPU or on the CPU. `gpu=None`: the GPU, where there is one for it.

    Raises InfrastructureError GpuMissing where one was asked for, and PeerLost where the ranks cannot meet.
    """
    there = torch.cuda.is_available() and local_rank < torch.cuda.device_count()
    if gpu and not there:
        raise InfrastructureError(
            "GpuMissing",
            f"rank {rank} was promised a GPU (workers.resources.gpu) and sees {torch.cuda.device_count()} without "
            f"number {local_rank}; look at the node's driver and device plugin",
        )
    if there and gpu is not False:
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    with translated_errors(rank):
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timeout)
    return RankContext(rank, world_size, local_rank, device, backend, timeout)


@contextlib.contextmanager
def bounded_groups(timeout: timedelta) -> Iterator[None]:
    """Every process group made inside waits for a peer no longer than this; libraries leave it at 30 minutes."""
    known = set(distributed_c10d._world.pg_map)
    yield
    for group in set(distributed_c10d._world.pg_map) - known:
        distributed_c10d._set_pg_timeout(timeout, group)


class Ranks:
    """Agreement among the ranks of one run. Every method is called by all ranks, in the same order."""

    def __init__(
        self,
        context: RankContext,
        *,
        storage_timeout: timedelta = STORAGE_TIMEOUT,
    ) -> None:
        self.context = context
        self._control = dist.new_group(backend="gloo", timeout=context.timeout)
        self.storage = dist.new_group(backend="gloo", timeout=storage_timeout)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, reports and commits."""
        return self.context.rank == 0

    def close(self) -> None:
        """Leave the two groups. The default group stays: whoever made it ends it."""
        for group in (self._control, self.storage):
            dist.destroy_process_group(group)

    def first_does(self, action: Callable[[], T], *, slow: bool = False) -> T:
        """Rank 0's result of `action` on every rank; what it raised (JobError) on every rank as well.

        `slow`: rank 0 may be busy with storage for long.
        """
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = action()
            except JobError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.storage if slow else self._control)
        if box[1] is not None:
            raise box[1]
        return box[0]  # type: ignore[no-any-return] # rank 0's T

    def gather(self, value: T, *, slow: bool = False) -> list[T]:
        """Every rank's value on every rank, by rank."""
        values: list[Any] = [None] * self.context.world_size
        dist.all_gather_object(values, value, group=self.storage if slow else self._control)
        return values

    def all_do(self, action: Callable[[], T], *, slow: bool = False) -> list[T]:
        """Every rank's result of `action` on every rank; the lowest rank's JobError on every rank, so that none waits
        for one that has left."""
        result: Any = None
        try:
            result = action()
        except JobError as error:
            result = error
        results = self.gather(result, slow=slow)
        for found in results:
            if isinstance(found, JobError):
                raise found
        return results

    def wait(self) -> None:
        """Wait until every rank is here, however slow storage is."""
        self.gather(None, slow=True)


# What gloo, NCCL and the store say when a peer is gone or silent. gloo has no exception class of its own.
_PEER_LOST = re.compile(
    r"\bgloo\b|\bnccl\b|connection (was )?(closed|reset|refused)|broken pipe|timed out|tcpstore|rank \d+ failed",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def translated_errors(rank: int) -> Iterator[None]:
    """Turns what torch throws into our error tree. What it does not know passes through: a bug must look like one."""
    try:
        yield
    except JobError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("OutOfMemory", f"rank {rank} ran out of memory: {error}") from error
    except (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError) as error:
        raise _peer_lost(rank, error) from error
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise OutOfMemory("OutOfMemory", f"rank {rank} ran out of memory: {error}") from error
        if _PEER_LOST.search(str(error)):
            raise _peer_lost(rank, error) from error
        raise


def _peer_lost(rank: int, error: Exception) -> InfrastructureError:
    said = str(error).strip().splitlines()
    return InfrastructureError(
        "PeerLost",
        f"rank {rank} lost contact with another rank ({said[0] if said else type(error).__name__}); "
        "it was killed, or its node or network failed",
    )
