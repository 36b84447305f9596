"""Snapshots as torch.distributed.checkpoint (DCP) files: tensors by name, each rank writing its own shards.

Every tensor that a resumed run needs is named in `tensors_of`, and everything else is in manifest.TrainState.
What a snapshot writes was copied when it was taken, so it can be written while training goes on. DCP's own
async_save does the same in a thread; ours also has to digest and commit, so the thread is the saver's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from slipway_jobs.errors import InfrastructureError
from slipway_jobs.train.model import persistent_buffers
from slipway_jobs.train.optimizer import materialise_state, named_state

if TYPE_CHECKING:
    from slipway_jobs.train.strategies.base import CheckpointSource


def tensors_of(lm: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that a resumed run needs, by a name that does not depend on strategy or world size. Live ones."""
    named = list(lm.named_parameters())
    tensors: dict[str, Tensor] = {f"model/{name}": parameter.detach() for name, parameter in named}
    tensors |= {f"buffer/{name}": buffer for name, buffer in persistent_buffers(lm)}
    tensors |= {f"optimizer/{name}": value for name, value in named_state(named, optimizer).items()}
    return tensors


class DCPSnapshot:
    """A copy of the tensors in host memory, and how to write it."""

    background = True

    def __init__(self, lm: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        materialise_state(optimizer)
        self._tensors = {name: _copy(tensor) for name, tensor in tensors_of(lm, optimizer).items()}

    def write(self, directory: Path, group: dist.ProcessGroup) -> None:
        """Write this rank's shards. Collective over `group`."""
        directory.mkdir(parents=True, exist_ok=True)
        writer = FileSystemWriter(directory, single_file_per_rank=True, sync_files=True, overwrite=True)
        with _plain_errors():
            state_dict_saver.save(self._tensors, storage_writer=writer, process_group=group)


def _copy(tensor: Tensor) -> Tensor:
    """A copy in host memory that shares nothing with the original; a sharded tensor stays sharded the same way."""
    return tensor.detach().to("cpu", copy=True)


def restore(
    lm: nn.Module, optimizer: torch.optim.Optimizer, source: CheckpointSource, group: dist.ProcessGroup
) -> None:
    """Load in place what `DCPSnapshot` wrote, whatever the world size was. Collective over `group`."""
    materialise_state(optimizer)
    tensors = tensors_of(lm, optimizer)
    reader = FsspecReader(source.uri) if source.local_path is None else FileSystemReader(source.local_path)
    with torch.no_grad(), _plain_errors():
        state_dict_loader.load(tensors, storage_reader=reader, process_group=group)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """DCP tells every rank the failures of all, in an exception that no `except Exception` catches."""
    try:
        yield
    except CheckpointException as error:
        rank, (inner, _) = min(error.failures.items(), key=lambda item: item[0])
        lines = str(inner).strip().splitlines()
        said = lines[0][:300] if lines else type(inner).__name__
        raise InfrastructureError("CheckpointFailed", f"rank {rank}: {said}") from error
