"""What pods say: one table for why a run waits, one for what ends it, and the ladder with pods in its world."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from typing import Any

import pytest

from slipway_operator.controllers.runs.pods import (
    PATIENCE,
    end_by_pods,
    head_lost,
    is_urgent,
    project,
    seconds_of_patience,
    why_waiting,
)
from slipway_operator.controllers.runs.testimony import PodTestimony
from slipway_operator.kube.store import Change

from .pods import CLUSTER, IMAGE, condition, container, evicted, killed_for_memory, pod, running, unschedulable, waiting
from .world import START, SUCCESS, World, exit_message

RAN = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "rayClusterName": CLUSTER}
WAITING_FOR_HEAD = pod(
    phase="Pending",
    conditions=[condition("PodScheduled", "True")],
    initContainerStatuses=[container("running")],
    containerStatuses=[container("waiting", reason="PodInitializing")],
)


@pytest.mark.parametrize(
    ("pods", "reason", "words"),
    [
        pytest.param([], None, (), id="no pods"),
        pytest.param([running("head"), running()], None, (), id="all run"),
        pytest.param([WAITING_FOR_HEAD], None, (), id="a worker whose init container waits for the head pulls nothing"),
        pytest.param(
            [running("head"), unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")],
            "Unschedulable",
            ("worker-0", "Insufficient nvidia.com/gpu", "smaller workers"),
            id="no room",
        ),
        pytest.param([waiting("ContainerCreating")], "PullingImages", ("worker-0",), id="starting"),
        pytest.param(
            [unschedulable("no room"), waiting("ImagePullBackOff", "not found", "head")],
            "ImagePullFailed",
            ("head-0", IMAGE, "not found", "registry"),
            id="what needs somebody goes before what passes by itself",
        ),
        pytest.param([waiting("ErrImagePull", "401")], "ImagePullFailed", ("401",), id="refused by the registry"),
        pytest.param([waiting("InvalidImageName")], "ImagePullFailed", ("InvalidImageName",), id="not a name"),
        pytest.param(
            [waiting("CreateContainerConfigError", 'secret "job-1-run" not found')],
            "ContainerConfigError",
            ('secret "job-1-run" not found', "create what is missing"),
            id="a Secret is missing",
        ),
        pytest.param(
            [waiting("CrashLoopBackOff", last={"reason": "Error", "exitCode": 3})],
            "CrashLooping",
            ("exit code 3", "kubectl logs --previous"),
            id="a container that keeps ending",
        ),
        pytest.param(
            [waiting("ErrImagePull"), {**waiting("ErrImagePull"), "metadata": pod(name="w1")["metadata"]}],
            "ImagePullFailed",
            ("w1 (and 1 more)",),
            id="many of them are one message",
        ),
        pytest.param(
            [pod(deleted=True, containerStatuses=[container("waiting", reason="ErrImagePull")])],
            None,
            (),
            id="a pod that goes",
        ),
        pytest.param([pod()], None, (), id="nothing is said yet"),
    ],
)
def test_why_a_run_waits(pods: list[dict[str, Any]], reason: str | None, words: tuple[str, ...]) -> None:
    told = why_waiting([project(copy.deepcopy(one)) for one in pods])
    assert (told[0] if told else None) == reason
    for word in words:
        assert told is not None
        assert word in told[1]


@pytest.mark.parametrize(
    ("pods", "after", "end"),
    [
        pytest.param([running("head"), running()], timedelta(days=1), None, id="all run"),
        pytest.param([running("head"), evicted()], timedelta(0), ("Preempted", "Evicted"), id="a worker is evicted"),
        pytest.param([evicted("head", "PreemptionByScheduler")], timedelta(0), ("Preempted", "Evicted"), id="the head"),
        pytest.param([killed_for_memory()], timedelta(0), ("OutOfMemory", "OOMKilled"), id="a worker came back"),
        pytest.param(
            [killed_for_memory("head", restarted=False)],
            timedelta(0),
            ("OutOfMemory", "OOMKilled"),
            id="a head did not",
        ),
        pytest.param(
            [killed_for_memory(), evicted()], timedelta(0), ("Preempted", "Evicted"), id="the node ran out, not the job"
        ),
        pytest.param([waiting("ErrImagePull")], PATIENCE - timedelta(seconds=1), None, id="an image may be late"),
        pytest.param([waiting("ErrImagePull")], PATIENCE, ("Infrastructure", "ImagePullFailed"), id="not for ever"),
        pytest.param(
            [waiting("CreateContainerConfigError")],
            PATIENCE,
            ("Infrastructure", "ContainerConfigError"),
            id="nor may a Secret",
        ),
        pytest.param([waiting("ContainerCreating")], timedelta(days=1), None, id="a huge image takes its time"),
        pytest.param([unschedulable("no room")], timedelta(days=1), None, id="room may come at any time"),
        pytest.param(
            [pod(conditions=[condition("DisruptionTarget", "False")], phase="Running")], timedelta(0), None, id="spared"
        ),
    ],
)
def test_what_ends_an_attempt(pods: list[dict[str, Any]], after: timedelta, end: tuple[str, str] | None) -> None:
    told = end_by_pods([project(copy.deepcopy(one)) for one in pods], START + after)
    assert ((told.outcome, told.reason) if told else None) == end


def restarted_head(at: str) -> dict[str, Any]:
    status = container("running", restarts=1, last={"reason": "Error", "exitCode": 1}, startedAt=at)
    return pod("head", phase="Running", containerStatuses=[status])


@pytest.mark.parametrize(
    ("status", "pods", "current", "lost"),
    [
        pytest.param({}, [running("head")], True, None, id="runs"),
        pytest.param({}, [running()], True, "the head pod is gone", id="gone"),
        pytest.param({}, [running()], False, None, id="absent from a cache that may be old"),
        pytest.param({}, [], True, None, id="nothing makes pods here"),
        pytest.param({}, [waiting("ContainerCreating", role="head")], True, None, id="a cache from before the start"),
        pytest.param({}, [pod("head", phase="Failed", reason="NodeLost")], False, "has ended: NodeLost", id="failed"),
        pytest.param({}, [running("head", deleted=True)], False, "is deleted", id="deleted"),
        pytest.param(
            {}, [pod("head", containerStatuses=[container("terminated", exitCode=1)])], False, "exit code 1", id="ended"
        ),
        pytest.param(
            {"rayJobInfo": {"startTime": "2026-01-01T00:05:00Z"}},
            [restarted_head("2026-01-01T00:06:00Z")],
            False,
            "exit code 1",
            id="came back, without what it ran",
        ),
        pytest.param(
            {"rayJobInfo": {"startTime": "2026-01-01T00:05:00Z"}},
            [restarted_head("2026-01-01T00:04:00Z")],
            True,
            None,
            id="came back before the run started",
        ),
        pytest.param({"jobDeploymentStatus": "Initializing"}, [], True, None, id="not running yet"),
        pytest.param({"jobDeploymentStatus": "Complete"}, [], True, None, id="over"),
    ],
)
def test_a_lost_head(status: dict[str, Any], pods: list[dict[str, Any]], current: bool, lost: str | None) -> None:
    told = head_lost({"status": RAN | status}, [project(copy.deepcopy(one)) for one in pods], current=current)
    assert (told is None) == (lost is None)
    assert lost is None or (told is not None and lost in told)


def test_the_projection_is_small_and_keeps_what_is_read() -> None:
    full = waiting("ImagePullBackOff", "m" * 5000, "head")
    small = project(copy.deepcopy(full))
    assert len(json.dumps(small)) < 1200
    assert project(copy.deepcopy(small)) == small
    assert why_waiting([small]) is not None
    assert seconds_of_patience([small], START) == PATIENCE.total_seconds()


def test_trouble_is_looked_at_at_once_and_the_rest_is_gathered() -> None:
    trouble = [evicted(), killed_for_memory(), waiting("ErrImagePull"), running("head", deleted=True)]
    assert all(is_urgent(project(one)) for one in trouble)
    assert not any(is_urgent(project(one)) for one in [running(), running("head"), waiting("ContainerCreating")])


def test_a_deleted_pod_is_remembered_only_for_what_it_proves() -> None:
    memory = PodTestimony(size=1)
    for one in (running(), killed_for_memory(), running("head")):
        memory.hear(Change("DELETED", project(one), None))
    memory.hear(Change("ADDED", None, project(evicted())))
    assert [p["metadata"]["name"] for p in memory.of(f"team/{CLUSTER}")] == ["worker-0", "head-0"]
    other = killed_for_memory()
    other["metadata"]["labels"]["ray.io/cluster"] = "another"
    memory.hear(Change("DELETED", project(other), None))
    assert memory.of(f"team/{CLUSTER}") == [], "the memory is bounded"


# --- in the ladder ------------------------------------------------------------------------------------------------


def created(**changes: Any) -> World:
    world = World.of(**changes)
    world.settle()
    world.ray_status(jobDeploymentStatus="Initializing", rayClusterName=CLUSTER)
    return world


def started(**changes: Any) -> World:
    world = created(**changes)
    world.ray_status(**RAN)
    world.see(running("head"), running())
    world.say("Training", progress={"step": 5, "steps": 100})
    world.settle()
    assert world.condition("Running") == ("True", "Training")
    return world


def test_the_condition_follows_the_pods_and_only_trouble_is_an_event() -> None:
    world = created()
    seen = []
    for pods in [
        [unschedulable("0/1 nodes are available")],
        [waiting("ContainerCreating")],
        [waiting("ErrImagePull", "no such image")],
        [waiting("ImagePullBackOff", "no such image")],
        [running()],
    ]:
        world.see(*pods)
        world.settle()
        seen.append(world.condition("Running")[1])
    assert seen == ["Unschedulable", "PullingImages", "ImagePullFailed", "ImagePullFailed", "WaitingForResources"]
    assert world.events == ["Unschedulable", "ImagePullFailed"]


def test_the_same_pods_again_change_nothing() -> None:
    world = created()
    world.see(unschedulable("no room"))
    world.settle()
    before = copy.deepcopy(world.job)
    world.pass_time(5)
    decision = world.reconcile()
    assert decision.status == before["status"], "nothing to write"
    assert not decision.events


def test_an_image_that_cannot_be_pulled_ends_the_attempt_in_time_and_frees_its_nodes() -> None:
    world = created(retry={"limit": 0})
    world.see(waiting("ErrImagePull", "no such image"))
    assert world.settle().requeue_after == pytest.approx(PATIENCE.total_seconds())
    world.pass_time(PATIENCE.total_seconds())
    world.settle()
    assert world.condition("Failed") == ("True", "RetriesExhausted")
    assert IMAGE in world.message("Failed")
    assert not world.newest()["metadata"].get("deletionTimestamp"), "it may still end by itself"
    world.pass_time(60)
    world.settle()
    assert world.newest()["metadata"]["deletionTimestamp"], "a failed job holds no GPUs"


def test_eviction_is_not_counted() -> None:
    world = started(retry={"limit": 0, "backoffSeconds": 1})
    world.see(running("head"), evicted())
    world.settle()
    assert world.outcomes() == ["Preempted"]
    assert world.newest()["metadata"]["deletionTimestamp"]
    world.see()
    world.finalize()
    world.pass_time(1)
    world.settle()
    assert world.created == ["job-1", "job-2"]


def test_a_worker_out_of_memory_is_planned_anew() -> None:
    world = started(retry={"limit": 1, "backoffSeconds": 1})
    world.see(running("head"), killed_for_memory())
    world.settle()
    assert world.outcomes() == ["OutOfMemory"]
    world.see()
    world.finalize()
    world.pass_time(1)
    world.settle()
    assert world.created == ["job-1", "job-2"]
    assert "microBatchSize 2" in world.message("Planned")


def test_pods_know_better_why_a_run_was_cut_short() -> None:
    world = started()
    world.see(running("head"), killed_for_memory())
    world.ray_status(**RAN | {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "message": exit_message(75)})
    world.settle()
    assert world.outcomes() == ["OutOfMemory"]


@pytest.mark.parametrize(
    ("end", "outcome"), [(SUCCESS, "Succeeded"), ({**SUCCESS, "outcome": "UserError"}, "UserError")]
)
def test_the_runs_own_word_goes_first(end: dict[str, Any], outcome: str) -> None:
    world = started()
    world.see(evicted("head"))
    world.say("Ended", sequence=2, end=end)
    world.settle()
    assert world.outcomes() == [outcome]


def test_a_lost_head_ends_the_attempt_after_its_last_word_could_have_come() -> None:
    world = started()
    world.pass_time(100)
    world.see(running("head", deleted=True), running())
    assert world.settle().requeue_after == pytest.approx(15)
    assert world.condition("Running") == ("False", "HeadLost")
    assert world.events[-1] == "HeadLost"
    world.see(running())  # gone from the cache, which may be old now
    world.pass_time(15)
    world.settle()
    assert world.outcomes() == ["Infrastructure"]


def test_a_head_that_went_with_a_finished_run_is_not_lost() -> None:
    world = started()
    world.pass_time(100)
    world.see(running("head", deleted=True))
    world.settle()
    world.pass_time(3)
    world.ray_status(**RAN | {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "message": exit_message(78)})
    world.settle()
    assert world.outcomes() == ["UserError"], "the RayJob said why, later than the pods"
