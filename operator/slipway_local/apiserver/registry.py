"""Kinds: what is served under which path, and how an object of each is checked and shown.

A kind of a CRD and a built-in kind are the same thing to everything that handles requests; what differs is data here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from slipway_local.apiserver.celrules import RuleTree
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.metadata import METADATA
from slipway_local.apiserver.schema import FREE, Node, compile_schema
from slipway_local.apiserver.selectors import Selector
from slipway_local.apiserver.storage import Stored
from slipway_local.apiserver.tables import Columns

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
# In the order in which discovery lists them, which kubectl api-resources shows.
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
EVERYWHERE = ("metadata.name", "metadata.namespace")

Prepare = Callable[[dict[str, Any], "dict[str, Any] | None"], None]
Check = Callable[[dict[str, Any], "dict[str, Any] | None"], list[FieldError]]
Reader = Callable[[dict[str, Any]], str]

_SCALAR: dict[str, Any] = {"type": "string"}


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind in one version."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    schema: dict[str, Any]  # openAPIV3Schema
    columns: Columns
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS
    custom: bool = False
    status: bool = False  # /status is an endpoint of its own
    rules: RuleTree | None = None
    storage_version: str = ""
    list_kind: str = ""
    label_names: bool = False  # names are RFC 1123 labels rather than subdomains
    create_on_update: bool = False
    generations: bool = False  # metadata.generation is kept
    selectable: dict[str, Reader] = field(default_factory=dict)
    prepare: Prepare | None = None
    check: Check | None = None
    node: Node = FREE  # the whole object; filled in by `finished`
    body: Node = FREE  # the object as its schema restricts it, metadata aside
    name_rules: Node | None = None  # what the schema says about metadata.name

    @property
    def resource(self) -> str:
        """The key of this kind's objects in the store, the same for all versions."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """`group/version`; just the version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def raw(self, item: Stored) -> bytes:
        """The stored object in this version."""
        if self.version == self.storage_version:
            return item.raw
        return orjson.dumps(self.load(item))

    def load(self, item: Stored) -> dict[str, Any]:
        """The stored object in this version, to change at will."""
        obj = item.load()
        obj["apiVersion"] = self.api_version
        return obj

    def selects(self, name: str) -> bool:
        """Whether a field selector may use this field."""
        return name in EVERYWHERE or name in self.selectable

    def matches(self, item: Stored, selector: Selector) -> bool:
        """Whether a selector asks for this object."""
        if not selector:
            return True
        fields = {"metadata.name": item.name, "metadata.namespace": item.namespace}
        if any(term.field in self.selectable for term in selector.fields):
            obj = item.load()
            fields |= {name: read(obj) for name, read in self.selectable.items()}
        return selector.matches(item.labels, fields)


def finished(kind: Kind) -> Kind:
    """The kind with its schema compiled. Raises SchemaError."""
    declared = compile_schema(kind.schema, "openAPIV3Schema")
    type_meta = compile_schema(_SCALAR)
    properties = {**declared.properties, "apiVersion": type_meta, "kind": type_meta, "metadata": METADATA}
    own = declared.properties.get("metadata")
    name_rules = own if own is not None and own.properties else None
    return replace(
        kind,
        node=replace(declared, properties=properties),
        body=replace(declared, properties={**declared.properties, "metadata": FREE}),
        name_rules=name_rules,
        storage_version=kind.storage_version or kind.version,
        list_kind=kind.list_kind or f"{kind.kind}List",
    )


class Registry:
    """Every kind that is served now. `revision` changes whenever that set does."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self.revision = 0
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serve a kind, in place of what had its path."""
        self._kinds[(kind.group, kind.version, kind.plural)] = kind
        self.revision += 1

    def drop(self, group: str, plural: str) -> None:
        """Stop serving a resource in all its versions."""
        self._kinds = {key: kind for key, kind in self._kinds.items() if (key[0], key[2]) != (group, plural)}
        self.revision += 1

    def get(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind under a path."""
        return self._kinds.get((group, version, plural))

    def by_kind(self, api_version: str, kind: str) -> Kind | None:
        """The kind that an object's apiVersion and kind name."""
        group, _, version = api_version.rpartition("/")
        candidates = [k for k in self._kinds.values() if k.group == group and k.kind == kind]
        return next((k for k in candidates if k.version == version), candidates[0] if candidates else None)

    def of_resource(self, resource: str) -> Kind | None:
        """The kind, in its stored version, of a resource."""
        found = [k for k in self._kinds.values() if k.resource == resource]
        return next((k for k in found if k.version == k.storage_version), found[0] if found else None)

    def kinds(self) -> list[Kind]:
        """Every kind."""
        return list(self._kinds.values())

    def groups(self) -> dict[str, list[str]]:
        """The versions of every group."""
        result: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            versions = result.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return result
