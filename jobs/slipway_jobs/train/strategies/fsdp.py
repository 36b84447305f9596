"""Fully sharded data parallelism, FSDP2 (torch.distributed.fsdp.fully_shard; arXiv:2304.11277).

Parameters, gradients and optimizer state are split over `shardDegree` ranks, block by block; with more ranks than that
the shards are replicated (HSDP). Weights stay float32; with bf16 they are cast before they are gathered, so both the
compute and the all-gather are bfloat16, and gradients are reduced in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from slipway_api.trainjob import FSDP
from slipway_jobs.errors import UserError
from slipway_jobs.train.checkpoint import dcp
from slipway_jobs.train.loss import LossModel
from slipway_jobs.train.model import BuiltModel
from slipway_jobs.train.optimizer import adamw, set_learning_rate
from slipway_jobs.train.ranks import bounded_groups
from slipway_jobs.train.strategies.base import CheckpointSource, Sharding, StrategyConfig, degraded

# Unreduced gradients of a whole step may wait for its last micro-batch if they are no larger than this; beyond it they
# are reduced after every micro-batch, which keeps each rank at its own share.
_DEFER_BYTES = 1 << 30


class FSDPStrategy:
    """torch.distributed.fsdp.fully_shard, per block and at the root."""

    name = "fsdp"
    portable = True

    def __init__(self, config: StrategyConfig) -> None:
        self._config = config
        self._spec = config.spec.fsdp or FSDP()
        self._shards = self._spec.shard_degree or config.context.world_size
        self._max_norm = float(config.training.max_grad_norm)
        if config.context.world_size % self._shards:
            raise UserError(
                "StrategyImpossible",
                f"strategy.fsdp.shardDegree: {self._shards} does not divide the {config.context.world_size} ranks",
            )

    def prepare(self, built: BuiltModel) -> None:
        """Make and shard one block after the other, so that this rank never holds more than one whole block more."""
        context = self._config.context
        world = context.world_size
        replicas = world // self._shards
        kind = context.device.type
        with bounded_groups(context.timeout):
            mesh = (
                init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
                if replicas == 1
                else init_device_mesh(kind, (replicas, self._shards), mesh_dim_names=("replicate", "shard"))
            )
        precision = MixedPrecisionPolicy(
            param_dtype=self._config.compute_dtype,
            reduce_dtype=torch.float32,
            output_dtype=None,
            cast_forward_inputs=False,
        )
        # On a CPU everything is in host memory as it is; pinning needs a GPU.
        offload = CPUOffloadPolicy() if self._spec.cpu_offload and kind == "cuda" else OffloadPolicy()
        self.lm = built.lm
        self.loss_model = LossModel(self.lm, compute_dtype=None)
        self._blocks = blocks_of(self.lm)
        for module in (*self._blocks, self.loss_model):
            built.materialise(module)
            # The root's backward pass follows its forward pass at once: freeing its parameters between would be waste.
            reshard = self._spec.reshard_after_forward and module is not self.loss_model
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=precision, offload_policy=offload)
        for buffer_owner in self.lm.modules():
            for name, buffer in buffer_owner._buffers.items():
                if buffer is not None:
                    buffer_owner._buffers[name] = buffer.to(context.device)
        self._parameters = [parameter for parameter in self.lm.parameters() if parameter.requires_grad]
        self._optimizer = adamw(self.lm.named_parameters(), self._config.training.optimizer)
        self._total = built.parameters
        self._defer = 4 * built.parameters <= _DEFER_BYTES

    def sharding(self) -> Sharding:
        """Counts the local shards: 1/shardDegree of every matrix, up to the padding of uneven rows."""
        asked = f"fsdp(shard={self._shards})"
        if not isinstance(self.loss_model, FSDPModule) or not all(isinstance(b, FSDPModule) for b in self._blocks):
            raise degraded(asked, f"the model is a {type(self.loss_model).__name__}")
        plain = [name for name, parameter in self.lm.named_parameters() if not isinstance(parameter, DTensor)]
        if plain:
            raise degraded(asked, f"{len(plain)} parameters are whole on every rank ({plain[0]})")
        tensors = [cast(DTensor, parameter) for parameter in self.lm.parameters()]
        held = sum(tensor.to_local().numel() for tensor in tensors)
        # Rows do not always divide evenly: a rank may hold one row more of each tensor, or less.
        slack = sum(tensor.numel() // max(1, tensor.shape[0]) for tensor in tensors)
        if abs(held - self._total / self._shards) > slack:
            raise degraded(asked, f"this rank holds {held} of {self._total} parameters")
        words = [f"shard={self._shards}"]
        replicas = self._config.context.world_size // self._shards
        words += [f"replicate={replicas}"] if replicas > 1 else []
        words += [] if self._spec.reshard_after_forward else ["keep after forward"]
        words += ["cpu offload"] if self._spec.cpu_offload else []
        words.append(self._config.training.precision)
        return Sharding(f"fsdp({', '.join(words)})", parameters=held, optimizer_parameters=held)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Reduce gradients after the last micro-batch only where they may wait."""
        root = cast(FSDPModule, self.loss_model)
        if self._defer:
            root.set_requires_gradient_sync(last)
        else:
            root.set_requires_all_reduce(last)  # between replicas, shards can always wait
        root.set_is_last_backward(last)
        yield

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of one micro-batch."""
        loss: Tensor = self.loss_model(input_ids, labels)
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
            # The root keeps its parameters gathered after a forward pass, for a backward pass that does not come here.
            cast(FSDPModule, self.loss_model).reshard()

    def gradient_norm(self) -> Tensor | None:
        """Global norm over all shards."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, learning_rate: float, norm: Tensor | None) -> float | None:
        """Clip and update."""
        if self._max_norm > 0 and norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        return None

    def snapshot(self) -> dcp.DCPSnapshot:
        """A copy of this rank's shards."""
        return dcp.DCPSnapshot(self.lm, self._optimizer)

    def restore(self, source: CheckpointSource, group: dist.ProcessGroup) -> None:
        """Load this rank's shards."""
        dcp.restore(self.lm, self._optimizer, source, group)

    def full_state(self) -> dict[str, Tensor]:
        """Gathered tensor by tensor, so that no rank but the first holds more than one whole tensor."""
        first = self._config.context.rank == 0
        full: dict[str, Tensor] = {}
        for name, tensor in self.lm.state_dict().items():
            whole = tensor.detach()
            if isinstance(whole, DTensor):
                # An offloaded shard is in host memory, where the mesh's backend does not reach.
                whole = cast(DTensor, whole.to(self._config.context.device)).full_tensor()
            if first:
                full[name] = whole.cpu()
        return full

    def close(self) -> None:
        """Nothing outlives the object."""


def blocks_of(lm: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the members of the heaviest ModuleList of one class. Each is gathered on its own."""
    heaviest: list[nn.Module] = []
    most = 0
    for modules in lm.modules():
        if isinstance(modules, nn.ModuleList) and len({type(module) for module in modules}) == 1:
            weight = sum(parameter.numel() for parameter in modules.parameters())
            if weight > most:  # not the longest list: a block may hold more experts than there are blocks
                heaviest, most = list(modules), weight
    return heaviest
