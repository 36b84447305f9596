"""What a job costs is told before it runs and added up as its attempts end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway_api import conditions as c
from slipway_operator.config import PoolConfig

from .world import SETTINGS, SUCCESS, World, exit_message


def priced(world: World, *pools: dict[str, Any]) -> World:
    """Pools with a price, in place of the usual one."""
    rows = [{"nodes": 1, "cpus": 4, "memory": "8Gi"} | pool for pool in pools]
    config = SETTINGS.config.model_copy(update={"pools": [PoolConfig.model_validate(row) for row in rows]})
    world.settings = replace(SETTINGS, config=config)
    return world


def lose_an_attempt(world: World, seconds: float) -> None:
    """The first attempt ends after so long, for no fault of the user's; the next may begin."""
    world.settle()
    world.pass_time(seconds)
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=exit_message(75))
    world.settle()
    world.finalize()


# A node holds four of our workers, of which there are two: half of the node.
POOLS = ({"name": "tiny", "cpus": 1}, {"name": "a", "pricePerHour": "7.2", "powerWatts": 400})


def test_the_plan_names_the_pool_the_price_and_the_power() -> None:
    world = priced(World.of(), *POOLS)
    world.settle()
    assert world.job["status"]["pool"] == "a"
    assert world.message(c.PLANNED).endswith("fit in pool a: 3.60 USD and 0.2 kWh an hour at work")


def test_every_attempt_is_paid_for() -> None:
    world = priced(World.of(), *POOLS)
    lose_an_attempt(world, 600)
    assert world.job["status"]["usage"] == {
        "workerSeconds": 1200, "gpuSeconds": 0, "cost": "0.6000", "currency": "USD", "energyKwh": "0.0333"
    }  # fmt: skip
    world.pass_time(3600)
    world.settle()
    world.pass_time(1200)
    world.say("Ended", end=SUCCESS)
    world.settle()
    assert world.outcomes()[-1] == "Succeeded"
    assert world.job["status"]["usage"]["cost"] == "1.8000"
    assert world.job["status"]["usage"]["energyKwh"] == "0.1000"


def test_a_price_that_has_changed_counts_from_then_on() -> None:
    world = priced(World.of(), *POOLS)
    lose_an_attempt(world, 600)
    world.pass_time(3600)
    priced(world, {"name": "a", "pricePerHour": "14.4"})
    world.settle()
    world.pass_time(600)
    world.say("Ended", end=SUCCESS)
    world.settle()
    assert world.job["status"]["usage"]["cost"] == "1.8000"
    assert world.job["status"]["usage"]["energyKwh"] == "0.0333"


def test_without_a_price_nothing_is_said_of_it() -> None:
    world = World.of()
    world.settle()
    world.pass_time(60)
    world.say("Ended", end=SUCCESS)
    world.settle()
    assert world.message(c.PLANNED).endswith("fit in pool local")
    assert world.job["status"]["usage"] == {"workerSeconds": 120, "gpuSeconds": 0}


def test_an_evaluation_is_paid_for_too() -> None:
    world = priced(World.of_evaljob(model={"uri": "file:///m"}), POOLS[1])
    world.settle()
    world.pass_time(3600)
    world.ray_status(jobStatus="FAILED", jobDeploymentStatus="Failed", message=exit_message(65))
    world.settle()
    assert world.job["status"]["pool"] == "a"
    assert world.job["status"]["usage"]["cost"] == "1.8000"  # one worker: a quarter
