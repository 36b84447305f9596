"""Renders KubeRay's RayService (ray.io/v1) for a Deployment. Pure; writes nothing.

- One Serve application for each version, so that a version which joins or leaves restarts no other
  (slipway_api.serving says why).
- The replicas of the versions follow their weights, and there is one pod more than `replicas.max`: that is all that a
  rollout needs on top, where a second cluster would need everything twice. The number of pods never changes with a
  rollout: without an autoscaler KubeRay would pick the pods that go, and their requests with them.
- `upgradeStrategy: NewCluster`, KubeRay's default: what changes the pods themselves (image, resources) brings up a
  second cluster and then switches to it. That is the one change which needs everything twice for a while.
- The router takes no CPU of Ray's count: it runs on the head, whose CPUs workers cannot have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from slipway_api import GROUP
from slipway_api.deployment import DeploymentSpec, ServedVersion
from slipway_api.quantity import parse_quantity
from slipway_api.run import ReportTarget
from slipway_api.serving import (
    ENGINE_DEPLOYMENT,
    ENGINE_IMPORT_PATH,
    ROUTER_APPLICATION,
    ROUTER_DEPLOYMENT,
    ROUTER_IMPORT_PATH,
    EngineConfig,
    RouterConfig,
    RouterUserConfig,
    WeightedVersion,
)
from slipway_operator.config import RayConfig
from slipway_operator.kuberay import (
    TOKEN_DIRECTORY,
    TOKEN_FILE,
    container,
    owner_labels,
    owner_reference,
    pod_security,
)

CONFIG_HASH = f"{GROUP}/config-hash"
URL = f"{GROUP}/url"
KEYS_DIRECTORY = "/var/run/slipway-keys"


def secret_name(name: str) -> str:
    """The name of the Secret that holds the token which the router reports with."""
    return f"{name}-serve"


def token_secret(deployment: dict[str, Any], token: str, ca: str | None) -> dict[str, Any]:
    """The Secret that the router's pod mounts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _metadata(deployment, secret_name(deployment["metadata"]["name"])),
        "stringData": {"report-token": token} | ({"ca.crt": ca} if ca else {}),
    }


def ray_service(
    deployment: dict[str, Any],
    spec: DeploymentSpec,
    versions: Sequence[ServedVersion],
    report: ReportTarget,
    ray: RayConfig,
    *,
    feedback: str,
) -> dict[str, Any]:
    """The RayService that serves these versions, each with its weight; the first is the stable one."""
    config = {
        "applications": [
            _router(deployment, spec, versions, report, feedback),
            *(_engine(version, spec) for version in versions),
        ]
    }
    body = {
        "serveConfigV2": json.dumps(config, indent=2),  # JSON is YAML, and fifty times faster to write
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": _cluster(deployment, spec, ray),
    }
    metadata = _metadata(deployment, deployment["metadata"]["name"])
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    metadata["annotations"] = {CONFIG_HASH: digest}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": body}


def _metadata(deployment: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": deployment["metadata"]["namespace"],
        "labels": owner_labels(deployment),
        "ownerReferences": [owner_reference(deployment)],
    }


def _router(
    deployment: dict[str, Any],
    spec: DeploymentSpec,
    versions: Sequence[ServedVersion],
    report: ReportTarget,
    feedback: str,
) -> dict[str, Any]:
    metadata = deployment["metadata"]
    fixed = RouterConfig(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        api_keys_file=f"{KEYS_DIRECTORY}/{spec.auth.api_keys.key}" if spec.auth else None,
        feedback_directory=feedback,
        report=report,
    )
    changing = RouterUserConfig(
        versions=[
            WeightedVersion(name=v.version, application=v.version, weight=v.weight, model=v.source) for v in versions
        ],
        default_max_tokens=spec.generation.max_tokens,
        max_tokens_limit=spec.generation.max_tokens_limit,
        default_temperature=float(spec.generation.temperature),
        default_top_p=float(spec.generation.top_p),
        max_body_bytes=spec.limits.max_body_bytes,
        requests_per_minute=spec.limits.requests_per_minute,
    )
    return {
        "name": ROUTER_APPLICATION,
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT_PATH,
        "args": fixed.to_wire(),
        "deployments": [{"name": ROUTER_DEPLOYMENT, "user_config": changing.to_wire()}],
    }


def _engine(version: ServedVersion, spec: DeploymentSpec) -> dict[str, Any]:
    engine, resources = version.engine, spec.replicas.resources
    config = EngineConfig(
        version=version.version,
        model=version.reference,
        digest=version.digest,
        precision=engine.precision,
        max_batch=engine.max_batch,
        max_context_tokens=engine.max_context_tokens,
        max_queue=engine.max_queue,
    )
    most = replicas_of(version.weight, spec.replicas.max)
    fewest = min(most, replicas_of(version.weight, spec.replicas.min))
    scale: dict[str, Any] = {"num_replicas": most}
    if fewest < most:
        scale = {
            "autoscaling_config": {
                "min_replicas": fewest,
                "max_replicas": most,
                "target_ongoing_requests": spec.replicas.target_ongoing_requests,
            }
        }
    actor: dict[str, Any] = {"num_cpus": float(parse_quantity(resources.cpu))}
    if resources.gpu:
        actor["num_gpus"] = resources.gpu
    deployment = {
        "name": ENGINE_DEPLOYMENT,
        **scale,
        # The engine itself refuses what is too much (429); Serve's own bound must not come first.
        "max_ongoing_requests": engine.max_batch + engine.max_queue + 16,
        "ray_actor_options": actor,
    }
    return {
        "name": version.version,
        "route_prefix": None,
        "import_path": ENGINE_IMPORT_PATH,
        "args": config.to_wire(),
        "deployments": [deployment],
    }


def replicas_of(weight: int, replicas: int) -> int:
    """The replicas of a version that gets so many percent of the requests: its part of them, at least one."""
    return max(1, -(-replicas * weight // 100))


def _cluster(deployment: dict[str, Any], spec: DeploymentSpec, ray: RayConfig) -> dict[str, Any]:
    resources = spec.replicas.resources
    wanted: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpu:
        wanted["nvidia.com/gpu"] = resources.gpu
    count = spec.replicas.max + 1
    return {
        "rayVersion": ray.version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(deployment, spec, container("ray-head", ray.image, {"cpu": "1", "memory": "2Gi"})),
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": count,
                "minReplicas": count,
                "maxReplicas": count,
                "rayStartParams": {},
                "template": _pod(deployment, spec, container("ray-worker", ray.image, wanted)),
            }
        ],
    }


def _pod(deployment: dict[str, Any], spec: DeploymentSpec, main: dict[str, Any]) -> dict[str, Any]:
    """A pod that any part of the application may run in: Serve places the router where it likes."""
    name = deployment["metadata"]["name"]
    main["volumeMounts"] = [{"name": "run", "mountPath": TOKEN_DIRECTORY, "readOnly": True}]
    volumes: list[dict[str, Any]] = [{"name": "run", "secret": {"secretName": secret_name(name), "defaultMode": 0o440}}]
    if spec.auth:
        main["volumeMounts"].append({"name": "keys", "mountPath": KEYS_DIRECTORY, "readOnly": True})
        keys = spec.auth.api_keys
        volumes.append({"name": "keys", "secret": {"secretName": keys.name, "defaultMode": 0o440}})
    body: dict[str, Any] = {**pod_security(), "containers": [main], "volumes": volumes}
    if spec.priority_class_name:
        body["priorityClassName"] = spec.priority_class_name
    return {"metadata": {"labels": owner_labels(deployment)}, "spec": body}


def report_target(url: str, ca_file: str | None, interval_seconds: int) -> ReportTarget:
    """Where the router reports to, with the token that its pod mounts."""
    return ReportTarget(url=url, token_file=TOKEN_FILE, ca_file=ca_file, interval_seconds=interval_seconds)
