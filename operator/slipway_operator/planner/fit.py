"""Does a job fit: its workers into one of the configured pools at the same time, and what each must hold into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway_api.quantity import format_bytes, parse_quantity
from slipway_api.trainjob import TrainJobSpec, Workers
from slipway_operator.config import PoolConfig
from slipway_operator.planner.memory import RankState, state_of_rank
from slipway_operator.planner.placement import capacity, pool_in_words, workers_in_words

_NOTHING = RankState(gpu=0, host=0)
_ALL = "weights, gradients and optimizer state"


@dataclass(frozen=True)
class Fit:
    """The verdict. `message` says why, for people, and what to change when it does not fit."""

    fits: bool
    message: str
    pool: PoolConfig | None = None  # the one that it fits in; None too where no pools are configured


def fit(spec: TrainJobSpec, pools: Sequence[PoolConfig], base_parameters: int | None = None) -> Fit:
    """Whether a training job fits. `base_parameters`: of the model that it starts from, where that is known.

    Of other models than fresh ones the size is known only to the run: then workers are counted, and no bytes.
    """
    parameters = _parameters(spec) if spec.model.fresh is not None else base_parameters
    if parameters is None:
        return fit_workers(spec.workers, pools)
    state = state_of_rank(spec, parameters)
    needs = f"{parameters:,} parameters with {spec.strategy.name} over {spec.workers.count} workers need at least"
    memory = spec.workers.resources.memory
    on_host = "the optimizer state that is offloaded" if state.gpu else _ALL
    if state.host > parse_quantity(memory):
        return Fit(
            False,
            f"spec.workers.resources.memory: {needs} {format_bytes(state.host)} per worker for {on_host}; "
            f"each has {memory}. Give workers more memory, use more workers with a strategy that shards "
            "(fsdp, deepspeed stage 3), or make the model smaller.",
        )
    return fit_workers(spec.workers, pools, state, needs)


def fit_workers(workers: Workers, pools: Sequence[PoolConfig], state: RankState = _NOTHING, needs: str = "") -> Fit:
    """Whether every worker finds a place in one pool at the same time, and `state` room in its GPU.

    `needs` says whose state it is: the beginning of a sentence that ends with bytes.
    """
    if workers.pool is not None:
        known = ", ".join(pool.name for pool in pools) or "none"
        pools = [pool for pool in pools if pool.name == workers.pool]
        if not pools:
            return Fit(
                False,
                f"spec.workers.pool: there is no pool {workers.pool} (configured: {known}). Name another; or none, and "
                "it is the first one that has room.",
            )
    if not pools:
        return Fit(True, "no pools are configured: nodes were not counted")
    refusals, too_small = [], False
    for pool in pools:
        room = capacity(workers, pool)
        if room < workers.count:
            refusals.append(f"{pool_in_words(pool)} has room for {room}")
        elif pool.gpu_memory is not None and state.gpu > parse_quantity(pool.gpu_memory):
            too_small = True
            refusals.append(f"{pool_in_words(pool)} has GPUs that are too small")
        else:
            return Fit(True, f"{workers_in_words(workers)} fit in pool {pool.name}", pool)
    message = f"spec.workers: {workers_in_words(workers)} do not fit: {'; '.join(refusals)}. "
    if too_small:
        on_gpu = "weights and gradients" if state.host else _ALL
        return Fit(
            False,
            f"{message}{needs} {format_bytes(state.gpu)} of each GPU for {on_gpu}. Use more workers with a strategy "
            "that shards (fsdp, deepspeed stage 3), offload (fsdp.cpuOffload, deepspeed.offloadOptimizer), or make the "
            "model smaller.",
        )
    return Fit(False, f"{message}Lower spec.workers.count or spec.workers.resources, or ask for a larger pool.")


def _parameters(spec: TrainJobSpec) -> int | None:
    """Of a fresh model whose vocabulary is known."""
    fresh, tokenizer = spec.model.fresh, spec.tokenizer
    if fresh is None or tokenizer is None or tokenizer.train is None:
        return None
    return fresh.parameter_count(tokenizer.train.vocab_size)
