"""What a job's workers cost and draw, by the price and the power of the pool that was planned for them.

A worker bears its part of a node: one over the number of workers of its size that the node holds. So a worker with one
of eight GPUs bears an eighth, and one that leaves no room for another bears the whole node. The head of the Ray
cluster is not counted; an attempt is, from its creation (with a queue, its quota) to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from slipway_api.trainjob import Workers
from slipway_operator.config import OperatorConfig
from slipway_operator.planner.placement import pool_named, workers_per_node


@dataclass(frozen=True)
class Rate:
    """Of all workers of a job together. None: the pool does not say."""

    price_per_hour: Decimal | None = None
    currency: str = ""
    kilowatts: Decimal | None = None

    def __str__(self) -> str:
        """For people: "98.32 USD and 5.6 kWh an hour"; empty where nothing is known."""
        known = []
        if self.price_per_hour is not None:
            known.append(f"{self.price_per_hour:.2f} {self.currency}")
        if self.kilowatts is not None:
            known.append(f"{self.kilowatts.quantize(Decimal('0.01')).normalize():f} kWh")
        return f"{' and '.join(known)} an hour" if known else ""


def rate_of(workers: Workers, pool_name: str | None, config: OperatorConfig) -> Rate:
    """What these workers cost and draw while they run; nothing is known of a pool that is not configured (any more)."""
    pool = pool_named(pool_name, config.pools)
    if pool is None:
        return Rate()
    nodes = Decimal(workers.count) / max(1, workers_per_node(workers, pool))
    price, watts = pool.price_per_hour, pool.power_watts
    return Rate(
        price_per_hour=None if price is None else Decimal(price) * nodes,
        currency="" if price is None else config.currency,
        kilowatts=None if watts is None else Decimal(watts) * nodes / 1000,
    )
