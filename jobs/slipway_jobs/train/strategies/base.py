"""What a strategy is: how one model is spread over the ranks, behind one interface that the engine's step reads.

A strategy owns the wrapped model and the optimizer. It knows nothing of data, schedules, storage or reports. The order
of calls is fixed: `prepare` once, then for every step zero_grad, (micro_batch + backward) x accumulation steps,
gradient_norm, step. `parameters` exists so that the engine can check that what was asked for is what runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slipway_api.trainjob import Strategy as StrategySpec
from slipway_api.trainjob import Training
from slipway_jobs.errors import InfrastructureError
from slipway_jobs.train.model import BuiltModel
from slipway_jobs.train.ranks import RankContext


@dataclass(frozen=True)
class StrategyConfig:
    """What every strategy is built from."""

    spec: StrategySpec
    training: Training
    context: RankContext
    accumulation_steps: int

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """bfloat16, or None where everything stays float32."""
        return torch.bfloat16 if self.training.precision == "bf16" else None


@dataclass(frozen=True)
class Sharding:
    """What this rank was found to hold after wrapping, counted in elements."""

    text: str  # e.g. fsdp(shard=2, bf16)
    parameters: int  # of the model that this rank keeps between steps
    optimizer_parameters: int  # whose optimizer state this rank keeps


class Snapshot(Protocol):
    """The state of one moment."""

    background: bool  # a copy, so `write` may run in another thread next to training; else at once, in this one

    def write(self, directory: Path, group: dist.ProcessGroup) -> None:
        """Write this rank's files into its own, empty directory; those of all ranks together are the checkpoint.

        Collective over `group`. Raises on every rank where it fails on one.
        """


class Strategy(Protocol):
    """How a model is spread over the ranks."""

    name: str
    portable: bool  # a checkpoint can be read by another world size
    loss_model: nn.Module  # forward(input_ids, labels) -> summed loss, with the strategy's hooks, for evaluation
    lm: nn.Module  # the Hugging Face model inside

    def prepare(self, built: BuiltModel) -> None:
        """Place and wrap the model and make its optimizer. Raises UserError where this strategy cannot run here."""

    def sharding(self) -> Sharding:
        """What this rank holds, counted on the wrapped model. Raises InfrastructureError StrategyDegraded."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward pass; gradients need not be reduced before the last of a step."""

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of one micro-batch, with gradients."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of `loss`. They end as the mean over ranks of each rank's sum over micro-batches."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Around forward passes of `loss_model` without gradients."""

    def gradient_norm(self) -> Tensor | None:
        """Global norm of the gradients, the same on every rank; None where only `step` finds out."""

    def step(self, learning_rate: float, norm: Tensor | None) -> float | None:
        """Clip and update. Returns the norm where `gradient_norm` could not; not finite: nothing was updated."""

    def snapshot(self) -> Snapshot:
        """Copy what a resumed run needs (model and optimizer)."""

    def restore(self, source: CheckpointSource, group: dist.ProcessGroup) -> None:
        """Load a snapshot that was written with the same strategy. Collective over `group`."""

    def full_state(self) -> dict[str, Tensor]:
        """The whole model on rank 0, in host memory, by Hugging Face name; empty elsewhere. Collective."""

    def close(self) -> None:
        """Let go of what outlives the object."""


class CheckpointSource(Protocol):
    """A verified checkpoint to read from."""

    @property
    def uri(self) -> str:
        """Where it is, for fsspec."""

    @property
    def local_path(self) -> Path | None:
        """Its directory where that is on this machine, else None."""

    def download(self, destination: Path) -> None:
        """Copy its files into a directory of this machine."""


def degraded(asked: str, found: str) -> InfrastructureError:
    """The error for a model that is not spread as asked: better no run than another one than was asked for."""
    return InfrastructureError(
        "StrategyDegraded", f"strategy: asked for {asked}, but after wrapping {found}; refusing to train something else"
    )
