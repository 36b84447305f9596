"""What a Deployment's pods and its RayService say when it does not answer as it should. Pure.

Ray Serve only says that an application is not there yet; that an image cannot be pulled, that no node has room, or that
the head runs out of memory, pods know. That a RayService can never run as it is, whoever runs it says in its condition
Ready (KubeRay, or slipway_local where the machine is too small). Pods are evidence of the second rank: where there
are none (on the local control plane) everything else works as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway_api import conditions as c
from slipway_operator.controllers.runs.pods import PROBLEMS, out_of_memory, why_waiting
from slipway_operator.kube.resource import Json
from slipway_operator.kuberay import LABEL_NODE_TYPE


@dataclass(frozen=True)
class Told:
    """Why nothing serves. `problem`: it does not pass by itself."""

    reason: str
    message: str
    problem: bool


def clusters_of(ray_service: Json | None) -> list[str]:
    """The RayClusters of a RayService: the one that answers, and the one that is to replace it."""
    status = (ray_service or {}).get("status") or {}
    found = [(status.get(key) or {}).get("rayClusterName") for key in ("activeServiceStatus", "pendingServiceStatus")]
    return [name for name in found if name]


def refused(ray_service: Json | None) -> Told | None:
    """Why whoever runs the RayService will not, or None."""
    ready = _ready(ray_service)
    if ready.get("status") != "False" or ready.get("reason") != "ValidationFailed":
        return None
    return Told(c.REJECTED, f"the RayService is refused: {ready.get('message', '')}", problem=True)


def waiting_for(ray_service: Json | None) -> str:
    """What the RayService waits for before it has any application; "" where it does not say."""
    ready = _ready(ray_service)
    return str(ready.get("message") or "") if ready.get("reason") == "Initializing" else ""


def has_endpoints(ray_service: Json | None) -> bool:
    """Whether requests reach a router."""
    return bool(_ready(ray_service).get("status") == "True")


def _ready(ray_service: Json | None) -> Json:
    status = (ray_service or {}).get("status") or {}
    return c.find_condition(status.get("conditions") or [], "Ready") or {}


def told_by(pods: Sequence[Json], remembered: Sequence[Json], *, answers: bool) -> Told | None:
    """The worst that pods say, or None. `remembered`: pods that KubeRay has deleted since, as they were last.

    While the endpoint answers, only what keeps a pod from running now counts; what pods have suffered is history.
    """
    waiting = why_waiting(pods)
    problem = waiting is not None and waiting[0] in PROBLEMS
    if answers:
        return Told(*waiting, problem=True) if waiting is not None and problem else None
    killed = _killed_for_memory(pods)  # says why a container keeps ending
    if waiting is not None and problem and not (killed and waiting[0] == c.CRASH_LOOPING):
        return Told(*waiting, problem=True)
    killed = killed or _killed_for_memory(remembered)
    if killed is not None:
        return Told(c.OUT_OF_MEMORY_KILLED, killed, problem=True)
    return Told(*waiting, problem=False) if waiting is not None else None


def _killed_for_memory(pods: Sequence[Json]) -> str | None:
    found = next((pod for pod in pods if out_of_memory(pod) is not None), None)
    if found is None:
        return None
    role = found["metadata"]["labels"].get(LABEL_NODE_TYPE, "worker")
    advice = (
        "the operator's configuration gives it more (ray.headMemory)"
        if role == "head"
        else "raise spec.replicas.resources.memory, or serve a smaller model"
    )
    when = out_of_memory(found)
    return f"{role} pod {found['metadata']['name']} used more memory than its limit (OOMKilled at {when}): {advice}"
