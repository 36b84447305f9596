"""Jobs in a Kueue queue: created suspended, admitted, taken back; and a cluster without Kueue."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_operator.controllers.runs.decide import decide

from .pods import CLUSTER
from .world import KIND, SETTINGS, World

RAN = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "rayClusterName": CLUSTER}


def queued(**changes: Any) -> World:
    world = World.of(queue="team-a", **changes)
    world.settle()
    return world


def admit(world: World) -> None:
    """What Kueue does."""
    world.newest()["spec"]["suspend"] = False


def test_a_job_with_a_queue_is_created_suspended_under_kueues_label() -> None:
    world = queued()
    ray_job = world.newest()
    assert ray_job["spec"]["suspend"] is True
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert world.condition("Running") == ("False", "WaitingForQuota")
    assert "kueue.x-k8s.io/job-uid=uid-" in world.message("Running")


def test_a_job_without_a_queue_is_not() -> None:
    world = World.of()
    world.settle()
    assert world.newest()["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in world.newest()["metadata"]["labels"]


def test_waiting_in_the_queue_is_not_usage() -> None:
    world = queued()
    world.pass_time(1000)
    admit(world)
    world.settle()
    assert world.condition("Running") == ("False", "WaitingForResources")
    world.ray_status(**RAN)
    world.pass_time(10)
    world.edit(suspend=True)
    world.settle()
    assert world.job["status"]["usage"]["workerSeconds"] == 2 * 10


def test_a_job_suspended_in_the_queue_has_used_nothing() -> None:
    world = queued()
    world.pass_time(1000)
    world.edit(suspend=True)
    world.settle()
    assert world.outcomes() == ["Suspended"]
    assert world.job["status"]["usage"]["workerSeconds"] == 0


def test_quota_that_is_taken_back_is_preemption_and_the_next_attempt_queues_anew() -> None:
    world = queued(retry={"limit": 0, "backoffSeconds": 1})
    admit(world)
    world.ray_status(**RAN)
    world.settle()
    assert world.condition("Running") == ("True", "Starting")
    world.newest()["spec"]["suspend"] = True
    world.settle()
    assert world.outcomes() == ["Preempted"]
    world.finalize()
    world.pass_time(1)
    world.settle()
    assert world.created == ["job-1", "job-2"]
    assert world.condition("Running") == ("False", "WaitingForQuota")


def test_quota_that_is_taken_back_before_anything_ran_costs_no_attempt() -> None:
    world = queued()
    admit(world)
    world.settle()
    world.newest()["spec"]["suspend"] = True
    world.settle()
    assert world.outcomes() == [None]
    assert world.condition("Running") == ("False", "WaitingForQuota")


def test_somebody_elses_suspension_is_told_as_such() -> None:
    world = World.of()
    world.settle()
    world.newest()["spec"]["suspend"] = True
    world.settle()
    assert world.condition("Running") == ("False", "WaitingForQuota")
    assert "whoever suspended it must resume it" in world.message("Running")
    assert world.outcomes() == [None]


def test_an_adopted_rayjob_is_in_the_queue_as_well() -> None:
    world = World.of(queue="team-a")
    decision = decide(KIND, world.observe(), SETTINGS, world.now)
    for child in decision.apply:
        world._apply(child)  # and the operator dies before it writes the status
    world.settle()
    assert world.created == ["job-1"]
    assert world.condition("Running") == ("False", "WaitingForQuota")


def test_without_kueue_nothing_is_created_and_it_is_said_once() -> None:
    world = World.of(queue="team-a")
    world.kueue_missing = True
    for _ in range(3):
        assert world.settle().requeue_after == pytest.approx(15)
        world.pass_time(15)
    assert world.created == []
    assert world.condition("Running") == ("False", "WaitingForKueue")
    assert "install Kueue" in world.message("Running")
    assert world.events.count("WaitingForKueue") == 1
    world.kueue_missing = False
    world.settle()
    assert world.created == ["job-1"]


def test_a_job_without_a_queue_needs_no_kueue() -> None:
    world = World.of()
    world.kueue_missing = True
    world.settle()
    assert world.created == ["job-1"]
