"""What a rank must hold between two steps, and where.

Counted is what mixed-precision AdamW must keep and nothing that it merely might: float32 weights, gradients and two
moments, 16 bytes per parameter (arXiv:1910.02054, section 3.1, with float32 instead of half-precision copies), divided
by whatever the strategy shards. Activations are left out, so "does not fit" is always true and "fits" is a necessary
condition only.
"""

from __future__ import annotations

from dataclasses import dataclass

from slipway_api.trainjob import TrainJobSpec

# Bytes per parameter: float32 weights, gradients, and AdamW's two moments.
_WEIGHTS, _GRADIENTS, _MOMENTS = 4, 4, 8


@dataclass(frozen=True)
class RankState:
    """Bytes of weights, gradients and optimizer state of one rank, by the memory that holds them."""

    gpu: int
    host: int


def state_of_rank(spec: TrainJobSpec, parameters: int) -> RankState:
    """Where a model of so many parameters stays, between two steps, on the fullest rank."""
    moments, rest = _bytes_of_rank(spec, parameters)
    strategy = spec.strategy
    if not spec.workers.resources.gpu or (strategy.fsdp is not None and strategy.fsdp.cpu_offload):
        return RankState(gpu=0, host=moments + rest)
    if strategy.deepspeed is not None and strategy.deepspeed.offload_optimizer:
        return RankState(gpu=rest, host=moments)
    return RankState(gpu=moments + rest, host=0)


def _bytes_of_rank(spec: TrainJobSpec, parameters: int) -> tuple[int, int]:
    """(of the moments, of weights and gradients)"""
    world, strategy = spec.workers.count, spec.strategy
    if strategy.name == "fsdp":
        degree = (strategy.fsdp.shard_degree if strategy.fsdp else None) or world
        return _part(parameters * _MOMENTS, degree), _part(parameters * (_WEIGHTS + _GRADIENTS), degree)
    if strategy.deepspeed is not None:
        stage = strategy.deepspeed.stage
        gradients = _part(parameters * _GRADIENTS, world if stage >= 2 else 1)
        weights = _part(parameters * _WEIGHTS, world if stage == 3 else 1)
        return _part(parameters * _MOMENTS, world), weights + gradients
    return parameters * _MOMENTS, parameters * (_WEIGHTS + _GRADIENTS)


def _part(count: int, of: int) -> int:
    return -(-count // of)
