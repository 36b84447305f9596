"""RayJob objects for the tests of the runner, shaped as KubeRay takes them."""

from __future__ import annotations

import copy
import itertools
from typing import Any


def pod(*, cpu: str | None = None, memory: str | None = None, gpu: int = 0, **container: Any) -> dict[str, Any]:
    amounts: dict[str, Any] = {}
    if cpu is not None:
        amounts["cpu"] = cpu
    if memory is not None:
        amounts["memory"] = memory
    if gpu:
        amounts["nvidia.com/gpu"] = gpu
    spec = {
        "containers": [
            {"name": "ray", "image": "x", "resources": {"requests": amounts, "limits": dict(amounts)}, **container}
        ]
    }
    return {"metadata": {"labels": {"a": "b"}}, "spec": spec}


def rayjob(
    name: str = "job",
    entrypoint: str = "true",
    *,
    workers: int = 1,
    cpu: str = "1",
    memory: str | None = None,
    gpu: int = 0,
    priority: str | None = None,
    namespace: str = "default",
    head: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    worker = pod(cpu=cpu, memory=memory, gpu=gpu)
    if priority:
        worker["spec"]["priorityClassName"] = priority
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 0,
            "suspend": False,
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": head if head is not None else pod(cpu="1", memory="2Gi"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": workers,
                        "rayStartParams": {},
                        "template": worker,
                    }
                ],
            },
            **spec,
        },
    }


def with_at(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a path such as `spec.containers[0].command`."""
    changed = copy.deepcopy(obj)
    target: Any = changed
    steps: list[Any] = []
    for part in path.split("."):
        name, *indexes = part.replace("]", "").split("[")
        steps += [name, *(int(index) for index in indexes)]
    for step, following in itertools.pairwise(steps):
        if isinstance(target, dict) and step not in target:
            target[step] = [] if isinstance(following, int) else {}
        target = target[step]
    if isinstance(target, list):
        target.append(value)
    else:
        target[steps[-1]] = value
    return changed
