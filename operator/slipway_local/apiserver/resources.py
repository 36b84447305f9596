"""The verbs that write: create, update, patch, delete, on any kind.

A write is decided without awaiting anything, from reading the newest state to handing the result to the store, so no
two writes interleave; the answer then waits for the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from slipway_local.apiserver import admission, crds, errors, managed, patch
from slipway_local.apiserver.admission import Object
from slipway_local.apiserver.codec import decode
from slipway_local.apiserver.fieldset import EMPTY
from slipway_local.apiserver.managed import Scope
from slipway_local.apiserver.registry import Kind, Registry
from slipway_local.apiserver.storage import StorageError, Store, Stored

UNDELETABLE_NAMESPACES = ("default", "kube-system", "kube-public")
CRDS = "customresourcedefinitions.apiextensions.k8s.io"
MERGE, JSON_PATCH, STRATEGIC, APPLY = (
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)


@dataclass(frozen=True)
class WriteOptions:
    """What a request says about how to write."""

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"  # Strict, Warn or Ignore
    force: bool = False


@dataclass(frozen=True)
class DeleteOptions:
    """What a request says about how to delete."""

    policy: str = "Background"  # Background, Foreground or Orphan
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Place:
    """What a request is about."""

    kind: Kind
    namespace: str
    name: str
    subresource: str = ""


@dataclass(frozen=True)
class Answer:
    """What a write answers."""

    code: int
    obj: Object | None
    raw: bytes = b""
    warnings: list[str] = field(default_factory=list)


class Resources:
    """Writes objects of any kind."""

    def __init__(self, store: Store, registry: Registry, clock: Callable[[], float]) -> None:
        self.store = store
        self.registry = registry
        self._clock = clock

    def now(self) -> str:
        """The time as the API writes it."""
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- create ---

    async def create(
        self, kind: Kind, namespace: str, obj: Any, options: WriteOptions, duplicates: list[str] | None = None
    ) -> Answer:
        """Create an object from a decoded body."""
        admission.check_type(kind, obj)
        unknown = admission.tidy(kind, obj)
        warnings = self._judge(kind, options, admission.strict_failures(unknown, duplicates or []))
        admission.check_place(kind, obj, namespace, None)
        live, new = None, self._new(kind, obj, options, None)
        return await self._store(Place(kind, namespace, new["metadata"]["name"]), live, new, options, 201, warnings)

    def _new(self, kind: Kind, obj: Object, options: WriteOptions, applied: Scope | None) -> Object:
        """The complete new object; `applied` when its managedFields come from an apply."""
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        if kind.namespaced:
            self._check_namespace(kind, namespace, metadata)
        if kind.custom and self._terminating(kind):
            message = "create not allowed while custom resource definition is terminating"
            raise errors.ApiError(405, "MethodNotAllowed", message)
        admission.prepare_create(kind, obj, self.now())
        obj = self._with_crd_status(kind, obj)
        admission.validate_object(kind, obj, None)
        name = obj["metadata"]["name"]
        if self.store.head(kind.resource, namespace, name) is not None:
            raise errors.already_exists(kind.plural, kind.group, name)
        if applied is None:
            obj = managed.track_update({}, obj, self._scope(kind, ""), options.manager, self.now())
        return obj

    def _check_namespace(self, kind: Kind, namespace: str, metadata: Object) -> None:
        space = self.store.head("namespaces", "", namespace)
        if space is None:
            raise errors.not_found("namespaces", "", namespace)
        if space.deleting:
            name = metadata.get("name") or metadata.get("generateName", "")
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(kind.plural, kind.group, name, why, [cause])

    def _terminating(self, kind: Kind) -> bool:
        crd = self.store.head(CRDS, "", kind.resource)
        return crd is not None and crd.deleting

    def _with_crd_status(self, kind: Kind, obj: Object) -> Object:
        # Only a definition that can be served gets past validation, so its status may be said at once.
        versions = (obj.get("spec") or {}).get("versions") or []
        if kind.resource == CRDS and any(version.get("storage") for version in versions):
            return crds.with_status(obj, self.now())
        return obj

    # --- update ---

    async def update(
        self, place: Place, obj: Any, options: WriteOptions, duplicates: list[str] | None = None
    ) -> Answer:
        """Replace an object by a decoded body."""
        kind = place.kind
        admission.check_type(kind, obj)
        unknown = admission.tidy(kind, obj)
        warnings = self._judge(kind, options, admission.strict_failures(unknown, duplicates or []))
        admission.check_place(kind, obj, place.namespace, place.name)
        live = self._head(place)
        if live is None:
            if kind.create_on_update and not place.subresource and not obj["metadata"].get("resourceVersion"):
                new = self._new(kind, obj, options, None)
                return await self._store(place, None, new, options, 201, warnings)
            raise errors.not_found(kind.plural, kind.group, place.name)
        if kind.custom and not obj["metadata"].get("resourceVersion"):
            wrong = errors.invalid("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.unprocessable(kind.kind, kind.group, place.name, [wrong])
        return await self._replace(place, live, obj, options, warnings)

    async def _replace(
        self, place: Place, live: Stored, obj: Object, options: WriteOptions, warnings: list[str]
    ) -> Answer:
        kind, old = place.kind, place.kind.load(live)
        self._check_preconditions(place, live, obj["metadata"])
        new = admission.prepare_update(kind, old, obj, place.subresource)
        new = self._with_crd_status(kind, new)
        admission.validate_object(kind, new, old, place.subresource)
        scope = self._scope(kind, place.subresource)
        new = managed.track_update(old, new, scope, options.manager, self.now())
        return await self._store(place, live, new, options, 200, warnings, old)

    def _check_preconditions(self, place: Place, live: Stored, metadata: Object) -> None:
        kind = place.kind
        version, uid = metadata.get("resourceVersion"), metadata.get("uid")
        if uid and uid != live.uid:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {live.uid}"
            raise errors.conflict(kind.plural, kind.group, place.name, why)
        if version and version != "0" and version != str(live.version):
            if not version.isdecimal():
                wrong = errors.invalid("metadata.resourceVersion", version, "must be an integer")
                raise errors.unprocessable(kind.kind, kind.group, place.name, [wrong])
            raise errors.conflict(kind.plural, kind.group, place.name)

    # --- patch ---

    async def patch(self, place: Place, media_type: str, body: bytes, options: WriteOptions) -> Answer:
        """Change an object by a patch of any type."""
        if media_type == APPLY:
            return await self._apply(place, body, options)
        allowed = [JSON_PATCH, MERGE, *([] if place.kind.custom else [STRATEGIC]), APPLY]
        if media_type not in allowed:
            raise errors.unsupported_media_type(media_type, allowed)
        change, duplicates = decode(body, find_duplicates=options.validation != "Ignore")
        kind, live = place.kind, self._head(place)
        if live is None:
            raise errors.not_found(kind.plural, kind.group, place.name)
        new = self._patched(kind, kind.load(live), media_type, change)
        if not isinstance(new, dict):
            raise errors.bad_request("the patch leaves no object")
        admission.check_type(kind, new)
        unknown = admission.tidy(kind, new)
        failures = admission.strict_failures(unknown, duplicates)
        if failures and options.validation == "Strict":
            shown = orjson.dumps(change).decode()
            wrong = errors.invalid("patch", shown, f"strict decoding error: {', '.join(failures)}")
            raise errors.unprocessable("", "", "", [wrong])
        admission.check_place(kind, new, place.namespace, place.name)
        if (uid := new["metadata"].get("uid")) not in (None, live.uid):
            wrong = errors.invalid("metadata.uid", uid, "field is immutable")
            raise errors.unprocessable(kind.kind, kind.group, place.name, [wrong, wrong] if kind.custom else [wrong])
        return await self._replace(place, live, new, options, failures if options.validation == "Warn" else [])

    def _patched(self, kind: Kind, old: Object, media_type: str, change: Any) -> Any:
        if media_type == JSON_PATCH:
            return patch.json_patch(old, change)
        if not isinstance(change, dict):
            raise errors.bad_request("error decoding patch: the patch must be an object")
        if media_type == MERGE:
            return patch.merge_patch(old, change)
        return patch.strategic_merge_patch(old, change, kind.node)

    async def _apply(self, place: Place, body: bytes, options: WriteOptions) -> Answer:
        kind = place.kind
        config, duplicates = decode(body, is_yaml=True, find_duplicates=options.validation != "Ignore")
        if duplicates and options.validation == "Strict":
            raise errors.bad_request(
                "error strict decoding YAML: " + ", ".join(admission.strict_failures([], duplicates))
            )
        if not isinstance(config, dict):
            raise errors.bad_request("error decoding patch: error unmarshaling JSON: the patch must be an object")
        version = str(config.get("apiVersion") or "")
        group, _, number = version.rpartition("/")
        if (version, config.get("kind")) != (kind.api_version, kind.kind):
            raise errors.bad_request(f"invalid object type: {group}/{number}, Kind={config.get('kind') or ''}")
        admission.check_type(kind, config)
        if not isinstance(config.setdefault("metadata", {}), dict):
            raise errors.bad_request("unable to decode: metadata must be an object")
        config["metadata"] = {k: v for k, v in config["metadata"].items() if v is not None}
        admission.check_place(kind, config, place.namespace, place.name)
        warnings = admission.strict_failures([], duplicates)
        live, scope = self._head(place), self._scope(kind, place.subresource)
        if live is None:
            return await self._apply_new(place, config, scope, options, warnings)
        old = kind.load(live)
        self._check_preconditions(place, live, config["metadata"])
        new = managed.apply(old, config, scope, options.manager, self.now(), force=options.force)
        admission.tidy(kind, new)
        entries = new["metadata"].get("managedFields")
        new = admission.prepare_update(kind, old, new, place.subresource)
        new["metadata"].pop("managedFields", None)
        if entries:
            new["metadata"]["managedFields"] = entries
        new = self._with_crd_status(kind, new)
        admission.validate_object(kind, new, old, place.subresource)
        return await self._store(place, live, new, options, 200, warnings, old)

    async def _apply_new(
        self, place: Place, config: Object, scope: Scope, options: WriteOptions, warnings: list[str]
    ) -> Answer:
        kind = place.kind
        if place.subresource:
            raise errors.not_found(kind.plural, kind.group, place.name)
        uid = config["metadata"].get("uid")
        if uid:
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise errors.conflict(kind.plural, kind.group, place.name, why)
        new = managed.apply({}, config, scope, options.manager, self.now(), force=True)
        admission.tidy(kind, new)
        new = self._new(kind, new, options, scope)
        return await self._store(place, None, new, options, 201, warnings)

    # --- delete ---

    async def delete(self, place: Place, options: DeleteOptions) -> Answer:
        """Delete an object, or mark it so where something must be done first."""
        kind, live = place.kind, self._head(place)
        if live is None:
            raise errors.not_found(kind.plural, kind.group, place.name)
        wanted = {"uid": options.uid, "resourceVersion": options.resource_version}
        self._check_preconditions(place, live, {k: v for k, v in wanted.items() if v is not None})
        if kind.resource == "namespaces" and place.name in UNDELETABLE_NAMESPACES:
            raise errors.forbidden(kind.plural, kind.group, place.name, "this namespace may not be deleted")
        obj = kind.load(live)
        if self._must_wait(kind, obj, options.policy):
            self._mark_deleting(kind, obj)
            if admission.unchanged(kind.load(live), obj):
                await self.store.settled(live)
                return Answer(200, obj)
            return await self._store(place, live, obj, WriteOptions(dry_run=options.dry_run), 200, [], kind.load(live))
        if not options.dry_run:
            await self._committed(self.store.delete(live, obj))
        return Answer(200, _deleted(kind, live))

    def _must_wait(self, kind: Kind, obj: Object, policy: str) -> bool:
        finalizers = obj["metadata"].setdefault("finalizers", [])
        wanted = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(policy)
        if wanted and wanted not in finalizers and "deletionTimestamp" not in obj["metadata"]:
            finalizers.append(wanted)
        if not finalizers:
            del obj["metadata"]["finalizers"]
        return bool(finalizers) or kind.resource == "namespaces"

    def _mark_deleting(self, kind: Kind, obj: Object) -> None:
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata:
            return
        metadata["deletionTimestamp"] = self.now()
        metadata["deletionGracePeriodSeconds"] = 0
        if "generation" in metadata:
            metadata["generation"] += 1
        if kind.resource == "namespaces":
            obj["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}

    async def rewrite(self, kind: Kind, live: Stored, obj: Object) -> None:
        """Store what housekeeping changed; an object whose last finalizer is gone goes."""
        await self._store(Place(kind, live.namespace, live.name), live, obj, WriteOptions(), 200, [])

    # --- shared ---

    def _head(self, place: Place) -> Stored | None:
        return self.store.head(place.kind.resource, place.namespace, place.name)

    def _scope(self, kind: Kind, subresource: str) -> Scope:
        ignored = EMPTY
        if subresource == "status":
            ignored = managed.STATUS_ONLY
        elif kind.status:
            ignored = managed.WITHOUT_STATUS
        return Scope(kind.node, kind.api_version, subresource, ignored)

    def _judge(self, kind: Kind, options: WriteOptions, failures: list[str]) -> list[str]:
        if failures and options.validation == "Strict":
            raise admission.refuse_strictly(kind, failures)
        return failures if options.validation == "Warn" else []

    async def _store(
        self,
        place: Place,
        live: Stored | None,
        new: Object,
        options: WriteOptions,
        code: int,
        warnings: list[str],
        old: Object | None = None,
    ) -> Answer:
        kind = place.kind
        if old is not None and live is not None and admission.unchanged(old, new):
            await self.store.settled(live)
            return Answer(code, old, warnings=warnings)
        if options.dry_run:
            return Answer(code, new, warnings=warnings)
        if kind.version != kind.storage_version:
            new = {**new, "apiVersion": f"{kind.group}/{kind.storage_version}"}
        if live is not None and self._may_go(kind, new):
            done = await self._committed(self.store.delete(live, new))
        else:
            done = await self._committed(self.store.put(kind.resource, new, live))
        return Answer(code, None, kind.raw(done), warnings)

    def _may_go(self, kind: Kind, new: Object) -> bool:
        metadata = new["metadata"]
        if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
            return False
        return kind.resource != "namespaces" or not (new.get("spec") or {}).get("finalizers")

    async def _committed(self, change: Any) -> Stored:
        try:
            done: Stored = await change
        except StorageError as failure:
            raise errors.internal(str(failure)) from failure
        return done


def _deleted(kind: Kind, live: Stored) -> Object:
    details = {"name": live.name, "kind": kind.plural, "uid": live.uid}
    if kind.group:
        details["group"] = kind.group
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
