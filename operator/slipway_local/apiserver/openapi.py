"""/openapi/v3: what `kubectl explain` prints and what tells kubectl that the server validates fields."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from slipway_local.apiserver.metadata import METADATA_SCHEMA
from slipway_local.apiserver.registry import Kind, Registry

_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_OBJECT_META = f"{_META}.ObjectMeta"
_LIST_META = f"{_META}.ListMeta"
_API_VERSION = {"type": "string", "description": "Version of the schema that this object follows: group/version."}
_KIND = {"type": "string", "description": "What this object is, in CamelCase."}


def _path_of(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


class OpenApi:
    """Documents per group and version, made on demand and kept until a kind changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._revision = -1
        self._documents: dict[str, tuple[bytes, str]] = {}

    def index(self) -> dict[str, Any]:
        """/openapi/v3"""
        paths = {}
        for group, versions in self._registry.groups().items():
            for version in versions:
                path = _path_of(group, version)
                _, digest = self._document(path, group, version)
                paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    def document(self, path: str) -> bytes | None:
        """/openapi/v3/PATH; None where there is no such group and version."""
        for group, versions in self._registry.groups().items():
            for version in versions:
                if _path_of(group, version) == path:
                    return self._document(path, group, version)[0]
        return None

    def _document(self, path: str, group: str, version: str) -> tuple[bytes, str]:
        if self._revision != self._registry.revision:
            self._documents.clear()
            self._revision = self._registry.revision
        if path not in self._documents:
            kinds = [k for k in self._registry.kinds() if (k.group, k.version) == (group, version)]
            body = orjson.dumps(_build(kinds))
            self._documents[path] = body, hashlib.sha256(body).hexdigest()[:32].upper()
        return self._documents[path]


# kubectl validates a v1 List (what `kubectl get -o yaml` prints) with /openapi/v2 and nothing else, as protobuf, and
# skips what that does not define; the server validates each item when it comes. So this is an OpenAPI v2 document that
# defines nothing: field 1 swagger = "2.0", field 2 info = {1: title, 2: version}, field 8 paths = {}.
OPENAPI_V2_PROTOBUF = b"\x0a\x032.0\x12\x0d\x0a\x07Slipway\x12\x02v1\x42\x00"
OPENAPI_V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def _build(kinds: list[Kind]) -> dict[str, Any]:
    schemas: dict[str, Any] = {
        _OBJECT_META: METADATA_SCHEMA,
        _LIST_META: {
            "type": "object",
            "description": "Metadata of a list.",
            "properties": {
                "resourceVersion": {"type": "string", "description": "Version that the list shows."},
                "continue": {"type": "string", "description": "Where the next page begins."},
                "remainingItemCount": {"type": "integer", "description": "Objects after this page."},
            },
        },
    }
    paths: dict[str, Any] = {}
    for kind in kinds:
        schemas[_name(kind)] = _schema(kind)
        schemas[f"{_name(kind)}List"] = _list_schema(kind)
        _add_paths(paths, kind)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Slipway local control plane", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _name(kind: Kind) -> str:
    reverse = ".".join(reversed(kind.group.split("."))) if kind.group else "io.k8s.api.core"
    return f"{reverse}.{kind.version}.{kind.kind}"


def _gvk(kind: Kind, suffix: str = "") -> dict[str, str]:
    return {"group": kind.group, "version": kind.version, "kind": f"{kind.kind}{suffix}"}


def _metadata(name: str, description: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "allOf": [reference], "default": {}}


def _schema(kind: Kind) -> dict[str, Any]:
    properties = {
        "apiVersion": _API_VERSION,
        "kind": _KIND,
        "metadata": _metadata(_OBJECT_META, "Metadata that every object has."),
        **{k: v for k, v in kind.schema.get("properties", {}).items() if k not in ("apiVersion", "kind", "metadata")},
    }
    return {**kind.schema, "properties": properties, "x-kubernetes-group-version-kind": [_gvk(kind)]}


def _list_schema(kind: Kind) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"A list of {kind.kind} objects.",
        "required": ["items"],
        "properties": {
            "apiVersion": _API_VERSION,
            "kind": _KIND,
            "metadata": _metadata(_LIST_META, "Metadata of the list."),
            "items": {"type": "array", "items": {"$ref": f"#/components/schemas/{_name(kind)}"}},
        },
        "x-kubernetes-group-version-kind": [_gvk(kind, "List")],
    }


def _parameter(name: str, where: str = "query") -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": where, "schema": {"type": "string", "uniqueItems": True}}
    return parameter | ({"required": True} if where == "path" else {})


_WRITE = [_parameter(name) for name in ("pretty", "dryRun", "fieldManager", "fieldValidation")]
_LIST = [
    _parameter(name)
    for name in (
        "allowWatchBookmarks",
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "watch",
    )
]
_BODIES = ("application/json", "application/yaml")
_PATCHES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
)


def _patches(kind: Kind) -> tuple[str, ...]:
    # kubectl reads here whether it may send a strategic merge patch.
    return _PATCHES if kind.custom else (*_PATCHES, "application/strategic-merge-patch+json")


def _operation(kind: Kind, action: str, parameters: list[Any], bodies: tuple[str, ...] = ()) -> dict[str, Any]:
    name = f"{_name(kind)}List" if action == "list" else _name(kind)
    reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    operation: dict[str, Any] = {
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": reference}}},
    }
    if bodies:
        content = {"schema": {"type": "object"}} if action == "patch" else reference
        operation["requestBody"] = {"content": dict.fromkeys(bodies, content)}
    return operation


def _add_paths(paths: dict[str, Any], kind: Kind) -> None:
    root = "/" + _path_of(kind.group, kind.version)
    scope = "/namespaces/{namespace}" if kind.namespaced else ""
    collection: dict[str, Any] = {"post": _operation(kind, "post", _WRITE, _BODIES)}
    if "list" in kind.verbs:
        collection["get"] = _operation(kind, "list", _LIST)
        collection["delete"] = _operation(kind, "deletecollection", _LIST)
    if kind.namespaced:
        collection["parameters"] = [_parameter("namespace", "path")]
        paths[f"{root}/{kind.plural}"] = {"get": _operation(kind, "list", _LIST)}
    paths[f"{root}{scope}/{kind.plural}"] = collection
    if "get" not in kind.verbs:
        return
    names = [_parameter("name", "path"), *([_parameter("namespace", "path")] if kind.namespaced else [])]
    for suffix in ("", "/status") if kind.status else ("",):
        item = {
            "get": _operation(kind, "get", []),
            "put": _operation(kind, "put", _WRITE, _BODIES),
            "patch": _operation(kind, "patch", [*_WRITE, _parameter("force")], _patches(kind)),
            "parameters": names,
        }
        if not suffix:
            item["delete"] = _operation(kind, "delete", [_parameter("dryRun"), _parameter("propagationPolicy")])
        paths[f"{root}{scope}/{kind.plural}/{{name}}{suffix}"] = item
