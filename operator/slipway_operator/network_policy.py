"""Renders the NetworkPolicy of one job or Deployment: its pods are closed to all but each other and what they need.

One policy for each, because a policy cannot say "pods with the same label value"; it holds for all attempts and goes
with its owner. A Deployment's pods are asked by clients as well, and by KubeRay whether they serve. Pure; writes
nothing. It bites only where the network plugin enforces policies.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from slipway_operator.config import NetworkPolicyConfig
from slipway_operator.kuberay import LABEL_ATTEMPT, OWNER_LABELS, owner_labels, owner_reference

_DASHBOARD_PORT = 8265  # Ray's job endpoint: KubeRay submits there, and asks how it goes
_SERVE_PORT = 8000  # Ray Serve's HTTP: clients ask there, and KubeRay whether the proxy is healthy
_DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def network_policy(
    job: dict[str, Any], name: str, config: NetworkPolicyConfig, *, serves: bool = False
) -> dict[str, Any]:
    """The policy of a TrainJob, EvalJob or Deployment, owned by it, under `name`.

    `serves`: of the pods of a Deployment that answer, and not of those of its runs.
    """
    selector: dict[str, Any] = {"matchLabels": {OWNER_LABELS[job["kind"]]: job["metadata"]["name"]}}
    if job["kind"] == "Deployment":
        selector["matchExpressions"] = [{"key": LABEL_ATTEMPT, "operator": "DoesNotExist" if serves else "Exists"}]
    own_pods = {"podSelector": selector}
    operator = {**_namespace(config.operator_namespace), "podSelector": {"matchLabels": dict(config.operator_labels)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": job["metadata"]["namespace"],
            "labels": owner_labels(job),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            **own_pods,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own_pods]},
                {
                    "from": [_namespace(config.ray_operator_namespace)],
                    "ports": [
                        _tcp(port) for port in ((_DASHBOARD_PORT, _SERVE_PORT) if serves else (_DASHBOARD_PORT,))
                    ],
                },
                *(_clients(config) if serves else ()),
            ],
            "egress": [
                {"to": [own_pods]},
                # To any address: a node-local resolver is no pod.
                {"ports": _DNS},
                {"to": [operator], "ports": [_tcp(config.reports_port)]},
                # To any address: a policy cannot name the API server. Only the autoscaler has credentials for it.
                *([{"ports": [_tcp(port) for port in config.api_server_ports]}] if serves and _scales(job) else ()),
                *_outside(config),
            ],
        },
    }


def _scales(job: dict[str, Any]) -> bool:
    """Whether it has Ray's autoscaler: a Deployment whose replicas come and go (rayservice.py)."""
    replicas = job.get("spec", {}).get("replicas") or {}
    return bool(replicas) and (replicas["min"] < replicas["max"] or replicas["min"] == 0)


def _clients(config: NetworkPolicyConfig) -> list[dict[str, Any]]:
    """Who may ask: everybody, or the pods of the listed namespaces and of the Deployment's own."""
    rule: dict[str, Any] = {"ports": [_tcp(_SERVE_PORT)]}
    if config.client_namespaces:
        rule["from"] = [{"podSelector": {}}, *(_namespace(name) for name in config.client_namespaces)]
    return [rule]


def _outside(config: NetworkPolicyConfig) -> list[dict[str, Any]]:
    """Any address but the excepted ones, on the listed ports; no rule at all without a port."""
    if not config.egress_ports:
        return []
    blocks = []
    for version, everything in ((4, "0.0.0.0/0"), (6, "::/0")):
        excepted = [cidr for cidr in config.egress_except if ipaddress.ip_network(cidr).version == version]
        blocks.append({"ipBlock": {"cidr": everything} | ({"except": excepted} if excepted else {})})
    return [{"to": blocks, "ports": [_tcp(port) for port in config.egress_ports]}]


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int) -> dict[str, Any]:
    return {"port": port, "protocol": "TCP"}
