"""What an attempt's pods say: why it waits, and that it has ended where nobody else will say so. Pure.

Pods are evidence of the second rank: the run's report and the RayJob are believed first, and without any pods (the
local control plane serves none) everything else works as before. Only what a pod's status states for good ends an
attempt; that a pod is absent or has not started proves something only in a cache that is known to be new enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from slipway_api import conditions as c
from slipway_operator.controllers.runs.attempts import End, parse_time
from slipway_operator.kube.resource import Json
from slipway_operator.kuberay import LABEL_ATTEMPT, LABEL_CLUSTER, LABEL_NODE_TYPE, OWNER_LABELS

PATIENCE = timedelta(minutes=10)
"""So long may an image not be pulled or a container not start before the attempt ends and gives its GPUs back.
Long enough for a registry's outage or a Secret that arrives late, short against what idle GPUs cost."""

_MAX_TEXT = 300  # of what a pod's status says in words; a termination message may have 4 KiB
_LABELS = (*OWNER_LABELS.values(), LABEL_ATTEMPT, LABEL_CLUSTER, LABEL_NODE_TYPE)
_CONDITIONS = ("PodScheduled", "DisruptionTarget")

_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


def project(pod: Json) -> Json:
    """What is read of a pod, a tenth of it: identity, some labels, two conditions, the containers' states."""
    metadata, status = pod.get("metadata", {}), pod.get("status") or {}
    kept = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion") if name in metadata}
    for name in ("creationTimestamp", "deletionTimestamp"):
        if name in metadata:
            kept[name] = metadata[name]
    labels = metadata.get("labels") or {}
    kept["labels"] = {name: labels[name] for name in _LABELS if name in labels}
    state = {name: str(status[name])[:_MAX_TEXT] for name in ("phase", "reason", "message") if status.get(name)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": kept,
        "status": {
            **state,
            "conditions": [
                _only(condition, "type", "status", "reason", "message", "lastTransitionTime")
                for condition in status.get("conditions") or ()
                if condition.get("type") in _CONDITIONS
            ],
            "initContainerStatuses": [_container(one) for one in status.get("initContainerStatuses") or ()],
            "containerStatuses": [_container(one) for one in status.get("containerStatuses") or ()],
        },
    }


def _container(status: Json) -> Json:
    kept = _only(status, "name", "image", "restartCount")
    kept["state"] = {name: _detail(detail) for name, detail in (status.get("state") or {}).items()}
    last = (status.get("lastState") or {}).get("terminated")
    return {**kept, "lastState": {"terminated": _detail(last)}} if last else kept


def _detail(state: Json) -> Json:
    return _only(state or {}, "reason", "message", "exitCode", "startedAt", "finishedAt")


def _only(obj: Json, *names: str) -> Json:
    return {n: v[:_MAX_TEXT] if isinstance(v := obj[n], str) else v for n in names if obj.get(n) is not None}


def cluster_of(pod: Json) -> list[str]:
    """Index of pods: namespace/name of their RayCluster."""
    cluster = pod["metadata"]["labels"].get(LABEL_CLUSTER)
    return [f"{pod['metadata'].get('namespace', '')}/{cluster}"] if cluster else []


# --- why it waits -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symptom:
    """What keeps a pod from running."""

    reason: str  # of the condition Running
    pod: str
    message: str
    since: datetime | None = None  # when the pod had its node


# From what somebody must mend to what passes by itself; the first one found is told.
_LADDER = (c.IMAGE_PULL_FAILED, c.CONTAINER_CONFIG_ERROR, c.CRASH_LOOPING, c.UNSCHEDULABLE, c.PULLING_IMAGES)
PROBLEMS = frozenset(_LADDER[:4])
_HOPELESS = frozenset(_LADDER[:3])
_ADVICE = {
    c.IMAGE_PULL_FAILED: "check the image's name, the registry and its credentials; the node keeps trying",
    c.CONTAINER_CONFIG_ERROR: "create what is missing; the node keeps trying",
    c.CRASH_LOOPING: "see the pod's log: kubectl logs --previous",
    c.UNSCHEDULABLE: "waiting for room: free or add nodes, or create the job with fewer or smaller workers",
    c.PULLING_IMAGES: "the node pulls the image and mounts volumes; the first time on a node takes minutes",
}


def why_waiting(pods: Sequence[Json]) -> tuple[str, str] | None:
    """Reason and message of Running, from the pod that is worst off; None when pods have nothing to say."""
    found = sorted(_symptoms(pods), key=lambda s: (_LADDER.index(s.reason), s.pod))
    if not found:
        return None
    worst = found[0]
    others = sum(1 for s in found if s.reason == worst.reason) - 1
    more = f" (and {others} more)" if others else ""
    return worst.reason, f"pod {worst.pod}{more}: {worst.message}: {_ADVICE[worst.reason]}"


def _symptoms(pods: Sequence[Json]) -> Iterator[Symptom]:
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        name = pod["metadata"]["name"]
        scheduled = _condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            yield Symptom(c.UNSCHEDULABLE, name, scheduled.get("message") or "no node has room for it")
        since = scheduled.get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
        told = next(filter(None, map(_waiting, _in_turn(pod))), None)
        if told is not None:
            yield Symptom(told[0], name, told[1], parse_time(since) if since else None)


def _in_turn(pod: Json) -> Iterator[Json]:
    """The containers up to the first that runs before the others may: those after it wait for it, and say so."""
    for container in pod["status"]["initContainerStatuses"]:
        yield container
        if "terminated" not in container["state"]:
            return
    yield from pod["status"]["containerStatuses"]


def _waiting(container: Json) -> tuple[str, str] | None:
    waiting = container["state"].get("waiting")
    if waiting is None:
        return None
    word = waiting.get("reason", "")
    detail = f"{word}: {waiting['message']}" if waiting.get("message") else word
    if word in _IMAGE:
        return c.IMAGE_PULL_FAILED, f"image {container.get('image', '?')}: {detail}"
    if word in _CONFIG:
        return c.CONTAINER_CONFIG_ERROR, f"container {container['name']}: {detail}"
    if word == "CrashLoopBackOff":
        last = container.get("lastState", {}).get("terminated", {})
        code = f" with exit code {last['exitCode']}" if "exitCode" in last else ""
        return c.CRASH_LOOPING, f"container {container['name']} keeps ending{code}"
    if word in _STARTING:
        return c.PULLING_IMAGES, f"container {container['name']}: {word}"
    return None


# --- what ends an attempt -----------------------------------------------------------------------------------------


def end_by_pods(pods: Sequence[Json], now: datetime) -> End | None:
    """The end that a pod's status states for good: taken away, out of memory, or hopeless for too long."""
    for pod in pods:  # first: a node that runs out of memory evicts, and that is not the job's doing
        target = _condition(pod, "DisruptionTarget")
        if target.get("status") == "True":
            why = ": ".join(filter(None, (target.get("reason"), target.get("message"))))
            return End("Preempted", c.EVICTED, f"{_role(pod)} pod {pod['metadata']['name']} is taken away: {why}")
    for pod in pods:
        if out_of_memory(pod) is not None:
            return End(
                "OutOfMemory",
                c.OUT_OF_MEMORY_KILLED,
                f"{_role(pod)} pod {pod['metadata']['name']} used more memory than its limit (OOMKilled)",
            )
    for symptom in _symptoms(pods):
        if symptom.reason in _HOPELESS and symptom.since is not None and now - symptom.since >= PATIENCE:
            minutes = int(PATIENCE.total_seconds() // 60)
            message = f"pod {symptom.pod}: {symptom.message}; not better after {minutes} minutes"
            return End("Infrastructure", symptom.reason, message)
    return None


def out_of_memory(pod: Json) -> str | None:
    """When a container of the pod was last killed for memory, as RFC 3339 ("" where nobody says when); None: never."""
    ends = [ended for container in _containers(pod) for ended in _terminations(container)]
    return max((str(end.get("finishedAt") or "") for end in ends if end.get("reason") == "OOMKilled"), default=None)


def seconds_of_patience(pods: Sequence[Json], now: datetime) -> float | None:
    """After how many seconds a pod that cannot start becomes the end of the attempt; None when there is none."""
    dues = [s.since + PATIENCE - now for s in _symptoms(pods) if s.reason in _HOPELESS and s.since is not None]
    return min(dues).total_seconds() if dues else None


def tells_an_end(pod: Json) -> bool:
    """Whether the pod, deleted, is evidence of an attempt's end: its head is, and what its status states for good."""
    return _role(pod) == "head" or end_by_pods([pod], _NEVER) is not None


def is_urgent(pod: Json) -> bool:
    """Whether what the pod says may end the attempt, or need somebody: not to be gathered with later changes."""
    if end_by_pods([pod], _NEVER) is not None or any(s.reason in _HOPELESS for s in _symptoms([pod])):
        return True
    return _role(pod) == "head" and _head_is_gone(pod, {}) is not None


def head_lost(ray_job: Json, pods: Sequence[Json], *, current: bool) -> str | None:
    """How a run that is said to be running has lost its head, or None. `current`: the pods are as new as the RayJob.

    A head is missed only among other pods: where there are none at all, the run may never have had any, because
    slipway_local's Ray runner stands in for KubeRay. (If head and workers went while nobody watched, KubeRay fails the
    RayJob itself when its status checks have failed for five minutes.)
    """
    status = ray_job.get("status") or {}
    if status.get("jobDeploymentStatus") != "Running" or not status.get("rayClusterName"):
        return None
    heads = [pod for pod in pods if _role(pod) == "head"]
    if not heads:
        return "the head pod is gone" if current and pods else None
    return _head_is_gone(max(heads, key=lambda pod: pod["metadata"].get("creationTimestamp", "")), status)


def _head_is_gone(head: Json, ray_job_status: Json) -> str | None:
    name = f"head pod {head['metadata']['name']}"
    if head["status"].get("phase") in ("Failed", "Succeeded"):
        return f"{name} has ended: {head['status'].get('reason') or head['status']['phase']}"
    if head["metadata"].get("deletionTimestamp"):
        return f"{name} is deleted"
    for container in head["status"]["containerStatuses"]:
        if _is_down(container) or _restarted_since(container, ray_job_status):
            codes = [str(ended["exitCode"]) for ended in _terminations(container) if "exitCode" in ended]
            return f"container {container['name']} of {name} ended" + (f" with exit code {codes[0]}" if codes else "")
    return None


def _is_down(container: Json) -> bool:
    return "running" not in container["state"] and bool(_terminations(container))


def _restarted_since(container: Json, ray_job_status: Json) -> bool:
    """Whether the container is younger than the job in it. Both times are of one node's clock."""
    job_started = (ray_job_status.get("rayJobInfo") or {}).get("startTime")
    container_started = container["state"].get("running", {}).get("startedAt")
    if not job_started or not container_started:
        return False
    return parse_time(container_started) > parse_time(job_started)


_NEVER = parse_time("1970-01-01T00:00:00Z")  # a time at which nobody has lost patience yet


def _containers(pod: Json) -> list[Json]:
    return [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]


def _terminations(container: Json) -> list[Json]:
    found: list[Any] = [container["state"].get("terminated"), container.get("lastState", {}).get("terminated")]
    return [one for one in found if one]


def _condition(pod: Json, type_: str) -> Json:
    return next((one for one in pod["status"]["conditions"] if one.get("type") == type_), {})


def _role(pod: Json) -> str:
    return str(pod["metadata"]["labels"].get(LABEL_NODE_TYPE, "worker"))
