"""Renders KubeRay's RayJob (ray.io/v1) for one attempt of a run. Pure; writes nothing.

Choices that every reader asks about:
- `backoffLimit: 0`: attempts are ours. KubeRay's own retry rebuilds the cluster, hides the attempts and starts over.
- `submissionMode: HTTPMode`: no submitter pod (a >1 GB image) for a job that the head can start itself.
- `shutdownAfterJobFinishes: true`: GPUs are freed at once; Kueue demands it as well.
- `ray.io/disable-provisioned-head-restart` (KubeRay copies a RayJob's annotations to its RayCluster): a head that died
  took the driver with it, and on a new one KubeRay would quietly submit the entrypoint again, within the same attempt.
- `suspend: true` when the job names a queue: Kueue owns that field from then on (see docs/architecture.md). Kueue takes
  the workload's priority from the pods' priorityClassName, so its own priority label is not needed.
- `authOptions.mode: token`: an open Ray dashboard is remote code execution by design (CVE-2023-48022).
- The run contract is plain environment; the report token is a mounted file, so it appears in no argument, no
  environment dump and no Ray dashboard.
"""

from __future__ import annotations

import json
from typing import Any

from slipway_api import API_VERSION, GROUP
from slipway_api.quantity import parse_quantity
from slipway_api.run import RUN_ENV, RunIdentity
from slipway_api.trainjob import Workers
from slipway_operator.config import PoolPodsConfig, RayConfig

LABEL_TRAINJOB = f"{GROUP}/trainjob"
LABEL_EVALJOB = f"{GROUP}/evaljob"
LABEL_DEPLOYMENT = f"{GROUP}/deployment"
OWNER_LABELS = {"TrainJob": LABEL_TRAINJOB, "EvalJob": LABEL_EVALJOB, "Deployment": LABEL_DEPLOYMENT}
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_CLUSTER = "ray.io/cluster"  # KubeRay puts these two on every pod
LABEL_NODE_TYPE = "ray.io/node-type"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
KEEP_HEAD_DEAD = {"ray.io/disable-provisioned-head-restart": "true"}
MANAGED_BY = {"app.kubernetes.io/managed-by": "slipway"}
TOKEN_DIRECTORY = "/var/run/slipway"
TOKEN_FILE = f"{TOKEN_DIRECTORY}/report-token"
CA_FILE = f"{TOKEN_DIRECTORY}/ca.crt"
_RAY_MEMORY_MI = 1024  # of a head whose driver works in it: what Ray itself takes


def secret_name(child: str) -> str:
    """The name of the Secret that holds the report token of the attempt with this RayJob."""
    return f"{child}-run"


def owner_reference(owner: dict[str, Any]) -> dict[str, Any]:
    """The controller reference to one of our objects: its children go when it goes."""
    return {
        "apiVersion": API_VERSION,
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owner_labels(owner: dict[str, Any]) -> dict[str, str]:
    """The labels by which everything that belongs to one of our objects is found."""
    return {**MANAGED_BY, OWNER_LABELS[owner["kind"]]: owner["metadata"]["name"]}


def _metadata(job: dict[str, Any], name: str, attempt: int) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job["metadata"]["namespace"],
        "labels": {**owner_labels(job), LABEL_ATTEMPT: str(attempt)},
        "ownerReferences": [owner_reference(job)],
    }


def token_secret(job: dict[str, Any], child: str, attempt: int, token: str, ca: str | None = None) -> dict[str, Any]:
    """The Secret that the head of RayJob `child` mounts; `ca` is the PEM bundle that the endpoint is trusted by."""
    data = {"report-token": token} | ({"ca.crt": ca} if ca else {})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _metadata(job, secret_name(child), attempt),
        "stringData": data,
    }


def ray_job(
    job: dict[str, Any],
    name: str,
    entrypoint: str,
    run: RunIdentity,
    workers: Workers,
    ray: RayConfig,
    pool: PoolPodsConfig | None = None,
    *,
    driver_alone: bool = False,
) -> dict[str, Any]:
    """The RayJob of one attempt, of that name. `driver_alone`: the driver works by itself, with what one worker has.

    `pool`: what pods get that work on the nodes that were planned for.
    """
    resources = workers.resources
    worker_resources: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpu:
        worker_resources["nvidia.com/gpu"] = resources.gpu
    alone = worker_resources | {"memory": f"{-(-parse_quantity(resources.memory) // 2**20) + _RAY_MEMORY_MI}Mi"}
    head = container("ray-head", ray.image, alone if driver_alone else {"cpu": "1", "memory": ray.head_memory})
    head["env"] = [{"name": RUN_ENV, "value": json.dumps(run.to_wire(), separators=(",", ":"))}]
    head["volumeMounts"] = [{"name": "run", "mountPath": TOKEN_DIRECTORY, "readOnly": True}]
    priority = job["spec"].get("priorityClassName")
    head_pod = _pod(job, run.attempt, head, priority)
    worker_pod = _pod(job, run.attempt, container("ray-worker", ray.image, worker_resources), priority)
    if pool is not None:
        _place(head_pod if driver_alone else worker_pod, pool)
    head_pod["spec"]["volumes"] = [{"name": "run", "secret": {"secretName": secret_name(name), "defaultMode": 0o440}}]
    metadata = _metadata(job, name, run.attempt)
    metadata["annotations"] = dict(KEEP_HEAD_DEAD)
    queue = job["spec"].get("queue")
    if queue:
        metadata["labels"][LABEL_QUEUE] = queue
    made: dict[str, Any] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 0,
            "suspend": bool(queue),
            "rayClusterSpec": {
                "rayVersion": ray.version,
                "authOptions": {"mode": "token"},
                # num-cpus 0: no worker lands on the head, whose death would take the whole run with it.
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": head_pod,
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers.count,
                        "minReplicas": workers.count,
                        "maxReplicas": workers.count,
                        "rayStartParams": {},
                        "template": worker_pod,
                    }
                ],
            },
        },
    }
    if driver_alone:
        del made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        if resources.gpu:  # else Ray hides the head's GPUs from the driver
            made["spec"]["entrypointNumGpus"] = resources.gpu
    return made


def _pod(job: dict[str, Any], attempt: int, main: dict[str, Any], priority: str | None) -> dict[str, Any]:
    spec: dict[str, Any] = {**pod_security(), "containers": [main]}
    if priority:
        spec["priorityClassName"] = priority
    return {
        "metadata": {
            "labels": {**owner_labels(job), LABEL_ATTEMPT: str(attempt)},
        },
        "spec": spec,
    }


def _place(pod: dict[str, Any], pool: PoolPodsConfig) -> None:
    """Gives a pod what the pool has for it; a pod of no pool stays as it was."""
    if pool.annotations:
        pod["metadata"]["annotations"] = dict(pool.annotations)
    spec = pod["spec"]
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        spec["tolerations"] = [toleration.to_wire() for toleration in pool.tolerations]
    [main] = spec["containers"]
    for kind in ("requests", "limits"):  # of extended resources they must be the same
        main["resources"][kind] |= pool.resources
    if pool.env:
        variables = [{"name": name, "value": value} for name, value in pool.env.items()]
        main["env"] = [*main.get("env", []), *variables]


def pod_security() -> dict[str, Any]:
    """What makes a pod spec satisfy the *restricted* standard, and keeps Kubernetes credentials out of it."""
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security() -> dict[str, Any]:
    """What makes a container satisfy the *restricted* standard, besides its pod's."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def container(name: str, image: str, resources: dict[str, Any]) -> dict[str, Any]:
    """A container that asks for exactly these resources, without any privilege."""
    return {
        "name": name,
        "image": image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": container_security(),
    }
