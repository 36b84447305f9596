"""The plan counts what must be held, and refuses with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api.trainjob import TrainJobSpec
from slipway_operator.config import PoolConfig
from slipway_operator.planner.fit import fit, state_bytes_per_rank

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
    assert state_bytes_per_rank(job(strategy), P) == bytes_per_parameter * P


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


def test_without_pools_nothing_is_counted_and_the_message_says_so() -> None:
    verdict = fit(job(workers={"count": 1000}), [])
    assert verdict.fits
    assert "not counted" in verdict.message
