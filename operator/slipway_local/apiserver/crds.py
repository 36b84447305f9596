"""CustomResourceDefinitions: checked when they are written, turned into kinds, reported on in their status."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.celrules import compile_rules
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.jsonpath import compile_path
from slipway_local.apiserver.metadata import LABEL_RE, SUBDOMAIN_RE
from slipway_local.apiserver.registry import CUSTOM_VERBS, Kind, Reader, finished
from slipway_local.apiserver.schema import SchemaError
from slipway_local.apiserver.tables import custom_columns

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_COLUMN_TYPES = ("integer", "number", "string", "boolean", "date")
_APPROVAL = "api-approved.kubernetes.io"
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")


def prepare(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Fill in the names that follow from others, the status and the finalizer that waits for the objects."""
    spec = new.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("names"), dict):
        return
    names = spec["names"]
    kind = names.get("kind")
    if isinstance(kind, str):
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", f"{kind}List")
    spec.setdefault("conversion", {"strategy": "None"})
    if old is None:
        finalizers = new["metadata"].setdefault("finalizers", [])
        if CLEANUP_FINALIZER not in finalizers:
            finalizers.append(CLEANUP_FINALIZER)


def check(new: dict[str, Any], old: dict[str, Any] | None) -> list[FieldError]:
    """Everything that keeps a definition from being served."""
    spec = new.get("spec") or {}
    names, group = spec.get("names") or {}, spec.get("group", "")
    found: list[FieldError] = []
    if not SUBDOMAIN_RE.fullmatch(group) or "." not in group:
        found.append(errors.invalid("spec.group", group, "should be a domain with at least one dot"))
    found += [errors.required(f"spec.names.{field}") for field in ("plural", "kind") if not names.get(field)]
    if group.endswith((".k8s.io", ".kubernetes.io")) and _APPROVAL not in new["metadata"].get("annotations", {}):
        found.append(errors.required(f"metadata.annotations[{_APPROVAL}]", "protected groups must have approval"))
    wanted = f"{names.get('plural', '')}.{group}"
    if new["metadata"].get("name") != wanted:
        detail = 'must be spec.names.plural+"."+spec.group'
        found.append(errors.invalid("metadata.name", new["metadata"].get("name", ""), detail))
    if not spec.get("scope"):
        found.append(errors.required("spec.scope"))
    if (spec.get("conversion") or {}).get("strategy", "None") != "None":
        found.append(errors.not_supported("spec.conversion.strategy", spec["conversion"]["strategy"], ["None"]))
    if spec.get("preserveUnknownFields"):
        detail = "must be false in order to use defaults in the schema"
        found.append(errors.invalid("spec.preserveUnknownFields", True, detail))
    if old is not None:
        found += _check_update(spec, old.get("spec") or {})
    found += _check_versions(spec.get("versions") or [])
    return found or _check_served(new)


def _check_update(spec: dict[str, Any], before: dict[str, Any]) -> list[FieldError]:
    changes = [
        ("spec.group", spec.get("group"), before.get("group")),
        ("spec.scope", spec.get("scope"), before.get("scope")),
        ("spec.names.kind", spec["names"].get("kind"), before["names"].get("kind")),
    ]
    return [errors.invalid(field, new, "field is immutable") for field, new, old in changes if new != old]


def _check_versions(versions: list[dict[str, Any]]) -> list[FieldError]:
    found: list[FieldError] = []
    if sum(bool(version.get("storage")) for version in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        found.append(errors.invalid("spec.versions", [v.get("name") for v in versions], detail))
    for index, version in enumerate(versions):
        where = f"spec.versions[{index}]"
        if not LABEL_RE.fullmatch(version.get("name", "")):
            found.append(errors.invalid(f"{where}.name", version.get("name", ""), "must be a DNS-1035 label"))
        if "openAPIV3Schema" not in (version.get("schema") or {}):
            found.append(errors.required(f"{where}.schema.openAPIV3Schema", "schemas are required"))
        if "scale" in (version.get("subresources") or {}):
            found.append(errors.forbidden_field(f"{where}.subresources.scale", "this API server does not serve it"))
        for i, column in enumerate(version.get("additionalPrinterColumns") or []):
            if column.get("type") not in _COLUMN_TYPES:
                at = f"{where}.additionalPrinterColumns[{i}].type"
                found.append(errors.not_supported(at, column.get("type", ""), list(_COLUMN_TYPES)))
    return found


def _check_served(crd: dict[str, Any]) -> list[FieldError]:
    try:
        kinds_of(crd)
    except SchemaError as failure:
        return [errors.invalid(failure.path, "", failure.message)]
    return []


def kinds_of(crd: dict[str, Any]) -> list[Kind]:
    """The kinds that a definition serves, one per version. Raises SchemaError for a schema that cannot be served."""
    spec = crd["spec"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    return [
        _kind(spec, version, storage, f"spec.versions[{index}]")
        for index, version in enumerate(spec["versions"])
        if version.get("served")
    ]


def _kind(spec: dict[str, Any], version: dict[str, Any], storage: str, where: str) -> Kind:
    names = spec["names"]
    try:
        columns = custom_columns(version.get("additionalPrinterColumns") or [])
        selectable = {
            entry["jsonPath"].lstrip("."): _reader(entry["jsonPath"]) for entry in version.get("selectableFields") or []
        }
    except ValueError as failure:
        raise SchemaError(f"{where}.additionalPrinterColumns", str(failure)) from None
    try:
        kind = finished(
            Kind(
                group=spec["group"],
                version=version["name"],
                kind=names["kind"],
                plural=names["plural"],
                singular=names.get("singular") or names["kind"].lower(),
                namespaced=spec["scope"] == "Namespaced",
                verbs=CUSTOM_VERBS,
                schema=version["schema"]["openAPIV3Schema"],
                columns=columns,
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                custom=True,
                status="status" in (version.get("subresources") or {}),
                storage_version=storage,
                list_kind=names.get("listKind") or "",
                generations=True,
                selectable=selectable,
            )
        )
        rules = compile_rules(kind.body)
    except SchemaError as failure:
        path = f"{where}.schema.openAPIV3Schema{failure.path.removeprefix('openAPIV3Schema')}"
        raise SchemaError(path, failure.message) from None
    if kind.node.type != "object":
        raise SchemaError(f"{where}.schema.openAPIV3Schema.type", "Invalid value: must be object at the root")
    return replace(kind, rules=rules)


def _reader(path: str) -> Reader:
    find = compile_path(path)

    def read(obj: dict[str, Any]) -> str:
        found = find(obj)
        value = found[0] if found else None
        if value is None:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)

    return read


def priority(version: str) -> tuple[int, int, int, str]:
    """Sort key that puts the version clients should prefer first: v2 before v1 before v1beta1 before anything else."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[match.group(2)]
    return (stage, -int(match.group(1)), -int(match.group(3) or 0), version)


def with_status(crd: dict[str, Any], now: str) -> dict[str, Any]:
    """The definition with the status of one that is served."""
    spec = crd["spec"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    status = crd.get("status") or {}
    known = {condition["type"]: condition for condition in status.get("conditions") or []}
    conditions = [
        _condition(known, "NamesAccepted", "NoConflicts", "no conflicts found", now),
        _condition(known, "Established", "InitialNamesAccepted", "the initial names have been accepted", now),
    ]
    stored = [*(v for v in status.get("storedVersions") or [] if v != storage), storage]
    return {
        **crd,
        "status": {"conditions": conditions, "acceptedNames": spec["names"], "storedVersions": stored},
    }


def _condition(known: dict[str, dict[str, Any]], type_: str, reason: str, message: str, now: str) -> dict[str, Any]:
    if known.get(type_, {}).get("status") == "True":
        return known[type_]
    return {"type": type_, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
