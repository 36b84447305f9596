"""What a user with few rights cannot do: ten kinds of hostile manifest, and the policies that look at the author.

The manifests are in tests/kube/hostile, each with what it must be answered in its second line. They are sent by a user
who may edit one namespace (the aggregated role `edit`) and holds `use` on one priority class there, to a real API
server with the chart installed. No operator runs: whatever is refused here is refused before anything could act on it.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import CHART, NAMESPACE, RELEASE, ROOT, Cluster, Objects

pytestmark = pytest.mark.kube

HOSTILE = sorted((ROOT / "tests/kube/hostile").glob("*.yaml"))
MINIMAL = Path(__file__).parent / "values/minimal.yaml"
USER = "alice"


def job(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": "team-a"},
        "spec": {
            "model": {"fresh": {"hiddenSize": 64, "layers": 2, "heads": 4}},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"uri": "python://stdlib"}]},
            "training": {"steps": 10},
            **spec,
        },
    }


def rbac(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    namespace = {} if kind.startswith("Cluster") else {"namespace": "team-a"}
    api = "rbac.authorization.k8s.io/v1"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **namespace}, **fields}


def priority_class(name: str, value: int) -> dict[str, Any]:
    return {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}


@pytest.fixture(scope="module")
def alice(cluster: Cluster) -> Path:
    """The kubeconfig of a user who may edit team-a, in a cluster where the chart's policies are in force."""
    cluster.helm("install", RELEASE, CHART, "--values", MINIMAL)
    cluster.done("wait", "--for=condition=Established", "crd/trainjobs.slipway.dev", "--timeout=60s")
    subject = [{"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}]
    use = {"apiGroups": ["scheduling.k8s.io"], "resources": ["priorityclasses"], "verbs": ["use"]}
    cluster.done(
        "apply",
        "-f",
        "-",
        manifest=[
            priority_class("ordinary", 10),
            priority_class("hostile-high", 100_000),
            rbac("Role", "use-ordinary", rules=[{**use, "resourceNames": ["ordinary"]}]),
            *(
                rbac("RoleBinding", name, subjects=subject, roleRef={"apiGroup": api, "kind": kind, "name": name})
                for kind, name in (("ClusterRole", "edit"), ("Role", "use-ordinary"))
                for api in ["rbac.authorization.k8s.io"]
            ),
        ],
    )
    kubeconfig = cluster.control_plane.kubeconfig_for_user(USER)

    def may_create() -> bool:  # the role `edit` is put together by a controller
        asked = cluster.kubectl("auth", "can-i", "create", "trainjobs", "-n", "team-a", kubeconfig=kubeconfig)
        return asked.stdout.strip() == "yes"

    def in_force(probe: dict[str, Any]) -> bool:  # a policy is, a moment after it was made
        probed = cluster.kubectl("create", "--dry-run=server", "-f", "-", manifest=probe, kubeconfig=kubeconfig)
        return probed.returncode != 0

    cluster.until(may_create, "the aggregated role")
    for probe in (
        job("probe", priorityClassName="no-such-class"),
        job("probe", data={"sources": [{"uri": "s3://models/slipway/team-b/x"}]}),
    ):
        cluster.until(functools.partial(in_force, probe), "the policy")
    return kubeconfig


def answer(path: Path) -> tuple[str, str]:
    """(refused or dropped, what must be said or be absent)"""
    match = re.search(r"^# (refused|dropped): (.*)$", path.read_text(), re.MULTILINE)
    assert match, f"{path.name} does not say what it must be answered"
    return match[1], match[2]


def test_every_row_of_the_list_has_its_manifest() -> None:
    assert {int(path.name[:2]) for path in HOSTILE} == set(range(32, 42))


@pytest.mark.parametrize("path", [p for p in HOSTILE if answer(p)[0] == "refused"], ids=lambda path: path.stem)
def test_a_hostile_manifest_is_refused_at_admission(cluster: Cluster, alice: Path, path: Path) -> None:
    result = cluster.kubectl("create", "-n", "team-a", "-f", path, kubeconfig=alice)
    assert result.returncode != 0
    assert answer(path)[1] in result.stderr
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    if name.isascii():
        assert cluster.get("trainjob", name, "team-a") is None


@pytest.mark.parametrize("path", [p for p in HOSTILE if "unknown field" in answer(p)[1]], ids=lambda path: path.stem)
def test_who_asks_not_to_be_told_of_unknown_fields_gets_nothing_by_them(
    cluster: Cluster, alice: Path, path: Path
) -> None:
    """A client may switch strict validation off; the schema then drops what it does not know."""
    asked = yaml.safe_load(path.read_text())
    cluster.done("create", "--validate=ignore", "-n", "team-a", "-f", path, kubeconfig=alice)
    stored = cluster.get("trainjob", asked["metadata"]["name"], "team-a")
    cluster.done("delete", "trainjob", asked["metadata"]["name"], "-n", "team-a", kubeconfig=alice)
    unknown = re.search(r'unknown field "spec\.([\w.]+)"', answer(path)[1])
    assert unknown
    found: Any = stored["spec"]
    *parents, last = unknown[1].split(".")
    for parent in parents:
        found = found[parent]
    assert last not in found


def test_a_status_cannot_be_brought_along_or_written(cluster: Cluster, alice: Path) -> None:
    (path,) = [p for p in HOSTILE if answer(p)[0] == "dropped"]
    cluster.done("create", "-n", "team-a", "-f", path, kubeconfig=alice)
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    assert "status" not in cluster.get("trainjob", name, "team-a")
    spoofed = '{"status": {"state": "Succeeded"}}'
    for extra in ([], ["--subresource=status"]):
        result = cluster.kubectl(
            *("patch", "trainjob", name, "-n", "team-a", "--type=merge", "-p", spoofed, *extra), kubeconfig=alice
        )
        assert (result.returncode != 0) == bool(extra), "the status subresource is nobody's but the operator's"
    assert "status" not in cluster.get("trainjob", name, "team-a")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_accepted(cluster: Cluster, alice: Path, path: Path) -> None:
    examples = [document for document in yaml.safe_load_all(path.read_text()) if document]
    assert examples
    for example in examples:
        example["metadata"]["namespace"] = "team-a"
        if "priorityClassName" in example["spec"]:
            example["spec"]["priorityClassName"] = "ordinary"  # the one that this user may use
        cluster.done("create", "--dry-run=server", "-f", "-", manifest=example, kubeconfig=alice)


def test_what_decides_the_result_cannot_be_edited(cluster: Cluster, alice: Path) -> None:
    cluster.done("create", "-f", "-", manifest=job("fixed"), kubeconfig=alice)
    for patch in (
        '{"spec": {"training": {"steps": 11}}}',
        '{"spec": {"data": {"sources": [{"uri": "/other"}]}}}',
        '{"spec": {"priorityClassName": "ordinary"}}',
    ):
        result = cluster.kubectl(
            "patch", "trainjob", "fixed", "-n", "team-a", "--type=merge", "-p", patch, kubeconfig=alice
        )
        assert result.returncode != 0
        assert "is immutable" in result.stderr


def test_a_priority_class_wants_the_right_to_use_it(cluster: Cluster, alice: Path) -> None:
    cluster.done("create", "-f", "-", manifest=job("plain"), kubeconfig=alice)
    cluster.done("create", "-f", "-", manifest=job("allowed", priorityClassName="ordinary"), kubeconfig=alice)
    refused = cluster.kubectl(
        "create", "-f", "-", manifest=job("x", priorityClassName="hostile-high"), kubeconfig=alice
    )
    assert "spec.priorityClassName: alice may not use priority class hostile-high" in refused.stderr
    assert "priorityclasses.scheduling.k8s.io" in refused.stderr, "it says what to ask for"


def test_who_may_not_use_a_class_may_still_change_the_rest_of_a_job_that_names_it(
    cluster: Cluster, alice: Path
) -> None:
    cluster.done("create", "-f", "-", manifest=job("urgent", priorityClassName="hostile-high"))  # by an administrator
    patch = '{"spec": {"suspend": true}, "metadata": {"labels": {"seen": "yes"}}}'
    cluster.done("patch", "trainjob", "urgent", "-n", "team-a", "--type=merge", "-p", patch, kubeconfig=alice)
    assert cluster.get("trainjob", "urgent", "team-a")["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("s3://models/slipway/team-a/trainjob/x/u/model", True),
        ("s3://models/slipway-public/corpus", True),
        ("s3://other/slipway/team-b", True),
        ("s3://models/slipway/team-b/trainjob/x/u/model", False),
        ("s3://models/slipway//team-b/x", False),
        ("s3://models/slipway/team-ab/x", False),
        ("s3://models/slipway", False),
        ("s3://models/slipway/", False),
    ],
)
def test_below_the_common_storage_only_the_own_folder_may_be_named(
    cluster: Cluster, alice: Path, uri: str, accepted: bool
) -> None:
    for place in ({"data": {"sources": [{"uri": uri}]}}, {"model": {"uri": uri}, "tokenizer": {"uri": uri}}):
        result = cluster.kubectl(
            "create", "--dry-run=server", "-f", "-", manifest=job("reader", **place), kubeconfig=alice
        )
        assert (result.returncode == 0) == accepted, result.stderr
        assert accepted or "belongs to another namespace" in result.stderr


def test_helm_test_has_the_rights_that_its_commands_need(
    cluster: Cluster, alice: Path, rendered: Callable[[str], Objects], tmp_path: Path
) -> None:
    """Its script, run here under its account. Nothing runs the TrainJob, so the wait for its success is cut short."""
    hooks = [obj for obj in rendered("minimal") if "helm.sh/hook" in (obj["metadata"].get("annotations") or {})]
    (pod,) = [obj for obj in hooks if obj["kind"] == "Pod"]
    (config,) = [obj for obj in hooks if obj["kind"] == "ConfigMap"]
    cluster.done("apply", "-f", "-", manifest=[obj for obj in hooks if obj is not pod])
    (tmp_path / "trainjob.yaml").write_text(config["data"]["trainjob.yaml"])
    account = cluster.control_plane.kubeconfig_for_service_account(NAMESPACE, pod["spec"]["serviceAccountName"])
    (script,) = pod["spec"]["containers"][0]["args"]
    script = script.replace("/test/", f"{tmp_path}/").replace("--timeout=20m", "--timeout=1s || true")
    result = subprocess.run(
        [*pod["spec"]["containers"][0]["command"], script],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "KUBECONFIG": str(account), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "slipway-test created" in result.stdout
    assert "forbidden" not in result.stderr
    assert cluster.get("trainjob", "slipway-test", "team-a") is None


def test_the_users_of_a_namespace_cannot_read_the_operators_secrets(cluster: Cluster, alice: Path) -> None:
    for name in ("report-key", "report-tls"):
        result = cluster.kubectl("get", "secret", f"{RELEASE}-{name}", "-n", NAMESPACE, kubeconfig=alice)
        assert "forbidden" in result.stderr
