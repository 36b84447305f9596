"""Background work: garbage collection by ownerReferences, namespaces and CRDs on their way out, old events.

Level-triggered: a key says only "look here", and what is to do follows from the state at that moment, so a restart
loses nothing (the sweep at start looks everywhere). Objects are deleted only under their uid.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from slipway_local.apiserver.admission import Object
from slipway_local.apiserver.crds import CLEANUP_FINALIZER
from slipway_local.apiserver.errors import ApiError
from slipway_local.apiserver.registry import Kind, Registry
from slipway_local.apiserver.resources import CRDS, DeleteOptions, Place, Resources
from slipway_local.apiserver.storage import Event, Key, Store, Stored

log = logging.getLogger(__name__)

EVENT_TTL = 3600.0
_SWEEP_SECONDS = 30.0
_RETRY_SECONDS = 1.0
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


class Housekeeping:
    """One worker over a queue of keys."""

    def __init__(self, store: Store, registry: Registry, resources: Resources, clock: Callable[[], float]) -> None:
        self._store = store
        self._registry = registry
        self._resources = resources
        self._clock = clock
        self._queue: dict[Key, None] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        store.observe(self._observe)

    def start(self) -> None:
        """Look at everything once, then at what changes."""
        for item in self._store.each():
            if item.owners or item.deleting:
                self._look(item.key)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._expire_forever())]

    async def stop(self) -> None:
        """End at once; what is left is found again by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the queue ---

    def _look(self, key: Key) -> None:
        self._queue[key] = None
        self._wake.set()

    def _observe(self, event: Event) -> None:
        item = event.new
        if event.type == "DELETED":
            for dependent in self._store.dependents(item.uid):
                self._look(dependent.key)
            if item.owners:
                for owner in self._owners(item):
                    self._look(owner.key)
            self._look_at_container(item)
        elif item.deleting or (item.owners and (event.old is None or event.old.owners != item.owners)):
            self._look(item.key)
            if item.deleting:
                for dependent in self._store.dependents(item.uid):
                    self._look(dependent.key)

    def _look_at_container(self, item: Stored) -> None:
        # What was deleted may be the last thing that a namespace or a definition was waiting for.
        for resource, name in (("namespaces", item.namespace), (CRDS, item.resource)):
            container = self._store.get(resource, "", name) if name else None
            if container is not None and container.deleting:
                self._look(container.key)

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                key = next(iter(self._queue))
                del self._queue[key]
                try:
                    await self._process(key)
                except Exception as failure:
                    if not isinstance(failure, ApiError) or failure.code not in (404, 409):
                        log.warning("housekeeping of %s failed: %s", "/".join(key), failure)
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._look, key)

    # --- one key ---

    async def _process(self, key: Key) -> None:
        item = self._store.get(*key)
        kind = self._registry.of_resource(key[0])
        if item is None or kind is None:
            return
        if item.deleting:
            if kind.resource == "namespaces":
                await self._empty_namespace(kind, item)
                return
            if kind.resource == CRDS:
                await self._empty_definition(kind, item)
                return
            await self._finish_deletion(kind, item)
        elif item.owners:
            await self._check_owners(kind, item)

    def _owner(self, item: Stored, reference: Object) -> Stored | None:
        kind = self._registry.by_kind(reference["apiVersion"], reference["kind"])
        if kind is None:
            return None
        found = self._store.head(kind.resource, item.namespace if kind.namespaced else "", reference["name"])
        return found if found is not None and found.uid == reference["uid"] else None

    def _owners(self, item: Stored) -> list[Stored]:
        references = item.load()["metadata"].get("ownerReferences") or []
        return [owner for reference in references if (owner := self._owner(item, reference)) is not None]

    async def _check_owners(self, kind: Kind, item: Stored) -> None:
        obj = kind.load(item)
        kept, absent, waiting = [], 0, 0
        for reference in obj["metadata"]["ownerReferences"]:
            if self._registry.by_kind(reference["apiVersion"], reference["kind"]) is None:
                kept.append(reference)  # An owner of a kind that is not served may well exist.
                continue
            owner = self._owner(item, reference)
            if owner is None:
                absent += 1
            elif owner.deleting and FOREGROUND in (owner.load()["metadata"].get("finalizers") or []):
                waiting += 1
                kept.append(reference)
            else:
                kept.append(reference)
        if kept and len(kept) > waiting:
            if absent:
                obj["metadata"]["ownerReferences"] = kept
                await self._resources.rewrite(kind, self._current(item), obj)
        elif absent or waiting:
            policy = "Foreground" if waiting and self._store.dependents(item.uid) else "Background"
            await self._delete(kind, item, policy)

    async def _finish_deletion(self, kind: Kind, item: Stored) -> None:
        obj = kind.load(item)
        finalizers: list[str] = obj["metadata"].get("finalizers") or []
        dependents = self._store.dependents(item.uid)
        if ORPHAN in finalizers:
            for dependent in dependents:
                await self._release(dependent, item.uid)
            await self._drop_finalizer(kind, item, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = [d for d in dependents if self._blocks(d, item.uid)]
            if blocking:
                for dependent in dependents:
                    self._look(dependent.key)
            else:
                await self._drop_finalizer(kind, item, FOREGROUND)

    def _blocks(self, dependent: Stored, uid: str) -> bool:
        references = dependent.load()["metadata"].get("ownerReferences") or []
        return any(reference["uid"] == uid and reference.get("blockOwnerDeletion") for reference in references)

    async def _release(self, dependent: Stored, uid: str) -> None:
        kind = self._registry.of_resource(dependent.resource)
        live = self._store.head(*dependent.key)
        if kind is None or live is None:
            return
        obj = kind.load(live)
        metadata = obj["metadata"]
        metadata["ownerReferences"] = [r for r in metadata.get("ownerReferences") or [] if r["uid"] != uid]
        if not metadata["ownerReferences"]:
            del metadata["ownerReferences"]
        await self._resources.rewrite(kind, live, obj)

    async def _drop_finalizer(self, kind: Kind, item: Stored, name: str) -> None:
        live = self._current(item)
        obj = kind.load(live)
        obj["metadata"]["finalizers"] = [f for f in obj["metadata"].get("finalizers") or [] if f != name]
        if not obj["metadata"]["finalizers"]:
            del obj["metadata"]["finalizers"]
        await self._resources.rewrite(kind, live, obj)

    def _current(self, item: Stored) -> Stored:
        live = self._store.head(*item.key)
        if live is None or live.uid != item.uid:
            raise ApiError(404, "NotFound", "gone meanwhile")
        return live

    async def _delete(self, kind: Kind, item: Stored, policy: str = "Background") -> None:
        place = Place(kind, item.namespace, item.name)
        # Somebody else may have been faster.
        with contextlib.suppress(ApiError):
            await self._resources.delete(place, DeleteOptions(policy=policy, uid=item.uid))

    # --- namespaces and definitions ---

    async def _empty_namespace(self, kind: Kind, item: Stored) -> None:
        left = False
        for resident in sorted({k.resource for k in self._registry.kinds() if k.namespaced}):
            resident_kind = self._registry.of_resource(resident)
            for member in self._store.items(resident, item.name):
                left = True
                if resident_kind is not None and not member.deleting:
                    await self._delete(resident_kind, member)
        if left and any(
            self._store.items(resource, item.name)
            for resource in {k.resource for k in self._registry.kinds() if k.namespaced}
        ):
            return
        live = self._current(item)
        obj = kind.load(live)
        obj.setdefault("spec", {}).pop("finalizers", None)
        await self._resources.rewrite(kind, live, obj)

    async def _empty_definition(self, kind: Kind, item: Stored) -> None:
        finalizers: Any = item.load()["metadata"].get("finalizers") or []
        if CLEANUP_FINALIZER not in finalizers:
            return
        served = self._registry.of_resource(item.name)
        for member in self._store.items(item.name):
            if served is not None and not member.deleting:
                await self._delete(served, member)
        if not self._store.items(item.name):
            await self._drop_finalizer(kind, item, CLEANUP_FINALIZER)

    # --- events ---

    async def _expire_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await self.expire_events()

    async def expire_events(self) -> int:
        """Delete the events that were last written an hour ago or earlier; returns how many."""
        kind = self._registry.of_resource("events")
        oldest = self._clock() - EVENT_TTL
        due = [item for item in self._store.items("events") if item.written <= oldest]
        for item in due:
            if kind is not None:
                await self._delete(kind, item)
        return len(due)
