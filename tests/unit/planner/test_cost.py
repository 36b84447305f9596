"""What workers cost is their part of their nodes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slipway_api.trainjob import Workers
from slipway_operator.config import OperatorConfig, PoolConfig, ReportsConfig, StorageConfig
from slipway_operator.controllers.runs import usage
from slipway_operator.planner.cost import Rate, rate_of


def config(**pool: Any) -> OperatorConfig:
    gpus = {"name": "gpus", "nodes": 4, "cpus": 96, "memory": "1000Gi", "gpus": 8} | pool
    return OperatorConfig(
        storage=StorageConfig(uri="file:///data"),
        reports=ReportsConfig(listen="127.0.0.1:0", url="http://127.0.0.1:1", key_file=Path("/nowhere")),
        pools=[PoolConfig.model_validate(gpus)],
        currency="EUR",
    )


def workers(count: int, **resources: Any) -> Workers:
    return Workers.model_validate({"count": count, "resources": resources})


PRICED = config(pricePerHour="80", powerWatts=10_000)


@pytest.mark.parametrize(
    ("asked", "nodes"),
    [
        (workers(1, gpu=1), "0.125"),
        (workers(8, gpu=1), "1"),
        (workers(12, gpu=1), "1.5"),
        (workers(2, gpu=1, memory="900Gi"), "2"),  # each leaves no room for another
        (workers(2, gpu=1, cpu="24"), "0.5"),
    ],
)
def test_a_worker_bears_its_part_of_a_node(asked: Workers, nodes: str) -> None:
    rate = rate_of(asked, "gpus", PRICED)
    assert rate == Rate(80 * Decimal(nodes), "EUR", 10 * Decimal(nodes))


def test_what_one_worker_bears_does_not_depend_on_how_many_there_are() -> None:
    """Also where there are fewer than a node holds."""
    one, two = (rate_of(workers(count, gpu=1), "gpus", PRICED).price_per_hour for count in (1, 2))
    assert one is not None
    assert two == 2 * one


def test_in_words_with_what_is_known() -> None:
    assert str(rate_of(workers(8, gpu=1), "gpus", PRICED)) == "80.00 EUR and 10 kWh an hour"
    assert str(rate_of(workers(1, gpu=1), "gpus", config(pricePerHour="98.32"))) == "12.29 EUR an hour"
    assert str(rate_of(workers(1, gpu=1), "gpus", config(powerWatts=10_200))) == "1.28 kWh an hour"
    assert str(rate_of(workers(1, gpu=1), "gpus", config())) == ""
    assert rate_of(workers(1), "another", PRICED) == Rate() == rate_of(workers(1), None, PRICED)


def test_the_use_of_attempts_adds_up() -> None:
    rate = rate_of(workers(2, gpu=1), "gpus", PRICED)
    used = usage.of(1800, workers(2, gpu=1), rate)
    assert used == {
        "workerSeconds": 3600, "gpuSeconds": 3600, "cost": "10.0000", "currency": "EUR", "energyKwh": "1.2500"
    }  # fmt: skip
    assert usage.total([{}, used]) == used
    assert usage.total([used, used])["cost"] == "20.0000"
    unpriced = usage.of(60, workers(1), Rate())
    assert unpriced == {"workerSeconds": 60, "gpuSeconds": 0}
    assert usage.total([used, unpriced]) == used | {"workerSeconds": 3660}


def test_amounts_of_different_currencies_have_no_sum() -> None:
    old = usage.of(3600, workers(1), Rate(Decimal(5), "EUR"))
    new = usage.of(3600, workers(1), Rate(Decimal(7), "USD"))
    summed = usage.total([old, new])
    assert (summed["cost"], summed["currency"]) == ("7.0000", "USD")
    assert summed["workerSeconds"] == 7200
