"""RayService objects for the tests of the runner, shaped as KubeRay takes them."""

from __future__ import annotations

from typing import Any

import yaml

from .rayjobs import pod


def application(name: str = "teller", *, route: str | None = "/", cpus: float = 0.5, **fields: Any) -> dict[str, Any]:
    """One of tiny_app's, with one replica."""
    config = fields.pop("user_config", None)
    deployment: dict[str, Any] = {"name": "Teller", "num_replicas": 1, "ray_actor_options": {"num_cpus": cpus}}
    if config is not None:
        deployment["user_config"] = config
    return {
        "name": name,
        "route_prefix": route,
        "import_path": "tiny_app:teller",
        "args": {},
        "deployments": [deployment],
        **fields,
    }


def rayservice(
    name: str = "service",
    *applications: dict[str, Any],
    namespace: str = "default",
    worker: dict[str, Any] | None = None,
    cpu: str = "500m",
    document: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """`worker` is the pod template of its one worker; `document` is the rest of serveConfigV2."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serveConfigV2": yaml.safe_dump({**(document or {}), "applications": list(applications)}),
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod(cpu="1", memory="2Gi")},
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 1,
                        "minReplicas": 1,
                        "maxReplicas": 1,
                        "rayStartParams": {},
                        "template": worker if worker is not None else pod(cpu=cpu),
                    }
                ],
            },
            **spec,
        },
    }
