"""managedFields: who owns which field, and server-side apply on top of it.

`apply` is the merge of an applied configuration into the live object (KEP-555); `track_update` records what any other
write changed. Both are pure: they return a new object. Mirrors apimachinery's managedfields package, as one module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from slipway_local.apiserver import errors, typed
from slipway_local.apiserver.codec import copy, same
from slipway_local.apiserver.fieldset import EMPTY, FieldSet, Path, of, render
from slipway_local.apiserver.schema import Node, apply_defaults

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_UPDATE_ENTRIES = 10  # Beyond it the oldest Update entries are folded into one.
_ANCIENT = "ancient-changes"
_BEFORE_FIRST_APPLY = "before-first-apply"

# Nobody owns what the system sets.
_SYSTEM_FIELDS = of(
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ),
)
# What an endpoint cannot change, it does not own.
WITHOUT_STATUS = of(("f:status",))
STATUS_ONLY = of(("f:metadata",), ("f:spec",))


class ManagerKey(NamedTuple):
    """What tells two entries apart."""

    manager: str
    operation: str
    api_version: str  # Empty for Apply: an applier has one entry, whatever version it used last.
    subresource: str


@dataclass(frozen=True)
class Entry:
    """One manager's fields."""

    fields: FieldSet
    api_version: str
    time: str | None


Managed = dict[ManagerKey, Entry]


@dataclass(frozen=True)
class Scope:
    """Where a write arrives: the kind's version and endpoint, and which fields that endpoint leaves alone."""

    node: Node
    api_version: str
    subresource: str
    ignored: FieldSet

    def key(self, manager: str, operation: str) -> ManagerKey:
        """The entry of a manager at this endpoint."""
        version = "" if operation == "Apply" else self.api_version
        return ManagerKey(manager, operation, version, self.subresource)


class ConflictsError(Exception):
    """Fields that others own, by manager."""

    def __init__(self, by_manager: dict[ManagerKey, FieldSet]) -> None:
        super().__init__("conflict")
        self.by_manager = by_manager

    def error(self) -> errors.ApiError:
        """The 409 that names every manager and field."""
        rows: list[tuple[str, Path]] = [
            (_describe(key), path) for key, fields in sorted(self.by_manager.items()) for path in fields
        ]
        causes = [
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": render(path)}
            for who, path in rows
        ]
        if len(rows) == 1:
            text = f"Apply failed with 1 conflict: conflict with {rows[0][0]}: {render(rows[0][1])}"
        else:
            lines: list[str] = []
            for who in dict.fromkeys(who for who, _ in rows):
                lines.append(f"conflicts with {who}:")
                lines += [f"- {render(path)}" for other, path in rows if other == who]
            text = f"Apply failed with {len(rows)} conflicts: " + "\n".join(lines)
        return errors.apply_conflict(causes, text)


def _describe(key: ManagerKey) -> str:
    text = f'"{key.manager}"'
    if key.subresource:
        text += f' with subresource "{key.subresource}"'
    if key.operation == "Update":
        text += f" using {key.api_version}"
    return text


# --- reading and writing the entries ------------------------------------------------------------------------------


def decode(entries: Any) -> Managed:
    """Entries as stored. Raises ValueError for malformed ones."""
    managed: Managed = {}
    for entry in entries or []:
        operation, version = entry.get("operation"), entry.get("apiVersion", "")
        if operation not in ("Apply", "Update") or not version or entry.get("fieldsType") != "FieldsV1":
            raise ValueError("malformed managedFields entry")
        key = ManagerKey(
            entry.get("manager", ""), operation, "" if operation == "Apply" else version, entry.get("subresource", "")
        )
        managed[key] = Entry(FieldSet.from_v1(entry.get("fieldsV1") or {}), version, entry.get("time"))
    return managed


def encode(managed: Managed) -> list[dict[str, Any]]:
    """Entries as stored, in kube-apiserver's order."""
    rows = sorted(managed.items(), key=lambda row: (row[0].operation, row[1].time or "", row[0]))
    result = []
    for key, entry in rows:
        row: dict[str, Any] = {
            "manager": key.manager,
            "operation": key.operation,
            "apiVersion": entry.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": entry.fields.to_v1(),
        }
        if entry.time is None:
            del row["time"]
        if key.subresource:
            row["subresource"] = key.subresource
        result.append(row)
    return result


def _attach(obj: dict[str, Any], managed: Managed) -> dict[str, Any]:
    metadata = {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}
    if managed:
        metadata["managedFields"] = encode(managed)
    return {**obj, "metadata": metadata}


def _bare(obj: dict[str, Any]) -> dict[str, Any]:
    return {**obj, "metadata": {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}}


def _decode_or_empty(obj: dict[str, Any]) -> Managed:
    try:
        return decode(obj.get("metadata", {}).get("managedFields"))
    except (ValueError, AttributeError, TypeError):
        return {}


# --- updates ------------------------------------------------------------------------------------------------------


def track_update(live: dict[str, Any], new: dict[str, Any], scope: Scope, manager: str, now: str) -> dict[str, Any]:
    """`new` with its managedFields: this manager owns what differs from `live` ({} on create).

    A client may edit the entries itself (kubectl does, to migrate); emptying the list resets them.
    """
    asked = new.get("metadata", {}).get("managedFields")
    if scope.subresource or asked is None:
        managed = _decode_or_empty(live)
    elif asked in ([], [{}]):
        managed = {}
    else:
        managed = _decode_or_empty(new) or _decode_or_empty(live)
    if live and not managed:
        return _attach(new, {})  # Tracking was reset: it starts again with the next apply.
    return _attach(new, _record(_bare(live) if live else {}, _bare(new), managed, scope, manager, now))


def _record(
    live: dict[str, Any], new: dict[str, Any], managed: Managed, scope: Scope, manager: str, now: str
) -> Managed:
    try:
        difference = typed.compare(live, new, scope.node).without(scope.ignored)
    except typed.TypedError:
        return managed
    taken = difference.modified.union(difference.added)
    result = {
        key: replace(entry, fields=entry.fields.difference(taken).difference(difference.removed))
        for key, entry in managed.items()
    }
    mine = taken.difference(_SYSTEM_FIELDS)
    if mine:
        key = scope.key(manager, "Update")
        known = result.get(key)
        result[key] = Entry(known.fields.union(mine) if known else mine, scope.api_version, now)
    return _capped({key: entry for key, entry in result.items() if entry.fields})


def _capped(managed: Managed) -> Managed:
    updates = [key for key in managed if key.operation == "Update"]
    if len(updates) <= MAX_UPDATE_ENTRIES:
        return managed
    updates.sort(key=lambda key: (managed[key].time or "", key))
    result = dict(managed)
    for key in updates[: len(updates) - MAX_UPDATE_ENTRIES + 1]:
        entry = result.pop(key)
        bucket = ManagerKey(_ANCIENT, "Update", entry.api_version, "")
        known = result.get(bucket)
        fields = known.fields.union(entry.fields) if known else entry.fields
        result[bucket] = Entry(fields, entry.api_version, entry.time)
    return result


# --- apply --------------------------------------------------------------------------------------------------------


def apply(
    live: dict[str, Any], config: dict[str, Any], scope: Scope, manager: str, now: str, *, force: bool
) -> dict[str, Any]:
    """The live object ({} when there is none) with an applied configuration merged in.

    Raises ApiError: 409 where others own a field and `force` is off, 400 or 500 for a configuration that does not fit.
    """
    if config.get("metadata", {}).get("managedFields") is not None:
        raise errors.bad_request("metadata.managedFields must be nil")
    try:
        typed.check(config, scope.node)
    except typed.TypedError as failure:
        meta = config.get("metadata", {})
        what = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {scope.api_version}, Kind={config.get('kind')}"
        raise errors.untyped_failure(f"failed to create typed patch object ({what}): {failure}") from None
    managed = _decode_or_empty(live)
    bare = _bare(live) if live else {}
    if live and not managed:
        everything = typed.field_set(bare, scope.node).difference(_SYSTEM_FIELDS)
        key = scope.key(_BEFORE_FIRST_APPLY, "Update")
        managed = {
            ManagerKey(key.manager, key.operation, key.api_version, ""): Entry(everything, scope.api_version, now)
        }
    try:
        return _apply(live, bare, config, managed, scope, manager, now, force)
    except ConflictsError as conflicts:
        if manager == "kubectl" and _only_last_applied(conflicts, bare, scope):
            return _apply(live, bare, config, managed, scope, manager, now, True)
        raise conflicts.error() from None


def _apply(
    live: dict[str, Any],
    bare: dict[str, Any],
    config: dict[str, Any],
    managed: Managed,
    scope: Scope,
    manager: str,
    now: str,
    force: bool,
) -> dict[str, Any]:
    node = scope.node
    key = scope.key(manager, "Apply")
    previous = managed.get(key)
    wanted = typed.field_set(config, node).without(scope.ignored)
    managed = {**managed, key: Entry(wanted, scope.api_version, previous.time if previous else now)}
    merged = typed.merge(bare, config, node) if bare else config
    new = _drop_unapplied(merged, managed, previous.fields if previous else EMPTY, node)
    # Compare what was applied, before defaults: a default is nobody's wish and conflicts with none.
    difference = typed.compare(bare, new, node).without(scope.ignored)
    touched = difference.modified.union(difference.added)
    others = {k: e for k, e in managed.items() if k != key}
    clashes = {k: c for k, e in others.items() if (c := e.fields.intersection(touched))}
    if clashes and not force:
        raise ConflictsError(clashes)
    result = {
        k: replace(e, fields=e.fields.difference(touched).difference(difference.removed)) for k, e in others.items()
    }
    result[key] = replace(managed[key], fields=wanted.difference(_SYSTEM_FIELDS))
    new = copy(new)
    apply_defaults(new, node)
    if manager == "kubectl":
        _refresh_last_applied(bare, new, config)
    if not bare or not same(new, bare):
        result[key] = replace(result[key], time=now)
    result = {k: e for k, e in result.items() if e.fields}
    return _attach(new, result)


def _drop_unapplied(merged: Any, managed: Managed, last: FieldSet, node: Node) -> Any:
    """Without what the applier applied last time, did not apply this time, and nobody else owns."""
    if not last:
        return merged
    pruned = typed.remove(merged, typed.with_named_fields(last, node), node)
    owned = EMPTY
    for entry in managed.values():
        owned = owned.union(entry.fields)
    everything = typed.with_named_fields(typed.field_set(merged, node), node)
    kept = typed.with_named_fields(typed.field_set(pruned, node), node)
    pruned = typed.remove(merged, everything.difference(kept.union(typed.with_named_fields(owned, node))), node)
    # What was not the applier's is not the applier's to remove, owned or not.
    kept = typed.with_named_fields(typed.field_set(pruned, node), node)
    return typed.remove(merged, everything.difference(kept).intersection(typed.with_named_fields(last, node)), node)


def _only_last_applied(conflicts: ConflictsError, live: dict[str, Any], scope: Scope) -> bool:
    """Whether every conflict is about a field that client-side `kubectl apply` set: the same person, a newer way."""
    text = (live.get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    if not text:
        return False
    try:
        applied = orjson.loads(text)
        allowed = typed.field_set(applied, scope.node).union(of(("f:metadata", "f:annotations", f"f:{LAST_APPLIED}")))
    except (orjson.JSONDecodeError, typed.TypedError, AttributeError):
        return False
    return all(not fields.difference(allowed) for fields in conflicts.by_manager.values())


def _refresh_last_applied(live: dict[str, Any], new: dict[str, Any], config: dict[str, Any]) -> None:
    # While the annotation is there, client-side apply may come back to it: it must not be outdated.
    annotations = new.get("metadata", {}).get("annotations")
    known = (live.get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    if known and annotations and LAST_APPLIED in annotations:
        meta = {**config.get("metadata", {}), "annotations": dict(config["metadata"].get("annotations") or {})}
        meta["annotations"].pop(LAST_APPLIED, None)
        annotations[LAST_APPLIED] = orjson.dumps({**config, "metadata": meta}).decode() + "\n"
