"""Pods as a kubelet and a scheduler would leave them: only what is said of them differs."""

from __future__ import annotations

from typing import Any

CLUSTER = "job-1-xyz"
IMAGE = "registry.example/jobs:1"


def pod(role: str = "worker", *, name: str | None = None, deleted: bool = False, **status: Any) -> dict[str, Any]:
    """A pod of the newest attempt's cluster, as the API server shows it."""
    metadata: dict[str, Any] = {
        "name": name or f"{role}-0",
        "namespace": "team",
        "uid": f"uid-{name or role}",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubelet"}],
        "annotations": {"big": "x" * 1000},
        "labels": {
            "slipway.dev/trainjob": "job",
            "slipway.dev/attempt": "1",
            "ray.io/cluster": CLUSTER,
            "ray.io/node-type": role,
            "ray.io/group": "any",
        },
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "ray-head", "env": [{"name": "X", "value": "y" * 1000}]}]},
        "status": status,
    }


def condition(type_: str, status: str, **fields: str) -> dict[str, Any]:
    return {"type": type_, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z", **fields}


def container(state: str, *, restarts: int = 0, last: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": "ray-head",
        "image": IMAGE,
        "restartCount": restarts,
        "state": {state: fields},
        "containerID": "containerd://1",
    }
    return {**status, "lastState": {"terminated": last}} if last else status


def running(role: str = "worker", **fields: Any) -> dict[str, Any]:
    return pod(
        role,
        phase="Running",
        conditions=[condition("PodScheduled", "True"), condition("Ready", "True")],
        containerStatuses=[container("running", startedAt="2026-01-01T00:01:00Z")],
        **fields,
    )


def waiting(reason: str, message: str = "", role: str = "worker", **fields: Any) -> dict[str, Any]:
    """A pod on a node whose container has not started."""
    text = {"message": message} if message else {}
    return pod(
        role,
        phase="Pending",
        conditions=[condition("PodScheduled", "True")],
        containerStatuses=[container("waiting", reason=reason, **text, **fields)],
    )


def unschedulable(message: str) -> dict[str, Any]:
    return pod(
        phase="Pending",
        conditions=[condition("PodScheduled", "False", reason="Unschedulable", message=message)],
    )


def evicted(role: str = "worker", reason: str = "EvictionByEvictionAPI") -> dict[str, Any]:
    gone = condition("DisruptionTarget", "True", reason=reason, message="Eviction API: evicting")
    return pod(
        role,
        deleted=True,
        phase="Running",
        conditions=[condition("PodScheduled", "True"), gone],
        containerStatuses=[container("running")],
    )


def killed_for_memory(role: str = "worker", *, restarted: bool = True) -> dict[str, Any]:
    ended = {"reason": "OOMKilled", "exitCode": 137}
    status = container("running", restarts=1, last=ended) if restarted else container("terminated", **ended)
    return pod(role, phase="Running", containerStatuses=[status])
