"""Discovery: which groups, versions and resources there are, in the old form and in the aggregated one (KEP-3352)."""

from __future__ import annotations

from typing import Any

from slipway_local.apiserver.crds import priority
from slipway_local.apiserver.registry import Kind, Registry

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def wants_aggregated(accept: str) -> bool:
    """Whether a client prefers the aggregated form."""
    for media_range in accept.split(","):
        parts = {part.strip() for part in media_range.split(";")}
        if parts >= {"application/json", "g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"}:
            return True
        if parts & {"application/json", "*/*"} and len(parts) == 1:
            return False
    return False


def versions_of(registry: Registry) -> dict[str, list[str]]:
    """The versions of every named group, preferred first."""
    groups = {group: sorted(versions, key=priority) for group, versions in registry.groups().items() if group}
    return dict(sorted(groups.items()))


def legacy_versions() -> dict[str, Any]:
    """/api"""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group(name: str, versions: list[str]) -> dict[str, Any]:
    """/apis/GROUP"""
    rows = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": rows, "preferredVersion": rows[0]}


def group_list(registry: Registry) -> dict[str, Any]:
    """/apis"""
    groups = []
    for name, versions in versions_of(registry).items():
        entry = group(name, versions)
        del entry["kind"], entry["apiVersion"]
        groups.append(entry)
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _kinds(registry: Registry, group_name: str, version: str) -> list[Kind]:
    found = [k for k in registry.kinds() if k.group == group_name and k.version == version]
    return sorted(found, key=lambda kind: kind.plural)


def resource_list(registry: Registry, group_name: str, version: str) -> dict[str, Any]:
    """/api/v1 and /apis/GROUP/VERSION"""
    rows: list[dict[str, Any]] = []
    for kind in _kinds(registry, group_name, version):
        row: dict[str, Any] = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            row["shortNames"] = list(kind.short_names)
        if kind.categories:
            row["categories"] = list(kind.categories)
        rows.append(row)
        if kind.status:
            rows.append(
                {
                    "name": f"{kind.plural}/status",
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    "kind": kind.kind,
                    "verbs": ["get", "patch", "update"],
                }
            )
    name = f"{group_name}/{version}" if group_name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": rows}


def aggregated(registry: Registry, *, legacy: bool) -> dict[str, Any]:
    """/api and /apis as one document each."""
    groups = {"": ["v1"]} if legacy else versions_of(registry)
    items = []
    for name, versions in groups.items():
        entries = [
            {
                "version": version,
                "resources": [_aggregated_resource(kind) for kind in _kinds(registry, name, version)],
                "freshness": "Current",
            }
            for version in versions
        ]
        metadata: dict[str, Any] = {"creationTimestamp": None} | ({"name": name} if name else {})
        items.append({"metadata": metadata, "versions": entries})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated_resource(kind: Kind) -> dict[str, Any]:
    response = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    row: dict[str, Any] = {
        "resource": kind.plural,
        "responseKind": response,
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        row["shortNames"] = list(kind.short_names)
    if kind.categories:
        row["categories"] = list(kind.categories)
    if kind.status:
        verbs = ["get", "patch", "update"]
        row["subresources"] = [{"subresource": "status", "responseKind": response, "verbs": verbs}]
    return row
