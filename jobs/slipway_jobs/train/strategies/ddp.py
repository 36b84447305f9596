"""Data parallelism: every rank holds the whole model, gradients are averaged (arXiv:2006.15704).

bf16 is autocast over float32 weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from slipway_jobs.train.checkpoint import dcp
from slipway_jobs.train.loss import LossModel
from slipway_jobs.train.model import BuiltModel
from slipway_jobs.train.optimizer import adamw, set_learning_rate
from slipway_jobs.train.strategies.base import CheckpointSource, Sharding, StrategyConfig, degraded

_WARM_UP_TOKENS = 2


class DDPStrategy:
    """torch.nn.parallel.DistributedDataParallel."""

    name = "ddp"
    portable = True

    def __init__(self, config: StrategyConfig) -> None:
        self._config = config
        self._max_norm = float(config.training.max_grad_norm)

    def prepare(self, built: BuiltModel) -> None:
        """Place the whole model on this rank and wrap it."""
        device = self._config.context.device
        built.materialise(built.lm)
        self.lm = built.lm.to(device)
        self.loss_model = LossModel(self.lm, compute_dtype=self._config.compute_dtype)
        self._parameters = [parameter for parameter in self.lm.parameters() if parameter.requires_grad]
        self._optimizer = adamw(self.lm.named_parameters(), self._config.training.optimizer)
        self._ddp = DistributedDataParallel(
            self.loss_model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=False,  # they are computed, the same on every rank
            gradient_as_bucket_view=True,
        )
        self._settle_buckets()

    def _settle_buckets(self) -> None:
        """DDP lays its buckets out anew after the first backward pass, which changes the order of sums among more than
        two ranks. Done on a throw-away batch, the first step after a resume adds up as that step did before."""
        tokens = torch.zeros((1, _WARM_UP_TOKENS), dtype=torch.int64, device=self._config.context.device)
        for _ in range(2):
            self._ddp(tokens, tokens).backward()
        self.zero_grad()

    def sharding(self) -> Sharding:
        """Checks the wrapper and that every rank holds everything."""
        world = self._config.context.world_size
        if not isinstance(self._ddp, DistributedDataParallel) or dist.get_world_size(self._ddp.process_group) != world:
            raise degraded(f"ddp over {world} ranks", f"the model is a {type(self._ddp).__name__}")
        held = sum(parameter.numel() for parameter in self.lm.parameters())
        return Sharding(f"ddp({self._config.training.precision})", parameters=held, optimizer_parameters=held)

    def zero_grad(self) -> None:
        """Zero in place: the gradients are views into the buckets."""
        self._optimizer.zero_grad(set_to_none=False)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients are averaged in the backward pass of the last micro-batch only."""
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            yield

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of one micro-batch."""
        loss: Tensor = self._ddp(input_ids, labels)
        return loss

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients."""
        torch.autograd.backward(loss)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode, no gradients."""
        self.loss_model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.loss_model.train()

    def gradient_norm(self) -> Tensor | None:
        """Global norm; the gradients are averaged already, so every rank sees the same."""
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def step(self, learning_rate: float, norm: Tensor | None) -> float | None:
        """Clip and update."""
        if self._max_norm > 0 and norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        return None

    def snapshot(self) -> dcp.DCPSnapshot:
        """A copy of model and optimizer."""
        return dcp.DCPSnapshot(self.lm, self._optimizer)

    def restore(self, source: CheckpointSource, group: dist.ProcessGroup) -> None:
        """Load model and optimizer."""
        dcp.restore(self.lm, self._optimizer, source, group)

    def full_state(self) -> dict[str, Tensor]:
        """Rank 0's replica."""
        if self._config.context.rank:
            return {}
        return {name: tensor.detach().cpu() for name, tensor in self.lm.state_dict().items()}

    def close(self) -> None:
        """Nothing outlives the object."""
