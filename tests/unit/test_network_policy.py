"""The NetworkPolicy of a TrainJob: its own pods, KubeRay, DNS, reports, storage; nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from slipway_operator.config import NetworkPolicyConfig
from slipway_operator.network_policy import network_policy

JOB = {"kind": "TrainJob", "metadata": {"name": "job", "namespace": "team", "uid": "u"}}
CONFIG: dict[str, Any] = {
    "operatorNamespace": "slipway-system",
    "operatorLabels": {"app": "slipway"},
    "reportsPort": 8443,
    "rayOperatorNamespace": "kuberay-system",
}
OWN = {"podSelector": {"matchLabels": {"slipway.dev/trainjob": "job"}}}


def spec(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = network_policy(JOB, "job", NetworkPolicyConfig.model_validate(CONFIG | changes))["spec"]
    return made


def namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def test_it_closes_both_directions_of_this_jobs_pods_only() -> None:
    made = spec()
    assert {"podSelector": made["podSelector"]} == OWN
    assert made["policyTypes"] == ["Ingress", "Egress"]


def test_of_a_deployment_only_the_runs_are_closed_and_clients_reach_the_endpoint() -> None:
    deployment = {"kind": "Deployment", "metadata": {"name": "chat", "namespace": "team", "uid": "u"}}
    made = network_policy(deployment, "chat-c", NetworkPolicyConfig.model_validate(CONFIG))["spec"]
    assert made["podSelector"] == {
        "matchLabels": {"slipway.dev/deployment": "chat"},
        "matchExpressions": [{"key": "slipway.dev/attempt", "operator": "Exists"}],
    }
    assert made["ingress"][0] == {"from": [{"podSelector": made["podSelector"]}]}


def test_only_the_jobs_pods_and_kuberays_job_submission_come_in() -> None:
    assert spec()["ingress"] == [
        {"from": [OWN]},
        {"from": [namespace("kuberay-system")], "ports": [{"port": 8265, "protocol": "TCP"}]},
    ]


def test_out_go_the_jobs_pods_dns_reports_and_the_listed_ports_but_never_to_metadata_services() -> None:
    to_pods, dns, reports, outside = spec(egressPorts=[443, 9000])["egress"]
    assert to_pods == {"to": [OWN]}
    assert {(p["port"], p["protocol"]) for p in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert reports == {
        "to": [{**namespace("slipway-system"), "podSelector": {"matchLabels": {"app": "slipway"}}}],
        "ports": [{"port": 8443, "protocol": "TCP"}],
    }
    assert [p["port"] for p in outside["ports"]] == [443, 9000]
    assert [block["ipBlock"] for block in outside["to"]] == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]},
        {"cidr": "::/0", "except": ["fd00:ec2::254/128"]},
    ]


def test_without_ports_nothing_leaves_the_cluster() -> None:
    assert len(spec(egressPorts=[])["egress"]) == 3


def test_the_policy_goes_with_its_job() -> None:
    (owner,) = network_policy(JOB, "job", NetworkPolicyConfig.model_validate(CONFIG))["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("TrainJob", "u")


def deployment(**changes: Any) -> dict[str, Any]:
    owner = {"kind": "Deployment", "metadata": {"name": "chat", "namespace": "team", "uid": "u"}}
    made: dict[str, Any] = network_policy(
        owner, "chat", NetworkPolicyConfig.model_validate(CONFIG | changes), serves=True
    )["spec"]
    return made


def test_a_deployment_is_asked_by_clients_and_by_kuberay_whether_it_serves() -> None:
    own = {
        "podSelector": {
            "matchLabels": {"slipway.dev/deployment": "chat"},
            "matchExpressions": [{"key": "slipway.dev/attempt", "operator": "DoesNotExist"}],
        }
    }
    serve = [{"port": 8000, "protocol": "TCP"}]
    made = deployment()
    assert made["podSelector"] == own["podSelector"]
    assert made["ingress"] == [
        {"from": [own]},
        {"from": [namespace("kuberay-system")], "ports": [{"port": 8265, "protocol": "TCP"}, *serve]},
        {"ports": serve},
    ]
    assert made["egress"][0] == {"to": [own]}
    assert made["egress"][1:] == spec()["egress"][1:], "out it goes as a run does"
    scaling = {"kind": "Deployment", "metadata": {"name": "chat", "namespace": "team", "uid": "u"}}
    scaling["spec"] = {"replicas": {"min": 0, "max": 1}}
    made = network_policy(scaling, "chat", NetworkPolicyConfig.model_validate(CONFIG), serves=True)["spec"]
    assert {"ports": [{"port": 443, "protocol": "TCP"}, {"port": 6443, "protocol": "TCP"}]} in made["egress"]
    assert deployment(clientNamespaces=["ingress"])["ingress"][2] == {
        "from": [{"podSelector": {}}, namespace("ingress")],
        "ports": serve,
    }


@pytest.mark.parametrize("wrong", [{"reportsPort": 0}, {"operatorLabels": {}}, {"egressExcept": ["everywhere"]}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**wrong)
