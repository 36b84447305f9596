"""Places a job's workers on the configured pools, all or nothing, and estimates the state that each must hold.

The memory estimate counts what mixed-precision AdamW must keep and nothing that it merely might: float32 weights,
gradients and two moments, 16 bytes per parameter (arXiv:1910.02054, section 3.1, with float32 instead of half-precision
copies), divided by whatever the strategy shards. Activations are left out, so "does not fit" is always true and "fits"
is a necessary condition only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway_api.quantity import format_bytes, parse_quantity
from slipway_api.trainjob import TrainJobSpec, Workers
from slipway_operator.config import PoolConfig

# Bytes per parameter: float32 weights, gradients, and AdamW's two moments.
_WEIGHTS, _GRADIENTS, _MOMENTS = 4, 4, 8


@dataclass(frozen=True)
class Fit:
    """The verdict. `message` says why, for people, and what to change when it does not fit."""

    fits: bool
    message: str


def state_bytes_per_rank(spec: TrainJobSpec, parameters: int) -> int:
    """Bytes of weights, gradients and optimizer state that each rank holds between two steps."""
    world = spec.workers.count
    strategy = spec.strategy
    if strategy.name == "fsdp":
        degree = (strategy.fsdp.shard_degree if strategy.fsdp else None) or world
        return -(-parameters * (_WEIGHTS + _GRADIENTS + _MOMENTS) // degree)
    if strategy.deepspeed is not None:
        stage = strategy.deepspeed.stage
        sharded = _MOMENTS + (_GRADIENTS if stage >= 2 else 0) + (_WEIGHTS if stage == 3 else 0)
        replicated = _WEIGHTS + _GRADIENTS + _MOMENTS - sharded
        return parameters * replicated + -(-parameters * sharded // world)
    return parameters * (_WEIGHTS + _GRADIENTS + _MOMENTS)


def fit(spec: TrainJobSpec, pools: Sequence[PoolConfig]) -> Fit:
    """Whether every worker finds a place in one pool at the same time, and its training state room in its memory."""
    shortage = _memory_shortage(spec)
    if shortage:
        return Fit(False, shortage)
    return fit_workers(spec.workers, pools)


def fit_workers(workers: Workers, pools: Sequence[PoolConfig]) -> Fit:
    """Whether every worker finds a place in one pool at the same time."""
    if not pools:
        return Fit(True, "no pools are configured: nodes were not counted")
    refusals = []
    for pool in pools:
        capacity = _workers_that_fit(workers, pool)
        if capacity >= workers.count:
            return Fit(True, f"{_in_words(workers)} fit in pool {pool.name}")
        refusals.append(f"pool {pool.name} ({_pool(pool)}) has room for {capacity}")
    return Fit(
        False,
        f"spec.workers: {_in_words(workers)} do not fit: {'; '.join(refusals)}. "
        "Lower spec.workers.count or spec.workers.resources, or ask for a larger pool.",
    )


def _memory_shortage(spec: TrainJobSpec) -> str | None:
    fresh, tokenizer = spec.model.fresh, spec.tokenizer
    if fresh is None or tokenizer is None or tokenizer.train is None or spec.workers.resources.gpu:
        return None  # the size of the weights, or of the GPU, is known only to the run
    parameters = fresh.parameter_count(tokenizer.train.vocab_size)
    needed = state_bytes_per_rank(spec, parameters)
    memory = int(parse_quantity(spec.workers.resources.memory))
    if needed <= memory:
        return None
    return (
        f"spec.workers.resources.memory: {parameters:,} parameters with {spec.strategy.name} over "
        f"{spec.workers.count} workers need at least {format_bytes(needed)} per worker for weights, gradients and "
        f"optimizer state; each has {spec.workers.resources.memory}. Give workers more memory, use more workers with "
        "a strategy that shards (fsdp, deepspeed stage 3), or make the model smaller."
    )


def _workers_that_fit(workers: Workers, pool: PoolConfig) -> int:
    resources = workers.resources
    per_node = [
        int(pool.cpus / parse_quantity(resources.cpu)) if parse_quantity(resources.cpu) else workers.count,
        int(parse_quantity(pool.memory) / parse_quantity(resources.memory))
        if parse_quantity(resources.memory)
        else workers.count,
    ]
    if resources.gpu:
        per_node.append(pool.gpus // resources.gpu)
    return min(per_node) * pool.nodes


def _in_words(workers: Workers) -> str:
    resources = workers.resources
    gpu = f", {resources.gpu} GPU" if resources.gpu else ""
    plural = "worker" if workers.count == 1 else "workers"
    return f"{workers.count} {plural} of cpu {resources.cpu}, memory {resources.memory}{gpu}"


def _pool(pool: PoolConfig) -> str:
    nodes = "1 node" if pool.nodes == 1 else f"{pool.nodes} nodes"
    gpus = f", {pool.gpus} GPUs" if pool.gpus else ", no GPU"
    return f"{nodes} of {pool.cpus} CPUs, {pool.memory}{gpus}"
