"""The rights that the chart hands out: an exact list in a file, and what no value may ever add to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .conftest import NAMESPACE, ROOT, VALUE_SETS, Objects

VERBS = ROOT / "tests/kube/verbs.txt"
FROZEN = Path(__file__).parent / "rbac.txt"
READS = {"get", "list", "watch"}


def rules(objects: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(Role or ClusterRole, rule)"""
    for obj in objects:
        if obj["kind"] in ("Role", "ClusterRole"):
            for rule in obj["rules"]:
                yield obj, rule


def test_no_wildcard(objects: Objects) -> None:
    for role, rule in rules(objects):
        for part in ("apiGroups", "resources", "verbs"):
            assert "*" not in "".join(rule[part]), role["metadata"]["name"]
        assert "nonResourceURLs" not in rule


def test_no_cluster_wide_right_to_secrets_and_none_to_read_them(objects: Objects) -> None:
    seen = 0
    for role, rule in rules(objects):
        if "secrets" in rule["resources"]:
            seen += 1
            assert role["kind"] == "Role"
            assert not READS & set(rule["verbs"])
    assert seen, "the operator writes the Secret of each run"


def test_no_right_to_rights_pods_or_impersonation(objects: Objects) -> None:
    for _, rule in rules(objects):
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"]
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
        for resource in rule["resources"]:
            if resource.startswith(("pods", "serviceaccounts")):
                assert set(rule["verbs"]) <= READS
                assert resource in ("pods", "serviceaccounts"), "no exec, no token, no proxy"


def test_every_binding_is_to_an_account_and_a_role_of_this_chart(objects: Objects) -> None:
    roles = {(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj, _ in rules(objects)}
    accounts = {
        (obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in objects if obj["kind"] == "ServiceAccount"
    }
    bindings = [obj for obj in objects if obj["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert bindings
    for binding in bindings:
        role = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if role["kind"] == "Role" else None
        assert (role["kind"], namespace, role["name"]) in roles
        for subject in binding["subjects"]:
            assert (subject["namespace"], subject["name"]) in accounts
            assert subject["namespace"] == NAMESPACE


def test_the_operator_may_do_in_a_namespace_what_it_was_seen_to_do_under_faults(
    rendered: Callable[[str], Objects],
) -> None:
    """tests/kube/test_faults.py records the verbs, over every scenario, without network policies."""
    recorded = {line for line in VERBS.read_text().splitlines() if line and not line.startswith("#")}
    granted = {
        f"{resource}.{group} {verb}".replace(". ", " ")
        if "/" not in resource
        else f"{resource.replace('/', f'.{group}/')} {verb}"
        for role, rule in rules(rendered("bare"))
        if role["metadata"]["name"] == "slipway"
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == recorded


def test_the_rights_are_exactly_these(rendered: Callable[[str], Objects]) -> None:
    """A change of rbac.txt is a change of what a cluster's owner grants: it wants a reviewer's eye."""
    lines = []
    for value_set in VALUE_SETS:
        for role, rule in rules(rendered(value_set)):
            metadata = role["metadata"]
            where = f"namespace {metadata['namespace']}" if role["kind"] == "Role" else "cluster"
            names = f" named {','.join(rule['resourceNames'])}" if "resourceNames" in rule else ""
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    label = f"{resource}.{group}" if group else resource
                    verbs = ",".join(rule["verbs"])
                    lines.append(f"{value_set}: {metadata['name']}, {where}: {label}{names}: {verbs}")
    if os.environ.get("UPDATE_SNAPSHOTS"):
        FROZEN.write_text("\n".join(lines) + "\n")
    assert FROZEN.read_text().splitlines() == lines
