"""Reads a RayService (ray.io/v1) as far as it means something on one machine. Pure; starts and fetches nothing.

The three kinds of fields are those of `spec.py`. What a service holds of the machine is the larger of what its pods ask
for and of what its listed deployments need with as many replicas as they may have: pods are what is paid for in a
cluster, replicas are what really uses this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway_local.ray_runner.cluster import WorkerGroup, need_of, read_cluster
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.pod import Pod
from slipway_local.ray_runner.reading import mapping_at, only, text_at
from slipway_local.ray_runner.resources import Resources, largest
from slipway_local.ray_runner.serve_config import ServeConfig, read_serve_config

CLUSTER = "spec.rayClusterConfig"
_SPEC = {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "managedBy"}
_MOOT_SPEC = {
    "deploymentUnhealthySecondThreshold",  # KubeRay does not use it any more
    "excludeHeadPodFromServeSvc",  # there is one proxy, and it answers for all
    "rayClusterDeletionDelaySeconds",  # no cluster is replaced
    "serveService",
    "serviceUnhealthySecondThreshold",
}
_STRATEGIES = ("NewCluster", "None")


@dataclass(frozen=True)
class RayServiceRequest:
    """What a RayService asks of this machine."""

    config: ServeConfig
    head: Pod
    groups: tuple[WorkerGroup, ...]
    need: Resources
    keeps_cluster: bool
    """Whether a change of rayClusterConfig must not touch what runs (upgradeStrategy None)."""

    @property
    def priority_class(self) -> tuple[str, str] | None:
        """(path, name) of the PriorityClass: the first worker group's, else the head's."""
        pods = [(f"{group.path}.template.spec", group.pod) for group in self.groups[:1]]
        pods.append((f"{CLUSTER}.headGroupSpec.template.spec", self.head))
        return next(
            ((f"{path}.priorityClassName", pod.priority_class) for path, pod in pods if pod.priority_class), None
        )


def keeps_cluster(rayservice: dict[str, Any]) -> bool:
    """Whether its upgrade strategy is None."""
    strategy = (rayservice.get("spec") or {}).get("upgradeStrategy")
    return isinstance(strategy, dict) and strategy.get("type") == "None"


def read_rayservice(rayservice: dict[str, Any]) -> RayServiceRequest:
    """What a RayService asks for. Raises InvalidSpec naming the first field that this runner cannot honour."""
    spec = mapping_at(rayservice, "spec", "")
    only(spec, "spec", _SPEC | _MOOT_SPEC)
    strategy = mapping_at(spec, "upgradeStrategy", "spec")
    only(strategy, "spec.upgradeStrategy", {"type"})
    kind = text_at(strategy, "type", "spec.upgradeStrategy") or "NewCluster"
    if kind not in _STRATEGIES:
        raise InvalidSpec(
            "spec.upgradeStrategy.type", f"{kind} needs a second Ray cluster: use one of {', '.join(_STRATEGIES)} here"
        )
    cluster = mapping_at(spec, "rayClusterConfig", "spec")
    if not cluster:
        raise InvalidSpec(CLUSTER, "is required")
    head, groups = read_cluster(cluster, CLUSTER, autoscaling=True)
    config = read_serve_config(text_at(spec, "serveConfigV2", "spec"))
    return RayServiceRequest(
        config=config,
        head=head,
        groups=groups,
        need=largest(need_of(head, groups), config.need),
        keeps_cluster=kind == "None",
    )
