"""Renders KubeRay's RayService (ray.io/v1) for a Deployment. Pure; writes nothing.

- One Serve application for each version, so that a version which joins or leaves restarts no other
  (slipway_api.serving says why).
- The replicas of the versions follow their weights, and there may be one pod more than `replicas.max`: that is all that
  a rollout needs on top, where a second cluster would need everything twice. With a fixed number of replicas the number
  of pods never changes: without an autoscaler KubeRay would pick the pods that go, and their requests with them. Where
  replicas come and go, Ray's autoscaler does so with pods, and takes only those that hold no replica.
- `upgradeStrategy: NewCluster`, KubeRay's default: what changes the pods themselves (image, resources) brings up a
  second cluster and then switches to it. That is the one change which needs everything twice for a while.
- The router takes no CPU of Ray's count, and runs on the head (slipway_serving.app says so): no pod that goes takes it
  along.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from slipway_api import GROUP
from slipway_api.deployment import DeploymentSpec, Replicas, ServedVersion
from slipway_api.quantity import parse_quantity
from slipway_api.references import ModelReference
from slipway_api.run import ReportTarget
from slipway_api.serving import (
    ENGINE_DEPLOYMENT,
    ENGINE_IMPORT_PATH,
    ROUTER_APPLICATION,
    ROUTER_DEPLOYMENT,
    ROUTER_IMPORT_PATH,
    VLLM_DEPLOYMENT_PREFIX,
    VLLM_IMPORT_PATH,
    EngineConfig,
    RouterConfig,
    RouterUserConfig,
    VllmConfig,
    WeightedVersion,
)
from slipway_operator import watcher
from slipway_operator.config import RayConfig
from slipway_operator.kuberay import (
    TOKEN_DIRECTORY,
    TOKEN_FILE,
    container,
    container_security,
    owner_labels,
    owner_reference,
    pod_security,
)

CONFIG_HASH = f"{GROUP}/config-hash"
URL = f"{GROUP}/url"
KEYS_DIRECTORY = "/var/run/slipway-keys"
# What kubelet mounts by itself where it may (https://kubernetes.io/docs/concepts/storage/projected-volumes/).
_CREDENTIALS_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
_CREDENTIALS = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
]


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
    drift: str,
    beside: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The RayService that serves these versions, each with its weight; the first is the stable one.

    The router is told of a candidate when it is ready. While Serve gives a router new settings, it counts it as not
    running, and its proxy takes a slower way: that is not to be while a candidate takes the CPU to load.

    `beside`: what is applied together with it, so that a change of theirs changes the digest too.
    """
    config = {
        "applications": [
            _router(deployment, spec, versions, report, feedback),
            *(_engine(version, spec) for version in versions),
            *watcher.applications(deployment, spec, versions[0], report, drift),
        ]
    }
    body = {
        "serveConfigV2": json.dumps(config, indent=2),  # JSON is YAML, and fifty times faster to write
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": _cluster(deployment, spec, ray),
    }
    metadata = _metadata(deployment, deployment["metadata"]["name"])
    digest = hashlib.sha256(json.dumps([body, *beside], sort_keys=True).encode()).hexdigest()
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
            WeightedVersion(name=v.version, application=v.version, weight=v.weight, model=v.source)
            for v in versions
            if v is versions[0] or v.weight > 0 or v.ready_since is not None
        ],
        default_max_tokens=spec.generation.max_tokens,
        max_tokens_limit=spec.generation.max_tokens_limit,
        default_temperature=float(spec.generation.temperature),
        default_top_p=float(spec.generation.top_p),
        max_body_bytes=spec.limits.max_body_bytes,
        requests_per_minute=spec.limits.requests_per_minute,
        start_timeout_seconds=spec.replicas.start_timeout_seconds,
        capture=watcher.capture(spec),
    )
    return {
        "name": ROUTER_APPLICATION,
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT_PATH,
        "args": fixed.to_wire(),
        "logging_config": {"enable_access_log": False},  # the router writes one of its own, with what Serve cannot know
        "deployments": [{"name": ROUTER_DEPLOYMENT, "user_config": changing.to_wire()}],
    }


def _vllm(version: ServedVersion, spec: DeploymentSpec) -> dict[str, Any]:
    """Two deployments: the one that the router asks, which passes on, and ray.serve.llm's, which has the GPUs."""
    engine = version.vllm
    assert engine is not None
    config = VllmConfig(
        version=version.version,
        model=version.reference,
        precision=engine.precision,
        max_batch=engine.max_batch,
        max_context_tokens=engine.max_context_tokens,
        gpu_memory_part=float(engine.gpu_memory_part),
        prefix_caching=engine.prefix_caching,
        gpus=spec.replicas.resources.gpu,
    )
    holder = {
        "name": VLLM_DEPLOYMENT_PREFIX + version.version,
        **_scale(version, spec.replicas, always=True),  # ray.serve.llm sets a range, which would win over a number
        "max_ongoing_requests": 2 * engine.max_batch,
    }
    return {
        "name": version.version,
        "route_prefix": None,
        "import_path": VLLM_IMPORT_PATH,
        "args": config.to_wire(),
        "deployments": [{"name": ENGINE_DEPLOYMENT, "num_replicas": 1}, holder],
    }


def _engine(version: ServedVersion, spec: DeploymentSpec) -> dict[str, Any]:
    engine, resources, compressed = version.engine, spec.replicas.resources, version.compression
    if engine is None:
        return _vllm(version, spec)
    config = EngineConfig(
        version=version.version,
        model=ModelReference(uri=compressed.uri) if compressed else version.reference,
        digest=compressed.digest if compressed else version.digest,
        compression=compressed.scheme if compressed else None,
        precision=engine.precision,
        max_batch=engine.max_batch,
        max_context_tokens=engine.max_context_tokens,
        max_queue=engine.max_queue,
        compile=engine.compile,
    )
    actor: dict[str, Any] = {"num_cpus": float(parse_quantity(resources.cpu))}
    if resources.gpu:
        actor["num_gpus"] = resources.gpu
    deployment = {
        "name": ENGINE_DEPLOYMENT,
        **_scale(version, spec.replicas),
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


def _scale(version: ServedVersion, replicas: Replicas, *, always: bool = False) -> dict[str, Any]:
    """How many replicas a version has, within its part of them; `always` as a range.

    The delays are not Serve's (30 s up, 10 minutes down): a replica takes as long as its model takes to load, so asking
    for one must not wait as well, and giving one back must be worth loading it again. A version that has never been
    ready keeps one replica, so that "ready" says that its model was loaded.
    """
    most = replicas_of(version.weight, replicas.max)
    fewest = min(most, replicas_of(version.weight, replicas.min))
    if replicas.min == 0 and version.ready_since:
        fewest = 0
    if fewest == most and not always:
        return {"num_replicas": most}
    scaling = {
        "min_replicas": fewest,
        "max_replicas": most,
        "target_ongoing_requests": replicas.target_ongoing_requests,
        "look_back_period_s": 10,
        "upscale_delay_s": 5,
        "downscale_delay_s": 300,
    }
    if replicas.min == 0:
        scaling["downscale_to_zero_delay_s"] = replicas.idle_seconds
    return {"autoscaling_config": scaling}


def replicas_of(weight: int, replicas: int) -> int:
    """The replicas of a version that gets so many percent of the requests: its part of them, at least one."""
    return max(1, -(-replicas * weight // 100))


def _cluster(deployment: dict[str, Any], spec: DeploymentSpec, ray: RayConfig) -> dict[str, Any]:
    resources, replicas = spec.replicas.resources, spec.replicas
    wanted: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpu:
        wanted["nvidia.com/gpu"] = resources.gpu
    head = _pod(deployment, spec, container("ray-head", ray.serving_image, {"cpu": "1", "memory": ray.head_memory}))
    most = replicas.max + 1
    scales = replicas.min < replicas.max or replicas.min == 0
    return {
        "rayVersion": ray.version,
        "authOptions": {"mode": "token"},
        **(_pod_autoscaler(head) if scales else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": max(1, replicas.min) if scales else most,
                "minReplicas": replicas.min if scales else most,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": _pod(deployment, spec, container("ray-worker", ray.serving_image, wanted)),
            }
        ],
    }


def _pod_autoscaler(head: dict[str, Any]) -> dict[str, Any]:
    """Ray's autoscaler beside the head: pods come and go with the replicas, so that an idle GPU is given back.

    It is the one container with credentials of Kubernetes, those of an account that KubeRay makes for it (pods and the
    RayCluster of its namespace). The pod's own mounting of them stays off, so Ray and the models have none.
    """
    head["spec"]["volumes"].append({"name": "kubernetes", "projected": {"defaultMode": 0o440, "sources": _CREDENTIALS}})
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "idleTimeoutSeconds": 60,
            "securityContext": container_security(),
            "volumeMounts": [{"name": "kubernetes", "mountPath": _CREDENTIALS_DIRECTORY, "readOnly": True}],
        },
    }


def _pod(deployment: dict[str, Any], spec: DeploymentSpec, main: dict[str, Any]) -> dict[str, Any]:
    """A pod that any part of the application may run in: the router is on the head, what watches drift anywhere."""
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
