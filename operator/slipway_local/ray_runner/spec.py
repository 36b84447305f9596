"""Reads a RayJob (ray.io/v1) as far as it means something on one machine. Pure; starts and fetches nothing.

Three kinds of fields:
- honoured: what `RayJobRequest` holds;
- without meaning here, accepted and named in the `_MOOT_*` sets: images (this installation is the image), where pods
  are placed and under which user (there is one machine and one user), probes, ports, services;
- anything else would change what happens and is refused with its path, never ignored.

`cluster.py` reads the Ray cluster of it. `entrypointNumCpus` reserves nothing: in a cluster it is a share of the head's
CPUs, and the head is this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from slipway_api.quantity import parse_quantity
from slipway_local.ray_runner.cluster import WorkerGroup, need_of, read_cluster, read_runtime_env
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.pod import Pod
from slipway_local.ray_runner.reading import mapping_at, only, text_at, whole_at
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
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
    """What a RayJob asks for. Raises InvalidSpec naming the first field that this runner cannot honour."""
    spec = mapping_at(rayjob, "spec", "")
    only(spec, "spec", _SPEC | _MOOT_SPEC)
    _check_mode(spec)
    cluster = mapping_at(spec, "rayClusterSpec", "spec")
    if not cluster:
        raise InvalidSpec("spec.rayClusterSpec", "is required")
    head, groups = read_cluster(cluster, "spec.rayClusterSpec")
    entrypoint = text_at(spec, "entrypoint", "spec")
    if not entrypoint.strip():
        raise InvalidSpec("spec.entrypoint", "is required: the command to run")
    ttl = whole_at(spec, "ttlSecondsAfterFinished", "spec", default=0)
    suspend = bool(spec.get("suspend"))
    if suspend and not spec.get("shutdownAfterJobFinishes"):
        raise InvalidSpec("spec.suspend", "needs shutdownAfterJobFinishes: true, as in a cluster")
    return RayJobRequest(
        entrypoint=entrypoint,
        head=head,
        groups=groups,
        need=need_of(head, groups),
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
        raise InvalidSpec("spec.submissionMode", f"{mode} is not available on one machine: use HTTPMode")
    if whole_at(spec, "backoffLimit", "spec", default=0):
        raise InvalidSpec("spec.backoffLimit", "must be 0 here: whoever creates the RayJob decides about retries")
    _amount(spec, "entrypointNumCpus")
    if text_at(spec, "entrypointResources", "spec").strip(" {}"):
        raise InvalidSpec("spec.entrypointResources", "the local Ray has no custom resources: remove it")


def _runtime_env(text: str) -> dict[str, Any]:
    path = "spec.runtimeEnvYAML"
    try:
        document = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise InvalidSpec(path, f"is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise InvalidSpec(path, "must be a YAML mapping")
    return read_runtime_env(document, path)


def _job_id(spec: dict[str, Any]) -> str | None:
    job_id = text_at(spec, "jobId", "spec")
    if job_id and not _JOB_ID.fullmatch(job_id):
        raise InvalidSpec("spec.jobId", f"must be letters, digits, '.', '_' and '-', at most 128: {job_id[:64]!r}")
    return job_id or None


def _amount(spec: dict[str, Any], name: str) -> Decimal:
    try:
        amount = parse_quantity(spec.get(name) or 0)
    except ValueError as error:
        raise InvalidSpec(f"spec.{name}", str(error)) from None
    if amount < 0:
        raise InvalidSpec(f"spec.{name}", "must not be negative")
    return amount
