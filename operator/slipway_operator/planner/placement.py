"""Which of the configured pools holds a job's workers, all at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from slipway_api.quantity import parse_quantity
from slipway_api.trainjob import Workers
from slipway_operator.config import PoolConfig


def pool_named(name: str | None, pools: Sequence[PoolConfig]) -> PoolConfig | None:
    """The pool of that name; None where none is configured (any more)."""
    return next((pool for pool in pools if pool.name == name), None)


def workers_per_node(workers: Workers, pool: PoolConfig) -> int:
    """How many workers of this size one node holds; of workers that ask for nothing, as many as there are."""
    resources = workers.resources
    cpu, memory = parse_quantity(resources.cpu), parse_quantity(resources.memory)
    limits = []
    if cpu:
        limits.append(int(pool.cpus / cpu))
    if memory:
        limits.append(int(parse_quantity(pool.memory) / memory))
    if resources.gpu:
        limits.append(pool.gpus // resources.gpu)
    return min(limits, default=workers.count)


def capacity(workers: Workers, pool: PoolConfig) -> int:
    """How many of these workers the whole pool holds."""
    return workers_per_node(workers, pool) * pool.nodes


def workers_in_words(workers: Workers) -> str:
    """For messages: "2 workers of cpu 1, memory 2Gi"."""
    resources = workers.resources
    gpu = f", {resources.gpu} GPU" if resources.gpu else ""
    plural = "worker" if workers.count == 1 else "workers"
    return f"{workers.count} {plural} of cpu {resources.cpu}, memory {resources.memory}{gpu}"


def pool_in_words(pool: PoolConfig) -> str:
    """For messages: "pool a (2 nodes of 4 CPUs, 8Gi, no GPU)"."""
    nodes = "1 node" if pool.nodes == 1 else f"{pool.nodes} nodes"
    gpus = f", {pool.gpus} GPUs" if pool.gpus else ", no GPU"
    if pool.gpus and pool.gpu_memory:
        gpus += f" of {pool.gpu_memory}"
    return f"pool {pool.name} ({nodes} of {pool.cpus} CPUs, {pool.memory}{gpus})"
