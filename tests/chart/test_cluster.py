"""The chart on a real API server (no nodes): every object accepted; installed, worked with, upgraded, uninstalled."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import CHART, NAMESPACE, RELEASE, ROOT, VALUE_SETS, Cluster, Helm, Objects
from .installed import ACCOUNT, operator, requests_of

pytestmark = pytest.mark.kube

VERBS = ROOT / "tests/kube/verbs.txt"

# Kinds of others that the chart can make. The real definitions are not here: only that the objects are well-formed.
FOREIGN = {"ServiceMonitor": "servicemonitors.monitoring.coreos.com", "Certificate": "certificates.cert-manager.io"}


def stub(plural_and_group: str, kind: str) -> dict[str, Any]:
    plural, _, group = plural_and_group.partition(".")
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"openAPIV3Schema": anything}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": plural_and_group},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def test_every_rendered_object_is_accepted_and_pods_are_admitted_as_restricted(
    cluster: Cluster, manifest: Callable[[str], str], rendered: Callable[[str], Objects]
) -> None:
    cluster.done("apply", "-f", "-", manifest=[stub(name, kind) for kind, name in FOREIGN.items()])
    for name in FOREIGN.values():
        cluster.done("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")
    for value_set in VALUE_SETS:
        objects = rendered(value_set)
        # A pod is refused whose account does not exist, and a dry run makes none.
        accounts = [obj for obj in objects if obj["kind"] == "ServiceAccount"]
        cluster.done("apply", "--server-side", "-f", "-", manifest=accounts)
        (template,) = [obj["spec"]["template"] for obj in objects if obj["kind"] == "Deployment"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "p", "namespace": NAMESPACE}}
        result = cluster.kubectl(
            *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"),
            manifest=f"{manifest(value_set)}\n---\n{json.dumps(pod)}",  # the text itself: Go reads YAML its own way
        )
        assert result.returncode == 0, f"{value_set}: {result.stderr}"
        assert "Warning" not in result.stderr, f"{value_set}: {result.stderr}"
        assert result.stdout.count("serverside-applied (server dry run)") == len(objects) + 1


TRAIN_JOB: dict[str, Any] = {
    "apiVersion": "slipway.dev/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "job", "namespace": "team-a"},
    "spec": {
        "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
        "tokenizer": {"train": {}},
        "data": {"sources": [{"uri": "python://stdlib"}]},
        "training": {"steps": 10},
    },
}


def condition(cluster: Cluster, name: str, namespace: str, type_: str) -> dict[str, Any]:
    job = cluster.get("trainjob", name, namespace)
    conditions = (job.get("status") or {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == type_), {})


@pytest.fixture(scope="module")
def previous(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart under an older version: there has been no release yet."""
    directory = tmp_path_factory.mktemp("previous")
    result = helm("package", CHART, "--version", "0.0.9", "--destination", directory)
    assert result.returncode == 0, result.stderr
    return directory / "slipway-0.0.9.tgz"


def test_install_work_upgrade_uninstall(
    cluster: Cluster, rendered: Callable[[str], Objects], previous: Path, tmp_path: Path
) -> None:
    """One story, because each chapter needs the world that the one before has left.

    No node runs anything: the operator is started here with what the chart made for it, and the RayJob is marked as
    running by hand.
    """
    cluster.done("delete", "serviceaccount", "--all", "-n", NAMESPACE)  # of the dry runs: Helm wants to own its own
    values = tmp_path / "values.yaml"
    values.write_text(
        yaml.safe_dump(
            {"storage": {"uri": "s3://b/p"}, "watch": {"scope": "Cluster", "namespaces": ["team-a", "team-b"]}}
        )
    )
    notes = cluster.helm("install", RELEASE, previous, "--values", values)
    assert "KubeRay is missing" not in notes
    cluster.done("wait", "--for=condition=Established", "crd/trainjobs.slipway.dev", "--timeout=60s")

    with operator(cluster, tmp_path / "first"):
        cluster.done("apply", "-f", "-", manifest=TRAIN_JOB)
        ray_job = cluster.until(lambda: cluster.get("rayjob", "job-1", "team-a"), "the RayJob")
        policy = cluster.get("networkpolicy", "job", "team-a")
        secret = cluster.get("secret", "job-1-run", "team-a")
        report_tls = cluster.get("secret", f"{RELEASE}-report-tls", NAMESPACE)
        assert policy["spec"]["podSelector"] == {"matchLabels": {"slipway.dev/trainjob": "job"}}
        assert secret["data"]["ca.crt"] == report_tls["data"]["ca.crt"]
        running = {"status": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}}
        cluster.done(
            "patch",
            "rayjob",
            "job-1",
            "-n",
            "team-a",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps(running),
        )
        cluster.until(lambda: condition(cluster, "job", "team-a", "Running").get("reason") == "Starting", "Running")

        # A namespace that is seen and not listed: the job waits, and says why, and goes on once it may.
        elsewhere = {**TRAIN_JOB, "metadata": {"name": "job", "namespace": "team-c"}}
        cluster.done("apply", "-f", "-", manifest=elsewhere)
        told = cluster.until(
            lambda: (c := condition(cluster, "job", "team-c", "Running")).get("reason") == "Forbidden" and c,
            "Forbidden",
        )
        assert "secrets" in told["message"]
        assert "watch.namespaces" in told["message"]
        assert cluster.get("rayjob", "job-1", "team-c") is None

    before = {kind: cluster.get(kind, name, namespace) for kind, name, namespace in KEPT}
    cluster.helm("upgrade", RELEASE, CHART, "--values", values, "--set", "watch.namespaces={team-a,team-b,team-c}")
    after = {kind: cluster.get(kind, name, namespace) for kind, name, namespace in KEPT}
    for kind, obj in before.items():
        assert after[kind]["metadata"]["uid"] == obj["metadata"]["uid"], kind
        assert {**after[kind], "metadata": 0} == {**obj, "metadata": 0}, f"{kind} was changed by the upgrade"
    for name in ("report-key", "report-tls"):  # a new key would silence the runs that are under way
        assert cluster.get("secret", f"{RELEASE}-{name}", NAMESPACE)["data"] == (
            report_tls["data"] if name == "report-tls" else _key(tmp_path)
        )

    with operator(cluster, tmp_path / "second"):
        cluster.until(lambda: cluster.get("rayjob", "job-1", "team-c"), "the job that waited for the right")
        cluster.done("patch", "trainjob", "job", "-n", "team-c", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        cluster.until(lambda: cluster.get("rayjob", "job-1", "team-c") is None, "the suspended run is gone")
        cluster.until(lambda: cluster.get("secret", "job-1-run", "team-c") is None, "and so is its token")
        assert cluster.get("rayjob", "job-1", "team-a")["metadata"]["uid"] == ray_job["metadata"]["uid"]
        assert condition(cluster, "job", "team-a", "Running")["status"] == "True"

        flaps(cluster)

    cluster.helm("uninstall", RELEASE)
    for kind, name, namespace in KEPT:
        assert cluster.get(kind, name, namespace)["metadata"]["uid"] == before[kind]["metadata"]["uid"], kind
    left = cluster.done("get", "deployments,services,networkpolicies,configmaps,roles", "-n", NAMESPACE, "-o", "name")
    assert RELEASE not in left
    assert not cluster.get("role", RELEASE, "team-a")

    cluster.helm("install", RELEASE, CHART, "--values", values)  # takes up what it had kept
    assert cluster.get("secret", f"{RELEASE}-report-key", NAMESPACE)["data"] == _key(tmp_path)

    objects = rendered("cluster")
    used, refused = requests_of(cluster, ACCOUNT)
    # The one refusal is what the story is about: team-c before it was listed.
    assert refused == {"patch secrets in team-c"}
    # A server-side apply that makes an object needs the right to create it; its request says patch. An Event that was
    # said before does not happen here (tests/unit/kube/test_events.py), nor do the kinds that tests/kube/test_faults.py
    # puts to work: what it has recorded is used.
    implied = {f"create {kind}" for kind in ("secrets", "networkpolicies.networking.k8s.io")}
    elsewhere_used = {"get events", "patch events", *map(_as_granted, VERBS.read_text().splitlines())}
    assert used <= granted(objects)
    assert granted(objects) - implied - elsewhere_used <= used, "a right that nothing uses"


def test_helm_3_installs_upgrades_and_hands_over_to_helm_4(
    cluster: Cluster, helm3: Helm, previous: Path, tmp_path: Path
) -> None:
    """After the story above, so everything that an uninstall keeps is there."""
    cluster.helm("uninstall", RELEASE)
    kept = {kind: cluster.get(kind, name, namespace)["metadata"]["uid"] for kind, name, namespace in KEPT}
    key = cluster.get("secret", f"{RELEASE}-report-key", NAMESPACE)["data"]
    chosen = ["--set", "storage.uri=s3://b/p", "--set", "watch.namespaces={team-a}"]

    def deployed(version: str, helm: Helm) -> None:
        (release,) = json.loads(cluster.helm("list", "-o", "json", by=helm))
        assert (release["status"], release["chart"]) == ("deployed", f"slipway-{version}")
        assert cluster.get("deployment", RELEASE, NAMESPACE)["metadata"]["labels"]["helm.sh/chart"] == release["chart"]
        assert {kind: cluster.get(kind, name, namespace)["metadata"]["uid"] for kind, name, namespace in KEPT} == kept
        assert cluster.get("secret", f"{RELEASE}-report-key", NAMESPACE)["data"] == key

    refused = helm3("template", CHART, "--set", "storage.url=x")
    assert "'/storage': additional properties 'url' not allowed" in refused.stderr
    assert "KubeRay is missing" not in cluster.helm("install", RELEASE, previous, *chosen, by=helm3)
    deployed("0.0.9", helm3)
    assert cluster.get("role", RELEASE, "team-a")
    cluster.helm("upgrade", RELEASE, CHART, *chosen, by=helm3)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    deployed(version, helm3)
    cluster.helm("upgrade", RELEASE, CHART, *chosen)  # one day the platform team has Helm 4
    deployed(version, helm3)
    cluster.helm("uninstall", RELEASE, by=helm3)
    assert cluster.get("deployment", RELEASE, NAMESPACE) is None
    assert {kind: cluster.get(kind, name, namespace)["metadata"]["uid"] for kind, name, namespace in KEPT} == kept


def flaps(cluster: Cluster, times: int = 10) -> None:
    """Hostile manifest 41: a job that is suspended and resumed without end costs a bounded number of writes.

    A flip is at most an end of an attempt, its deletion, "stopping", "suspended", a new attempt: fewer than six writes
    of status each, and far fewer when flips are faster than the operator.
    """
    job = {**TRAIN_JOB, "metadata": {"name": "flapper", "namespace": "team-b"}}
    cluster.done("apply", "-f", "-", manifest=job)
    for number in range(2 * times):
        patch = json.dumps({"spec": {"suspend": number % 2 == 0}})
        cluster.done("patch", "trainjob", "flapper", "-n", "team-b", "--type=merge", "-p", patch)
    cluster.done("patch", "trainjob", "flapper", "-n", "team-b", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    cluster.until(lambda: condition(cluster, "flapper", "team-b", "Suspended").get("status") == "True", "suspended")
    assert cluster.done("get", "rayjobs", "-n", "team-b", "-o", "name") == "", "nothing is left running"
    writes = [
        event
        for event in map(json.loads, cluster.control_plane.audit_log.read_text().splitlines())
        if event["user"]["username"] == ACCOUNT
        and event["stage"] == "ResponseComplete"
        and event["verb"] == "patch"
        and (event.get("objectRef") or {}).get("name") == "flapper"
        and event["objectRef"].get("subresource") == "status"
    ]
    assert 0 < len(writes) < 6 * 2 * times


def granted(objects: Objects) -> set[str]:
    """What the chart allows the operator's account, in the notation of `requests_of`."""
    names = {"slipway", "slipway-leader-election"}
    return {
        f"{verb} {resource}" + (f".{group}" if group else "")
        for obj in objects
        if obj["kind"] in ("Role", "ClusterRole") and obj["metadata"]["name"] in names
        for rule in obj["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


KEPT = [
    ("crd", "trainjobs.slipway.dev", None),
    ("trainjob", "job", "team-a"),
    ("rayjob", "job-1", "team-a"),
    ("secret", "job-1-run", "team-a"),
    ("networkpolicy", "job", "team-a"),
]


def _key(tmp_path: Path) -> dict[str, str]:
    """The key that the first operator was given."""
    return {"key": base64.b64encode((tmp_path / "first/report-key/key").read_bytes()).decode()}


def _as_granted(line: str) -> str:
    """A line of verbs.txt as `granted` says it: `a.b/status patch` is `patch a/status.b`."""
    where, _, verb = line.partition(" ")
    name, _, subresource = where.partition("/")
    plural, dot, group = name.partition(".")
    return f"{verb} {plural}{'/' + subresource if subresource else ''}{dot}{group}"
