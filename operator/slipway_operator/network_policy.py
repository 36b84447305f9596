"""Renders the NetworkPolicy of one job: its pods are closed to all but each other, KubeRay and what they need.

One policy for each job, because a policy cannot say "pods with the same label value"; it holds for all attempts and
goes with the job. Pure; writes nothing. It bites only where the network plugin enforces policies.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from slipway_operator.config import NetworkPolicyConfig
from slipway_operator.kuberay import OWNER_LABELS, owner_labels, owner_reference

_DASHBOARD_PORT = 8265  # Ray's job endpoint: KubeRay submits there, and asks how it goes
_DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def network_policy(job: dict[str, Any], name: str, config: NetworkPolicyConfig) -> dict[str, Any]:
    """The policy of a TrainJob or EvalJob, owned by it, under `name`."""
    own_pods = {"podSelector": {"matchLabels": {OWNER_LABELS[job["kind"]]: job["metadata"]["name"]}}}
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
                {"from": [_namespace(config.ray_operator_namespace)], "ports": [_tcp(_DASHBOARD_PORT)]},
            ],
            "egress": [
                {"to": [own_pods]},
                # To any address: a node-local resolver is no pod.
                {"ports": _DNS},
                {"to": [operator], "ports": [_tcp(config.reports_port)]},
                *_outside(config),
            ],
        },
    }


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
