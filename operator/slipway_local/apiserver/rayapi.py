"""ray.io/v1 as CustomResourceDefinitions of our own: small schemas that keep whatever a spec holds.

KubeRay's own CRDs describe every field of a pod template (more than a megabyte of YAML each); what matters here is that
the operator's objects are stored as written, that status is an endpoint of its own, and that kubectl prints the columns
KubeRay's users know.
"""

from __future__ import annotations

from typing import Any


def _column(name: str, path: str, type_: str = "string", priority: int = 0) -> dict[str, Any]:
    column = {"name": name, "type": type_, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


_AGE = _column("age", ".metadata.creationTimestamp", "date")


def _crd(kind: str, short: list[str], description: str, columns: list[dict[str, Any]]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.ray.io"},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": description,
                            "properties": {
                                "spec": {**free, "description": "What is asked for, as KubeRay defines it."},
                                "status": {**free, "description": "What has become of it, as KubeRay reports it."},
                            },
                        }
                    },
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def ray_crds() -> list[dict[str, Any]]:
    """RayJob, RayService and RayCluster."""
    return [
        _crd(
            "RayJob",
            [],
            "A job that runs on a Ray cluster of its own.",
            [
                _column("job status", ".status.jobStatus"),
                _column("deployment status", ".status.jobDeploymentStatus"),
                _column("ray cluster name", ".status.rayClusterName"),
                _column("start time", ".status.startTime"),
                _column("end time", ".status.endTime"),
                _AGE,
            ],
        ),
        _crd(
            "RayService",
            [],
            "A Ray Serve application and the Ray cluster that it runs on.",
            [
                _column("service status", ".status.serviceStatus"),
                _column("num serve endpoints", ".status.numServeEndpoints", "integer"),
                _AGE,
            ],
        ),
        _crd(
            "RayCluster",
            [],
            "A head and groups of workers.",
            [
                _column("desired workers", ".status.desiredWorkerReplicas", "integer"),
                _column("available workers", ".status.availableWorkerReplicas", "integer"),
                _column("cpus", ".status.desiredCPU"),
                _column("memory", ".status.desiredMemory"),
                _column("gpus", ".status.desiredGPU"),
                _column("status", ".status.state"),
                _AGE,
            ],
        ),
    ]
