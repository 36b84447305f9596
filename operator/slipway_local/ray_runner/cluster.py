"""Reads the Ray cluster that a RayJob or RayService asks for, as far as it means something on one machine. Pure.

The head is this machine, so its CPUs and memory are counted only when no worker group asks for any; its GPUs always
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.pod import Pod, read_pod
from slipway_local.ray_runner.reading import list_at, mapping_at, only, whole_at
from slipway_local.ray_runner.resources import Resources

_CLUSTER = {"headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "suspend"}
_MOOT_CLUSTER = {
    "rayVersion",  # the installed one
    "authOptions",  # always token
    "autoscalerOptions",
    "headServiceAnnotations",
    "managedBy",
    "networkPolicy",
    "upgradeStrategy",
}
_HEAD = {"rayStartParams", "template"}
_MOOT_HEAD = {"serviceType", "headService", "enableIngress"}
_GROUP = {"groupName", "replicas", "numOfHosts", "rayStartParams", "template", "suspend"}
_MOOT_GROUP = {"minReplicas", "maxReplicas", "idleTimeoutSeconds", "priority", "scaleStrategy"}  # of the autoscaler
_RUNTIME_ENV_REFUSED = ("image_uri", "container", "working_dir", "py_modules", "pip", "uv", "conda", "py_executable")


@dataclass(frozen=True)
class WorkerGroup:
    """`replicas` pods made from one template."""

    path: str
    replicas: int
    pod: Pod


def read_cluster(
    cluster: dict[str, Any], path: str, *, autoscaling: bool = False
) -> tuple[Pod, tuple[WorkerGroup, ...]]:
    """The head's pod and the worker groups of the cluster spec at `path`. Raises InvalidSpec.

    With `autoscaling` a cluster that may grow is taken as one that has grown: `maxReplicas` of each group.
    """
    only(cluster, path, _CLUSTER | _MOOT_CLUSTER)
    grows = bool(cluster.get("enableInTreeAutoscaling"))
    if grows and not autoscaling:
        raise InvalidSpec(
            f"{path}.enableInTreeAutoscaling", "the local Ray cannot grow: set replicas to what the job needs"
        )
    if cluster.get("suspend"):
        raise InvalidSpec(
            f"{path}.suspend", "a part of its own cannot be suspended: suspend or delete the whole object"
        )
    head_path = f"{path}.headGroupSpec"
    head = mapping_at(cluster, "headGroupSpec", path)
    only(head, head_path, _HEAD | _MOOT_HEAD)
    _check_start_parameters(head, head_path)
    groups = tuple(
        _read_group(group, f"{path}.workerGroupSpecs[{index}]", grows)
        for index, group in enumerate(list_at(cluster, "workerGroupSpecs", path))
    )
    return read_pod(mapping_at(head, "template", head_path), f"{head_path}.template"), groups


def _read_group(group: dict[str, Any], path: str, grows: bool) -> WorkerGroup:
    only(group, path, _GROUP | _MOOT_GROUP)
    if group.get("suspend"):
        raise InvalidSpec(f"{path}.suspend", "a suspended worker group never starts here: remove it or set replicas")
    _check_start_parameters(group, path)
    replicas = whole_at(group, "replicas", path, default=whole_at(group, "minReplicas", path, default=0))
    if grows:
        replicas = max(replicas, whole_at(group, "maxReplicas", path, default=replicas))
    hosts = whole_at(group, "numOfHosts", path, default=1, minimum=1)
    return WorkerGroup(path, replicas * hosts, read_pod(mapping_at(group, "template", path), f"{path}.template"))


def _check_start_parameters(group: dict[str, Any], path: str) -> None:
    for name in ("resources", "labels"):
        if str(mapping_at(group, "rayStartParams", path).get(name) or "").strip("'\"{} "):
            raise InvalidSpec(f"{path}.rayStartParams.{name}", "the local Ray has no custom resources: remove it")


def need_of(head: Pod, groups: tuple[WorkerGroup, ...]) -> Resources:
    """What the pods ask for together."""
    need = Resources()
    for group in groups:
        need = need + group.pod.resources * group.replicas
    if any(group.replicas for group in groups):
        return need + Resources(gpu=head.resources.gpu)
    return head.resources


def read_runtime_env(document: dict[str, Any], path: str) -> dict[str, Any]:
    """A Ray runtime environment, its `env_vars` as strings. Raises InvalidSpec for what would install things."""
    for name in _RUNTIME_ENV_REFUSED:
        if document.get(name):
            raise InvalidSpec(f"{path}.{name}", "runs take place in this installation: install what they need into it")
    variables = document.get("env_vars") or {}
    if not isinstance(variables, dict):
        raise InvalidSpec(f"{path}.env_vars", "must be a mapping of strings")
    return {**document, "env_vars": {str(name): str(value) for name, value in variables.items()}}
