"""Reads a RayJob (ray.io/v1) as far as it means something on one machine. Pure; starts and fetches nothing.

Three kinds of fields:
- honoured: what `RayJobRequest` holds;
- without meaning here, accepted and named in the `_MOOT_*` sets: images (this installation is the image), where pods
  are placed and under which user (there is one machine and one user), probes, ports, services;
- anything else would change what happens and is refused with its path, never ignored.

The head is this machine, so its CPUs and memory are counted only when no worker group asks for any; its GPUs always
are. For the same reason `entrypointNumCpus` reserves nothing: in a cluster it is a share of the head's CPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from slipway_api.quantity import parse_quantity
from slipway_local.ray_runner.errors import InvalidRayJob
from slipway_local.ray_runner.pod import Pod, read_pod
from slipway_local.ray_runner.reading import list_at, mapping_at, only, text_at, whole_at
from slipway_local.ray_runner.resources import Resources

MANAGED_BY_US = ("", "ray.io/kuberay-operator")
"""Values of spec.managedBy under which KubeRay, and so this runner, takes a RayJob. It leaves others alone."""

_SPEC = {
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "metadata",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "rayClusterSpec",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "suspend",
    "backoffLimit",
    "managedBy",
}
_MOOT_SPEC = {"submitterConfig"}  # of a submitter that does not exist: the runner submits
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
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class WorkerGroup:
    """`replicas` pods made from one template."""

    path: str
    replicas: int
    pod: Pod


@dataclass(frozen=True)
class RayJobRequest:
    """What a RayJob asks of this machine. Durations in seconds."""

    entrypoint: str
    head: Pod
    groups: tuple[WorkerGroup, ...]
    need: Resources
    runtime_env: dict[str, Any] = field(default_factory=dict)
    job_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    entrypoint_gpus: Decimal = Decimal(0)
    deadline: int | None = None
    ttl: int | None = None
    suspend: bool = False

    @property
    def priority_class(self) -> tuple[str, str] | None:
        """(path, name) of the PriorityClass: the first worker group's, else the head's."""
        pods = [(f"{group.path}.template.spec", group.pod) for group in self.groups[:1]]
        pods.append(("spec.rayClusterSpec.headGroupSpec.template.spec", self.head))
        return next(
            ((f"{path}.priorityClassName", pod.priority_class) for path, pod in pods if pod.priority_class), None
        )


def read_rayjob(rayjob: dict[str, Any]) -> RayJobRequest:
    """What a RayJob asks for. Raises InvalidRayJob naming the first field that this runner cannot honour."""
    spec = mapping_at(rayjob, "spec", "")
    only(spec, "spec", _SPEC | _MOOT_SPEC)
    _check_mode(spec)
    cluster = mapping_at(spec, "rayClusterSpec", "spec")
    if not cluster:
        raise InvalidRayJob("spec.rayClusterSpec", "is required")
    head, groups = _read_cluster(cluster)
    entrypoint = text_at(spec, "entrypoint", "spec")
    if not entrypoint.strip():
        raise InvalidRayJob("spec.entrypoint", "is required: the command to run")
    ttl = whole_at(spec, "ttlSecondsAfterFinished", "spec", default=0)
    suspend = bool(spec.get("suspend"))
    if suspend and not spec.get("shutdownAfterJobFinishes"):
        raise InvalidRayJob("spec.suspend", "needs shutdownAfterJobFinishes: true, as in a cluster")
    return RayJobRequest(
        entrypoint=entrypoint,
        head=head,
        groups=groups,
        need=_need(head, groups),
        runtime_env=_runtime_env(text_at(spec, "runtimeEnvYAML", "spec")),
        job_id=_job_id(spec),
        metadata={str(name): str(value) for name, value in mapping_at(spec, "metadata", "spec").items()},
        entrypoint_gpus=_amount(spec, "entrypointNumGpus"),
        deadline=whole_at(spec, "activeDeadlineSeconds", "spec", minimum=1)
        if "activeDeadlineSeconds" in spec
        else None,
        # 0 is what the CRD defaults to: in a cluster the pods go at once and the object stays.
        ttl=ttl if ttl > 0 and spec.get("shutdownAfterJobFinishes") else None,
        suspend=suspend,
    )


def _check_mode(spec: dict[str, Any]) -> None:
    mode = text_at(spec, "submissionMode", "spec") or "K8sJobMode"
    if mode not in ("HTTPMode", "K8sJobMode"):
        raise InvalidRayJob("spec.submissionMode", f"{mode} is not available on one machine: use HTTPMode")
    if whole_at(spec, "backoffLimit", "spec", default=0):
        raise InvalidRayJob("spec.backoffLimit", "must be 0 here: whoever creates the RayJob decides about retries")
    _amount(spec, "entrypointNumCpus")
    if text_at(spec, "entrypointResources", "spec").strip(" {}"):
        raise InvalidRayJob("spec.entrypointResources", "the local Ray has no custom resources: remove it")


def _read_cluster(cluster: dict[str, Any]) -> tuple[Pod, tuple[WorkerGroup, ...]]:
    path = "spec.rayClusterSpec"
    only(cluster, path, _CLUSTER | _MOOT_CLUSTER)
    for name, why in (
        ("enableInTreeAutoscaling", "the local Ray cannot grow: set replicas to what the job needs"),
        ("suspend", "suspend the RayJob instead"),
    ):
        if cluster.get(name):
            raise InvalidRayJob(f"{path}.{name}", why)
    head_path = f"{path}.headGroupSpec"
    head = mapping_at(cluster, "headGroupSpec", path)
    only(head, head_path, _HEAD | _MOOT_HEAD)
    _check_start_parameters(head, head_path)
    groups = tuple(
        _read_group(group, f"{path}.workerGroupSpecs[{index}]")
        for index, group in enumerate(list_at(cluster, "workerGroupSpecs", path))
    )
    return read_pod(mapping_at(head, "template", head_path), f"{head_path}.template"), groups


def _read_group(group: dict[str, Any], path: str) -> WorkerGroup:
    only(group, path, _GROUP | _MOOT_GROUP)
    if group.get("suspend"):
        raise InvalidRayJob(f"{path}.suspend", "a suspended worker group never starts here: remove it or set replicas")
    _check_start_parameters(group, path)
    replicas = whole_at(group, "replicas", path, default=whole_at(group, "minReplicas", path, default=0))
    hosts = whole_at(group, "numOfHosts", path, default=1, minimum=1)
    return WorkerGroup(path, replicas * hosts, read_pod(mapping_at(group, "template", path), f"{path}.template"))


def _check_start_parameters(group: dict[str, Any], path: str) -> None:
    for name in ("resources", "labels"):
        if str(mapping_at(group, "rayStartParams", path).get(name) or "").strip("'\"{} "):
            raise InvalidRayJob(f"{path}.rayStartParams.{name}", "the local Ray has no custom resources: remove it")


def _need(head: Pod, groups: tuple[WorkerGroup, ...]) -> Resources:
    need = Resources()
    for group in groups:
        need = need + group.pod.resources * group.replicas
    if any(group.replicas for group in groups):
        return need + Resources(gpu=head.resources.gpu)
    return head.resources


def _runtime_env(text: str) -> dict[str, Any]:
    path = "spec.runtimeEnvYAML"
    try:
        document = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise InvalidRayJob(path, f"is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRayJob(path, "must be a YAML mapping")
    for name in _RUNTIME_ENV_REFUSED:
        if document.get(name):
            raise InvalidRayJob(f"{path}.{name}", "jobs run in this installation: install what they need into it")
    variables = document.get("env_vars") or {}
    if not isinstance(variables, dict):
        raise InvalidRayJob(f"{path}.env_vars", "must be a mapping of strings")
    return {**document, "env_vars": {str(name): str(value) for name, value in variables.items()}}


def _job_id(spec: dict[str, Any]) -> str | None:
    job_id = text_at(spec, "jobId", "spec")
    if job_id and not _JOB_ID.fullmatch(job_id):
        raise InvalidRayJob("spec.jobId", f"must be letters, digits, '.', '_' and '-', at most 128: {job_id[:64]!r}")
    return job_id or None


def _amount(spec: dict[str, Any], name: str) -> Decimal:
    try:
        amount = parse_quantity(spec.get(name) or 0)
    except ValueError as error:
        raise InvalidRayJob(f"spec.{name}", str(error)) from None
    if amount < 0:
        raise InvalidRayJob(f"spec.{name}", "must not be negative")
    return amount
