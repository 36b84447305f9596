"""Discovery, OpenAPI, Tables, reviews and protobuf bodies: what kubectl builds on."""

from __future__ import annotations

from typing import Any

import pytest

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


async def test_old_and_aggregated_discovery_say_the_same(api: Any) -> None:
    groups = {g["name"]: [v["version"] for v in g["versions"]] for g in (await api.get("/apis")).body["groups"]}
    assert groups["slipway.dev" if "slipway.dev" in groups else "test.example.com"]
    said = {}
    for root in ("/api", "/apis"):
        document = await api.call("GET", root, headers={"Accept": AGGREGATED})
        assert "as=APIGroupDiscoveryList" in document.headers["Content-Type"]
        for group in document.body["items"]:
            for version in group["versions"]:
                name = group["metadata"].get("name", "")
                for resource in version["resources"]:
                    said[(name, version["version"], resource["resource"])] = (
                        resource["verbs"],
                        resource.get("shortNames", []),
                        resource.get("categories", []),
                        resource["scope"] == "Namespaced",
                    )
    old = {}
    paths = {("", "v1"): "/api/v1"} | {(g, v): f"/apis/{g}/{v}" for g, versions in groups.items() for v in versions}
    for (group, version), path in paths.items():
        for row in (await api.get(path)).body["resources"]:
            if "/" not in row["name"]:
                entry = (row["verbs"], row.get("shortNames", []), row.get("categories", []), row["namespaced"])
                old[(group, version, row["name"])] = entry
    assert said == old
    assert said[("test.example.com", "v1", "widgets")][1:] == (["wd"], ["toys"], True)


async def test_openapi_tells_kubectl_what_it_asks(api: Any) -> None:
    index = (await api.get("/openapi/v3")).body["paths"]
    url = index["apis/test.example.com/v1"]["serverRelativeURL"]
    document = (await api.get(url)).body
    schemas = document["components"]["schemas"]
    widget = schemas["com.example.test.v1.Widget"]
    assert widget["x-kubernetes-group-version-kind"] == [
        {"group": "test.example.com", "version": "v1", "kind": "Widget"}
    ]
    assert widget["properties"]["spec"]["properties"]["size"]["description"] == "How big."
    reference = widget["properties"]["metadata"]["allOf"][0]["$ref"].rsplit("/", 1)[1]
    assert "labels" in schemas[reference]["properties"]
    item = document["paths"]["/apis/test.example.com/v1/namespaces/{namespace}/widgets/{name}"]
    assert "fieldValidation" in [parameter["name"] for parameter in item["patch"]["parameters"]]
    assert "application/strategic-merge-patch+json" not in item["patch"]["requestBody"]["content"]
    core = (await api.get("/openapi/v3/api/v1")).body
    config_map = core["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]
    assert "application/strategic-merge-patch+json" in config_map["patch"]["requestBody"]["content"]


async def test_tables(api: Any) -> None:
    await api.make(api.widget("a", size=3))
    conditions = [{"type": "Other", "status": "No"}, {"type": "Ready", "status": "Yes"}]
    await api.merge(f"{api.widgets}/a/status", {"status": {"conditions": conditions}})
    table = (await api.call("GET", api.widgets, headers=TABLE)).body
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    headings = [(c["name"], c["type"], c["priority"]) for c in table["columnDefinitions"]]
    assert headings == [
        ("Name", "string", 0),
        ("Size", "integer", 0),
        ("Ready", "string", 0),
        ("Color", "string", 1),
        ("Age", "date", 0),
    ]
    (row,) = table["rows"]
    assert row["cells"][:4] == ["a", 3, "Yes", "red"]
    assert row["cells"][4].endswith("s")
    assert row["object"]["kind"] == "PartialObjectMetadata"
    whole = (await api.call("GET", f"{api.widgets}/a", headers=TABLE, params={"includeObject": "Object"})).body
    assert whole["rows"][0]["object"]["spec"]["size"] == 3
    bare = (await api.call("GET", f"{api.widgets}/a", headers=TABLE, params={"includeObject": "None"})).body
    assert bare["rows"][0]["object"] is None


async def test_table_watches_send_headings_once(api: Any) -> None:
    async with api.watch(api.widgets, headers=TABLE) as stream:
        await api.make(api.widget("a"))
        await api.make(api.widget("b"))
        first, second = await stream.until(2)
    assert first["object"]["columnDefinitions"]
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][0] == "b"


async def test_metadata_only(api: Any) -> None:
    await api.make(api.widget("a"))
    accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
    listed = (await api.call("GET", api.widgets, headers=accept)).body
    assert listed["kind"] == "PartialObjectMetadataList"
    assert listed["items"][0]["metadata"]["name"] == "a"
    assert "spec" not in listed["items"][0]


async def test_yaml_answers(api: Any) -> None:
    await api.make(api.widget("a"))
    reply = await api.call("GET", f"{api.widgets}/a", headers={"Accept": "application/yaml"})
    assert reply.headers["Content-Type"] == "application/yaml"
    assert "kind: Widget" in reply.body


@pytest.mark.parametrize(
    ("plural", "body", "cells"),
    [
        ("namespaces/{namespace}/configmaps", {"kind": "ConfigMap", "data": {"a": "1", "b": "2"}}, ["x", 2]),
        ("namespaces/{namespace}/secrets", {"kind": "Secret", "stringData": {"a": "1"}}, ["x", "Opaque", 1]),
        ("namespaces/{namespace}/serviceaccounts", {"kind": "ServiceAccount"}, ["x"]),
        (
            "nodes",
            {"kind": "Node", "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
            ["x", "Ready", "<none>"],
        ),
        ("namespaces", {"kind": "Namespace"}, ["x", "Active"]),
    ],
)
async def test_built_in_columns(api: Any, plural: str, body: dict[str, Any], cells: list[Any]) -> None:
    path = f"/api/v1/{plural.format(namespace=api.namespace)}"
    name = f"x-{api.namespace}"
    made = await api.post(path, {"apiVersion": "v1", "metadata": {"name": name}, **body})
    assert made.code == 201, made.body
    table = (await api.call("GET", f"{path}/{name}", headers=TABLE)).body
    assert table["rows"][0]["cells"][: len(cells)] == [name, *cells[1:]]


async def test_the_one_user_may_do_everything(api: Any) -> None:
    root = "/apis/authorization.k8s.io/v1"
    asked = {"resourceAttributes": {"verb": "create", "group": "slipway.dev", "resource": "trainjobs"}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": asked}
    reply = await api.post(f"{root}/selfsubjectaccessreviews", body)
    assert (reply.code, reply.body["status"]["allowed"]) == (201, True)
    assert (await api.post(f"{root}/selfsubjectaccessreviews", {**body, "spec": {}})).code == 422
    assert (await api.get(f"{root}/selfsubjectaccessreviews")).code == 405


def varint(number: int) -> bytes:
    """A protobuf number."""
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(kind: str, raw: bytes) -> bytes:
    """A body as client-go sends it."""
    return b"k8s\x00" + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, raw)


async def test_protobuf_bodies(api: Any) -> None:
    metadata = field(1, b"pb") + field(2, b"") + field(8, b"") + field(11, field(1, b"team") + field(2, b"a"))
    raw = field(1, metadata) + field(2, field(1, b"key") + field(2, b"\x00\xff")) + field(3, b"Opaque")
    path = api.core("secrets")
    made = await api.call("POST", path, message("Secret", raw), "application/vnd.kubernetes.protobuf")
    assert made.code == 201, made.body
    assert made.body["data"] == {"key": "AP8="}
    assert made.body["metadata"]["labels"] == {"team": "a"}
    unknown = await api.call("POST", path, message("Gadget", b""), "application/vnd.kubernetes.protobuf")
    assert unknown.code in (400, 415)
    for broken in (b"k8s\x00\xff\xff\xff", message("Secret", b"\x0a\xff"), message("Secret", field(1, 5)), b"k8s"):
        reply = await api.call("POST", path, broken, "application/vnd.kubernetes.protobuf")
        assert reply.code == 400, broken
