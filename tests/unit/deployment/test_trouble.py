"""What pods and the RayService say of a Deployment that does not answer, and what they say while it does."""

from __future__ import annotations

from typing import Any

import pytest

from slipway_api import conditions as c
from slipway_operator.controllers.deployment.trouble import clusters_of, told_by
from slipway_operator.controllers.runs.pods import project

from .world import World

SCHEDULED = {"type": "PodScheduled", "status": "True"}
KILLED = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:09:00Z"}


def pod(role: str, state: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    container = {"name": "ray", "image": "registry/serving:1", "state": state}
    if last:
        container["lastState"] = {"terminated": last}
    labels = {"slipway.dev/deployment": "chat", "ray.io/cluster": "chat-x", "ray.io/node-type": role}
    metadata = {"name": f"{role}-0", "namespace": "team", "uid": role, "labels": labels}
    return project({"metadata": metadata, "status": {"conditions": [SCHEDULED], "containerStatuses": [container]}})


UP = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
NO_IMAGE = {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
LOOPING = {"waiting": {"reason": "CrashLoopBackOff"}}


@pytest.mark.parametrize(
    ("pods", "remembered", "answers", "reason", "problem"),
    [
        ([pod("head", UP)], [], False, None, False),
        ([pod("head", CREATING)], [], False, c.PULLING_IMAGES, False),
        ([pod("head", NO_IMAGE), pod("worker", CREATING)], [], False, c.IMAGE_PULL_FAILED, True),
        ([pod("head", UP, KILLED)], [], False, c.OUT_OF_MEMORY_KILLED, True),
        ([pod("worker", LOOPING, KILLED)], [], False, c.OUT_OF_MEMORY_KILLED, True),  # the cause, not the symptom
        ([pod("worker", LOOPING)], [], False, c.CRASH_LOOPING, True),
        ([pod("head", CREATING)], [pod("head", {"terminated": KILLED})], False, c.OUT_OF_MEMORY_KILLED, True),
        # While it answers: what is over is over, what keeps a replica from coming is told.
        ([pod("head", UP), pod("worker", UP, KILLED)], [pod("head", {"terminated": KILLED})], True, None, False),
        ([pod("head", UP), pod("worker", CREATING)], [], True, None, False),
        ([pod("head", UP), pod("worker", NO_IMAGE)], [], True, c.IMAGE_PULL_FAILED, True),
    ],
)
def test_what_is_told(
    pods: list[dict[str, Any]], remembered: list[dict[str, Any]], answers: bool, reason: str | None, problem: bool
) -> None:
    told = told_by(pods, remembered, answers=answers)
    assert (told.reason, told.problem) == (reason, problem) if told else reason is None


def test_who_ran_out_of_memory_is_told_what_to_raise() -> None:
    for role, words in (("head", "ray.headMemory"), ("worker", "spec.replicas.resources.memory")):
        told = told_by([pod(role, UP, KILLED)], [], answers=False)
        assert told is not None
        assert words in told.message
        assert "2026-01-01T00:09:00Z" in told.message


def test_the_clusters_that_answer_and_that_come_are_looked_at() -> None:
    status = {"activeServiceStatus": {"rayClusterName": "a"}, "pendingServiceStatus": {"rayClusterName": "b"}}
    assert clusters_of({"status": status}) == ["a", "b"]
    assert clusters_of({"status": {"activeServiceStatus": {}}}) == clusters_of(None) == []


def test_conditions_follow_the_pods_and_recover() -> None:
    world = World.of()
    world.step()
    world.states = dict.fromkeys(world.applications(), ("", ""))
    world.pods = [pod("head", NO_IMAGE)]
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.IMAGE_PULL_FAILED)
    assert world.condition(c.DEGRADED) == ("True", c.IMAGE_PULL_FAILED)
    assert world.condition(c.PROGRESSING) == ("True", c.DEPLOYING)
    assert len([event for event in world.events if event.startswith(c.IMAGE_PULL_FAILED)]) == 1
    world.pods, world.states = [pod("head", UP)], {}
    world.run()
    assert world.condition(c.AVAILABLE) == ("True", c.SERVING)
    assert world.condition(c.DEGRADED) == ("False", c.AS_ASKED)


def test_a_model_that_fails_to_load_is_not_hidden_by_a_pod_that_is_starting() -> None:
    world = World.of()
    world.step()
    world.states = {world.stable(): ("DEPLOY_FAILED", "no such file")}
    world.pods = [pod("worker", CREATING)]
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.UNHEALTHY)
    assert "no such file" in world.message(c.AVAILABLE)


def test_a_rayservice_that_is_refused_or_waits_says_why() -> None:
    world = World.of()
    world.step()
    world.ready = {"status": "False", "reason": "Initializing", "message": "waiting for 2 CPUs: 1 job ahead"}
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.DEPLOYING)
    assert "waiting for 2 CPUs" in world.message(c.AVAILABLE)
    world.ready = {"status": "False", "reason": "ValidationFailed", "message": "the service needs 1 GPU"}
    world.run()
    assert world.condition(c.AVAILABLE) == ("False", c.REJECTED)
    assert world.condition(c.DEGRADED) == ("True", c.REJECTED)
    assert "the service needs 1 GPU" in world.message(c.DEGRADED)
