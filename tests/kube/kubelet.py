"""Plays scheduler and kubelet: writes into a pod's status what they would. The pods are real, and run nothing."""

from __future__ import annotations

from typing import Any

from slipway_operator.kube.resource import PODS

from .cluster import Cluster

NOW = "2026-01-01T00:00:00Z"


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(pod["spec"]["containers"][0])


def container_status(pod: dict[str, Any], state: dict[str, Any], *, ready: bool = False) -> dict[str, Any]:
    container = container_of(pod)
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }


def condition(type_: str, status: str = "True", **fields: str) -> dict[str, Any]:
    return {"type": type_, "status": status, "lastTransitionTime": NOW, **fields}


async def set_pod(cluster: Cluster, pod: dict[str, Any], **status: Any) -> None:
    await cluster.set_status(PODS, pod["metadata"]["name"], **status)


async def run(cluster: Cluster, pod: dict[str, Any], address: str = "10.1.2.3") -> None:
    """The pod has started and is ready."""
    await set_pod(
        cluster,
        pod,
        phase="Running",
        podIP=address,
        podIPs=[{"ip": address}],
        conditions=[condition("PodScheduled"), condition("Initialized"), condition("Ready")],
        containerStatuses=[container_status(pod, {"running": {"startedAt": NOW}}, ready=True)],
    )


async def find_no_node(cluster: Cluster, pod: dict[str, Any], why: str) -> None:
    """The scheduler has no node for it."""
    unscheduled = condition("PodScheduled", "False", reason="Unschedulable", message=why)
    await set_pod(cluster, pod, phase="Pending", conditions=[unscheduled])


async def wait(cluster: Cluster, pod: dict[str, Any], reason: str, message: str = "") -> None:
    """Its node cannot start the container, and says why."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    scheduled = condition("PodScheduled")
    del scheduled["lastTransitionTime"]  # else it would have waited since long ago
    await set_pod(
        cluster, pod, phase="Pending", conditions=[scheduled], containerStatuses=[container_status(pod, state)]
    )


async def evict(cluster: Cluster, pod: dict[str, Any]) -> None:
    """The eviction API: it says so in the status, then deletes."""
    target = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting")
    await set_pod(cluster, pod, phase="Failed", reason="Evicted", conditions=[condition("PodScheduled"), target])


async def kill_for_memory(cluster: Cluster, pod: dict[str, Any]) -> None:
    """The kernel has killed the container."""
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "startedAt": NOW, "finishedAt": NOW}}
    await set_pod(cluster, pod, phase="Failed", containerStatuses=[container_status(pod, ended)])
