"""What the chart renders: lint, snapshots, strict values, restricted pods, a configuration that the operator takes."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from slipway_operator.config import OperatorConfig
from slipway_operator.kube.metrics import Metrics
from slipway_serving.statistics import Statistics

from .conftest import CHART, NAMESPACE, RELEASE, ROOT, VALUE_SETS, Helm, Objects

SNAPSHOTS = Path(__file__).parent / "snapshots"
MINIMAL = Path(__file__).parent / "values/minimal.yaml"


def of_kind(objects: Objects, kind: str) -> Objects:
    return [obj for obj in objects if obj["kind"] == kind]


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_lint(helm: Helm, value_set: str) -> None:
    values = Path(__file__).parent / f"values/{value_set}.yaml"
    result = helm("lint", "--strict", CHART, "--values", values)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_snapshot(rendered: Callable[[str], Objects], value_set: str) -> None:
    """`make chart-snapshots` writes the files anew; the difference is for a reviewer to read."""
    path = SNAPSHOTS / f"{value_set}.yaml"
    text = yaml.safe_dump_all(map(steady, rendered(value_set)), sort_keys=False, width=120)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text)
    assert path.read_text() == text, "the chart renders something else: make chart-snapshots, and read the difference"


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_helm_3_says_the_same(helm3: Helm, rendered: Callable[[str], Objects], value_set: str) -> None:
    values = Path(__file__).parent / f"values/{value_set}.yaml"
    lint = helm3("lint", "--strict", CHART, "--values", values)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    result = helm3("template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", values)
    assert result.returncode == 0, result.stderr
    objects = [obj for obj in yaml.safe_load_all(result.stdout) if obj]
    assert comparable(objects) == comparable(rendered(value_set))


def comparable(objects: Objects) -> list[str]:
    """Everything but what is random, in an order of its own: the two Helms sort kinds that they do not know apart."""
    return sorted(json.dumps(steady(obj) if obj["kind"] == "Secret" else obj, sort_keys=True) for obj in objects)


def steady(obj: dict[str, Any]) -> dict[str, Any]:
    """The object without what is random or stands in a file of its own."""
    if obj["kind"] == "Secret":
        return {**obj, "data": dict.fromkeys(obj["data"], "(generated)")}
    if obj["kind"] == "CustomResourceDefinition":
        return {**obj, "spec": "(generated from slipway_api)"}
    if obj["metadata"]["name"].endswith("-dashboard"):
        return {**obj, "data": dict.fromkeys(obj["data"], "(files/dashboard*.json)")}
    return obj


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("storage.url=x", "'/storage': additional properties 'url' not allowed"),
        ("replicaCount=3", "additional properties 'replicaCount' not allowed"),
        ("replicas=0", "'/replicas'"),
        ("storage.uri=bucket", "'/storage/uri'"),
        ("watch.scope=All", "'/watch/scope': value must be one of 'Namespaces', 'Cluster'"),
        ("watch.namespaces={Team_A}", "'/watch/namespaces/0'"),
        ("watch.namespaces={a,a}", "'/watch/namespaces'"),
        ("pools[0].name=gpu", "'/pools/0': missing properties"),
        ("currency=dollars", "'/currency'"),
        ("image.digest=sha256:12", "'/image/digest'"),
        ("ray.image.pullPolicy=Always", "additional properties 'pullPolicy' not allowed"),
        ("reports.tls.source=Vault", "'/reports/tls/source'"),
        ("networkPolicy.runEgressPorts={https}", "'/networkPolicy/runEgressPorts/0'"),
        ("metrics.serviceMonitor.interval=often", "'/metrics/serviceMonitor/interval'"),
        ("test.timeout=long", "'/test/timeout'"),
        # What a schema cannot say is said by the templates.
        ("storage.uri=", "storage.uri: say where runs keep what they make"),
        ("watch.namespaces=null", "watch.namespaces: name at least one"),
        ("reports.tls.source=Secret", "reports.tls.secretName: name the Secret"),
        ("reports.tls.source=CertManager", "reports.tls.issuerRef.name: name the issuer"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(helm: Helm, setting: str, told: str) -> None:
    result = helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", MINIMAL, "--set", setting)
    assert result.returncode != 0
    assert told in result.stderr


def test_every_object_of_the_schema_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                assert node.get("additionalProperties") is False, path
            for name, child in node.items():
                check(child, f"{path}/{name}")

    check(schema, "")


def test_the_operator_takes_the_configuration(objects: Objects) -> None:
    (text,) = [obj["data"]["operator.yaml"] for obj in of_kind(objects, "ConfigMap") if "operator.yaml" in obj["data"]]
    config = OperatorConfig.model_validate(yaml.safe_load(text))
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {str(port["containerPort"]) for port in container["ports"]}
    assert {config.reports.listen.rpartition(":")[2], config.metrics.listen.rpartition(":")[2]} == ports
    mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    assert config.reports.tls is not None
    for path in (config.reports.key_file, config.reports.ca_file, *config.reports.tls.model_dump().values()):
        assert str(path).startswith(mounts)
    if config.network_policy is not None:
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert config.network_policy.operator_labels.items() <= labels


def test_runs_report_to_the_service_by_a_name_that_its_certificate_has(rendered: Callable[[str], Objects]) -> None:
    objects = rendered("everything")
    (certificate,) = of_kind(objects, "Certificate")
    (text,) = [obj["data"]["operator.yaml"] for obj in of_kind(objects, "ConfigMap") if "operator.yaml" in obj["data"]]
    host, _, port = (
        OperatorConfig.model_validate(yaml.safe_load(text)).reports.url.removeprefix("https://").partition(":")
    )
    assert host in certificate["spec"]["dnsNames"]
    (service,) = [obj for obj in of_kind(objects, "Service") if f"{obj['metadata']['name']}.{NAMESPACE}.svc" == host]
    assert [int(port)] == [entry["port"] for entry in service["spec"]["ports"]]


def test_pods_are_restricted_and_their_root_is_read_only(objects: Objects) -> None:
    pods = [obj["spec"]["template"] for obj in of_kind(objects, "Deployment")] + of_kind(objects, "Pod")
    assert len(pods) == 2
    for pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert all(volume.keys() & {"configMap", "secret", "emptyDir"} for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_what_must_outlive_the_release_is_kept(rendered: Callable[[str], Objects]) -> None:
    kept = {
        (obj["kind"], obj["metadata"]["name"])
        for obj in rendered("minimal")
        if (obj["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        ("CustomResourceDefinition", "deployments.slipway.dev"),
        ("CustomResourceDefinition", "evaljobs.slipway.dev"),
        ("CustomResourceDefinition", "trainjobs.slipway.dev"),
        ("Secret", "slipway-report-key"),
        ("Secret", "slipway-report-tls"),
    }


def test_nothing_is_without_a_namespace_that_should_have_one(objects: Objects) -> None:
    cluster = {
        *("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    }
    for obj in objects:
        assert ("namespace" in obj["metadata"]) == (obj["kind"] not in cluster), obj["metadata"]["name"]


def exported(registry: CollectorRegistry) -> set[str]:
    """Names of series, as Prometheus stores them."""
    found = set()
    for family in registry.collect():
        found |= {
            "counter": {f"{family.name}_total"},
            "histogram": {f"{family.name}_{suffix}" for suffix in ("bucket", "count", "sum")},
        }.get(family.type, {family.name})
    return found


@pytest.mark.parametrize(
    ("file", "registry"),
    [
        ("dashboard.json", lambda: Metrics().registry),
        ("dashboard-serving.json", lambda: Statistics().registry),
    ],
)
def test_a_dashboard_names_only_metrics_that_exist(file: str, registry: Callable[[], CollectorRegistry]) -> None:
    dashboard = json.loads((CHART / "files" / file).read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in expressions for name in re.findall(r"\bslipway_\w+", expression)}
    assert named
    assert named <= exported(registry())


def test_the_serving_dashboard_shows_all_that_the_router_exports() -> None:
    text = (CHART / "files/dashboard-serving.json").read_text()
    families = {family.name for family in Statistics().registry.collect()}
    assert {name for name in families if name not in text} == set()


def test_the_chart_has_the_version_of_what_it_installs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["apiVersion"] == "v2", "Helm 3 reads no other"
    assert chart["appVersion"] == project["version"]


def test_the_notes_say_that_kuberay_is_missing(helm: Helm, tmp_path: Path) -> None:
    """And tests/chart/test_cluster.py that they do not where it is there."""
    arguments = ("install", RELEASE, CHART, "--namespace", NAMESPACE, "--values", MINIMAL, "--dry-run=client")
    notes = helm(*arguments, KUBECONFIG=str(tmp_path / "none")).stdout.partition("NOTES:")[2]
    assert "KubeRay is missing" in notes
    assert "WaitingForRayOperator" in notes


def test_a_digest_wins_over_a_tag(rendered: Callable[[str], Objects]) -> None:
    (text,) = [
        obj["data"]["operator.yaml"]
        for obj in of_kind(rendered("everything"), "ConfigMap")
        if "operator.yaml" in obj["data"]
    ]
    assert yaml.safe_load(text)["ray"]["image"] == f"registry.example/jobs@sha256:{'1' * 64}"
