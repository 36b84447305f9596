"""How many replicas Ray Serve is asked for, down to none."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_operator.controllers.deployment.analysis import Tally

from .world import World, trained

TO_ZERO = {"min": 0, "max": 2, "idleSeconds": 40}


def scale(world: World, version: str) -> dict[str, Any]:
    """What the application of a version is asked for."""
    [app] = [app for app in world.config()["applications"] if app["name"] == version]
    deployment = app["deployments"][0]
    found: dict[str, Any] = deployment.get("autoscaling_config") or {"num_replicas": deployment["num_replicas"]}
    return found


def bounds(world: World, version: str) -> tuple[int, int]:
    found = scale(world, version)
    return found["min_replicas"], found["max_replicas"]


def test_a_version_must_have_been_ready_before_it_may_go_to_zero() -> None:
    world = World.of(replicas=TO_ZERO)
    world.step()
    world.states = {world.stable(): ("DEPLOYING", "")}
    world.run()
    assert bounds(world, world.stable()) == (1, 2), "else it would count as ready without a model ever loaded"
    world.states = {}
    world.run()
    assert bounds(world, world.stable()) == (0, 2)
    assert scale(world, world.stable())["downscale_to_zero_delay_s"] == 40
    world.states = {world.stable(): ("DEPLOYING", "")}  # Serve takes the new configuration over
    world.run()
    assert bounds(world, world.stable()) == (0, 2), "it does not go back and forth"


def test_a_candidate_loads_its_model_while_the_stable_version_sleeps() -> None:
    world = World.of(replicas=TO_ZERO, canary={"steps": [{"weight": 50, "pauseSeconds": 60}]})
    world.run()
    old = world.stable()
    world.train_job = trained("base", "b")
    world.step()
    new = world.candidate()
    assert new
    assert scale(world, new) == {"num_replicas": 1}
    assert bounds(world, old)[0] == 0
    world.run(5)
    assert bounds(world, new)[0] == 0
    world.run(120)
    assert world.stable() == new


def test_suspended_and_resumed_it_must_be_ready_anew() -> None:
    world = World.of(replicas=TO_ZERO)
    world.run()
    world.change(suspend=True)
    world.run()
    world.change(suspend=False)
    world.step()
    assert bounds(world, world.stable()) == (1, 2)


def test_without_a_range_there_is_no_autoscaler_and_with_one_its_delays_are_ours() -> None:
    world = World.of(replicas={"min": 3, "max": 3})
    world.run()
    assert scale(world, world.stable()) == {"num_replicas": 3}
    world.change(replicas={"min": 1, "max": 3})
    world.run()
    found = scale(world, world.stable())
    assert (found["upscale_delay_s"], found["downscale_delay_s"]) == (5, 300)
    assert "downscale_to_zero_delay_s" not in found


def test_a_cold_start_stands_in_status_and_stays_when_the_operator_restarts() -> None:
    world = World.of(replicas=TO_ZERO)
    world.run()
    world.tallies = {world.stable(): Tally(1, 0, 9000.0, cold_start_seconds=7.34)}
    world.run()
    assert world.status is not None
    assert world.status["stable"]["coldStartSeconds"] == "7.3"
    world.tallies = {world.stable(): Tally(2, 0, 10.0)}
    world.run()
    assert world.status["stable"]["coldStartSeconds"] == "7.3"


@pytest.mark.parametrize(
    ("replicas", "pods"),
    [({"min": 2, "max": 2}, (3, 3, 3)), ({"min": 1, "max": 4}, (1, 1, 5)), ({"min": 0, "max": 2}, (1, 0, 3))],
)
def test_pods_come_and_go_with_replicas_and_only_the_autoscaler_has_credentials(
    replicas: dict[str, int], pods: tuple[int, int, int]
) -> None:
    world = World.of(replicas=replicas)
    world.run()
    assert world.ray_service is not None
    cluster = world.ray_service["spec"]["rayClusterConfig"]
    [group] = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == pods
    scales = pods[1] < pods[2]
    assert bool(cluster.get("enableInTreeAutoscaling")) == scales
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is False
    assert [v["name"] for v in head["volumes"]] == ["run", *(["kubernetes"] if scales else [])]
    assert [mount["name"] for mount in head["containers"][0]["volumeMounts"]] == ["run"]
