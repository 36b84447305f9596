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


@pytest.mark.parametrize("wrong", [{"reportsPort": 0}, {"operatorLabels": {}}, {"egressExcept": ["everywhere"]}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**wrong)
