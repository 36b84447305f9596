"""The plan counts what must be held, and refuses with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api.trainjob import TrainJobSpec
from slipway_operator.config import PoolConfig
from slipway_operator.planner.fit import fit
from slipway_operator.planner.memory import RankState, state_of_rank

P = 1_000_000


def job(strategy: dict[str, Any] | None = None, workers: dict[str, Any] | None = None) -> TrainJobSpec:
    return TrainJobSpec.model_validate(
        {
            "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"uri": "python://stdlib"}]},
            "training": {"steps": 1},
            "strategy": strategy or {},
            "workers": workers or {"count": 4},
        }
    )


@pytest.mark.parametrize(
    ("strategy", "bytes_per_parameter"),
    [
        ({"ddp": {}}, 16),
        ({"fsdp": {}}, 4),
        ({"fsdp": {"shardDegree": 2}}, 8),
        ({"deepspeed": {"stage": 1}}, 8 + 2),
        ({"deepspeed": {"stage": 2}}, 4 + 3),
        ({"deepspeed": {"stage": 3}}, 4),
    ],
)
def test_state_per_rank_of_four(strategy: dict[str, Any], bytes_per_parameter: int) -> None:
    assert state_of_rank(job(strategy), P) == RankState(gpu=0, host=bytes_per_parameter * P)


GPU = {"count": 4, "resources": {"gpu": 1}}


@pytest.mark.parametrize(
    ("strategy", "gpu", "host"),
    [
        ({"ddp": {}}, 16, 0),
        ({"fsdp": {}}, 4, 0),
        ({"fsdp": {"cpuOffload": True}}, 0, 4),
        ({"deepspeed": {"stage": 3}}, 4, 0),
        ({"deepspeed": {"stage": 3, "offloadOptimizer": True}}, 2, 2),
        ({"deepspeed": {"stage": 1, "offloadOptimizer": True}}, 8, 2),
    ],
)
def test_on_a_gpu_what_is_offloaded_is_in_the_hosts_memory(strategy: dict[str, Any], gpu: int, host: int) -> None:
    assert state_of_rank(job(strategy, GPU), P) == RankState(gpu=gpu * P, host=host * P)


def pool(**changes: Any) -> PoolConfig:
    return PoolConfig.model_validate({"name": "p", "nodes": 2, "cpus": 4, "memory": "8Gi"} | changes)


@pytest.mark.parametrize(
    ("workers", "fits"),
    [
        ({"count": 8}, True),
        ({"count": 9}, False),
        ({"count": 2, "resources": {"cpu": "4", "memory": "8Gi"}}, True),
        ({"count": 2, "resources": {"cpu": "5"}}, False),
        ({"count": 3, "resources": {"memory": "5Gi"}}, False),
        ({"count": 16, "resources": {"cpu": "500m", "memory": "1Gi"}}, True),
        ({"count": 1, "resources": {"gpu": 1}}, False),
    ],
)
def test_counting_nodes(workers: dict[str, Any], fits: bool) -> None:
    spec = job(workers=workers)
    assert fit(spec, [pool()]).fits is fits


def test_any_pool_will_do() -> None:
    verdict = fit(job(workers={"count": 2, "resources": {"gpu": 1}}), [pool(), pool(name="gpus", gpus=1)])
    assert verdict.fits
    assert "gpus" in verdict.message


def test_a_pool_that_is_named_is_the_only_one() -> None:
    pools = [pool(), pool(name="large", nodes=9)]
    two = {"count": 2, "pool": "large"}
    assert fit(job(workers=two), pools).pool == pools[1]
    assert "pool p (2 nodes" in fit(job(workers={"count": 30, "pool": "p"}), pools).message
    assert not fit(job(workers={"count": 30, "pool": "p"}), pools).fits


@pytest.mark.parametrize(("pools", "known"), [([pool(), pool(name="q")], "p, q"), ([], "none")])
def test_a_pool_that_is_named_must_exist(pools: list[PoolConfig], known: str) -> None:
    verdict = fit(job(workers={"count": 1, "pool": "large"}), pools)
    assert not verdict.fits
    assert verdict.message.startswith(f"spec.workers.pool: there is no pool large (configured: {known}).")


def test_without_pools_nothing_is_counted_and_the_message_says_so() -> None:
    verdict = fit(job(workers={"count": 1000}), [])
    assert verdict.fits
    assert "not counted" in verdict.message


def large(strategy: dict[str, Any], **changes: Any) -> TrainJobSpec:
    """Of 6,738,415,616 parameters (LLaMA 7B): 100.4 GiB of training state."""
    document = job(strategy, GPU).to_wire()
    document["model"] = {"fresh": {"hiddenSize": 4096, "layers": 32, "heads": 32, "intermediateSize": 11008}}
    document["model"]["fresh"]["tieEmbeddings"] = False
    document["tokenizer"] = {"train": {"vocabSize": 32000}}
    return TrainJobSpec.model_validate(document | changes)


SMALL, LARGE = pool(name="small", gpus=8, gpuMemory="24Gi"), pool(name="large", gpus=8, gpuMemory="80Gi")


def test_the_state_of_a_rank_must_fit_into_its_gpu() -> None:
    assert fit(large({"fsdp": {}}), [SMALL, LARGE]).pool == LARGE  # 25.1 GiB of each
    replicated = fit(large({"ddp": {}}), [SMALL, LARGE])
    assert not replicated.fits
    assert replicated.message == (
        "spec.workers: 4 workers of cpu 1, memory 2Gi, 1 GPU do not fit: pool small (2 nodes of 4 CPUs, 8Gi, 8 GPUs of "
        "24Gi) has GPUs that are too small; pool large (2 nodes of 4 CPUs, 8Gi, 8 GPUs of 80Gi) has GPUs that are too "
        "small. 6,738,415,616 parameters with ddp over 4 workers need at least 100.4Gi of each GPU for weights, "
        "gradients and optimizer state. Use more workers with a strategy that shards (fsdp, deepspeed stage 3), "
        "offload (fsdp.cpuOffload, deepspeed.offloadOptimizer), or make the model smaller."
    )


def test_what_is_offloaded_must_fit_into_the_workers_memory() -> None:
    offloaded = {"deepspeed": {"stage": 3, "offloadOptimizer": True}}
    verdict = fit(large(offloaded), [SMALL])
    assert not verdict.fits
    assert "need at least 12.55Gi per worker for the optimizer state that is offloaded; each has 2Gi" in verdict.message
    roomy = {"count": 4, "resources": {"gpu": 1, "memory": "16Gi"}}
    assert fit(large(offloaded, workers=roomy), [pool(nodes=4, memory="16Gi", gpus=1, gpuMemory="24Gi")]).fits


def test_a_pool_that_does_not_say_how_large_its_gpus_are_refuses_no_model() -> None:
    assert fit(large({"ddp": {}}), [pool(gpus=8)]).fits


def test_the_size_of_a_base_model_counts_where_it_is_known() -> None:
    continued = job({"ddp": {}}, GPU).to_wire() | {"model": {"trainJob": {"name": "base"}}, "tokenizer": None}
    spec = TrainJobSpec.model_validate({name: value for name, value in continued.items() if value is not None})
    assert fit(spec, [SMALL]).fits
    assert not fit(spec, [SMALL], base_parameters=7_000_000_000).fits
