"""Read your own writes: a key is held until the cache shows what its last reconcile wrote.

A reconciler that runs on a cache from before its own write creates the child a second time or deletes the wrong one.
So the version (and for a delete the UID) that the server answered with is remembered, and the key waits until the
cache has got there (the idea of KEP-5647). A cap keeps a broken watch from holding keys for ever. This file never
talks to the server.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import Json, Key, Resource, at_least, key_of, uid_of, version_of
from slipway_operator.kube.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Write:
    """One write that the cache has to show."""

    target: Key
    uid: str
    version: str
    delete: bool
    give_up_at: float

    def seen_in(self, store: Store) -> bool:
        cached = store.get(self.target)
        if self.delete:
            return cached is None or uid_of(cached) != self.uid or bool(cached["metadata"].get("deletionTimestamp"))
        if cached is not None and uid_of(cached) == self.uid and at_least(version_of(cached), self.version):
            return True
        # All events of one watch come in order: one that is later than the write means that the write was shown.
        return at_least(store.resource_version, self.version) is True


class Expectations:
    """What each key has written and its cache has not shown yet."""

    def __init__(self, name: str, *stores: Store, cap: float = 30.0, metrics: Metrics | None = None) -> None:
        """`stores` are the caches of the kinds that are written; `cap` is the longest hold in seconds.

        A written object must fall under its store's selectors, or its key is held until the cap each time.
        """
        self._name = name
        self._stores = {store.resource: store for store in stores}
        self._cap = cap
        self._writes: dict[tuple[Key, Resource], dict[Key, _Write]] = {}
        self._metrics = metrics or Metrics()

    def wrote(self, key: Key, resource: Resource, answer: Json) -> None:
        """Call with the server's answer to a create, apply, patch or replace that was done for `key`."""
        self._remember(key, resource, answer, delete=False)

    def deleted(self, key: Key, resource: Resource, obj: Json) -> None:
        """Call with the object whose delete the server has accepted."""
        self._remember(key, resource, obj, delete=True)

    def _remember(self, key: Key, resource: Resource, obj: Json, *, delete: bool) -> None:
        if resource not in self._stores:
            raise ValueError(f"{self._name} has no cache of {resource.label} to wait for")
        give_up_at = asyncio.get_running_loop().time() + self._cap
        write = _Write(key_of(obj), uid_of(obj), version_of(obj), delete, give_up_at)
        self._writes.setdefault((key, resource), {})[write.target] = write  # a later write implies the earlier

    def ready(self, key: Key, store: Store) -> bool:
        """Whether this cache shows all that was written for the key (or the cap has passed)."""
        writes = self._writes.get((key, store.resource))
        if not writes:
            return True
        now = asyncio.get_running_loop().time()
        for target, write in tuple(writes.items()):
            if write.seen_in(store):
                del writes[target]
            elif now >= write.give_up_at:
                log.warning("the cache of %s did not show %s within %s s", store.resource.label, target, self._cap)
                self._metrics.stale_holds.labels(self._name, "given_up").inc()
                del writes[target]
        if writes:
            return False
        del self._writes[key, store.resource]
        return True

    def hold(self, key: Key) -> float:
        """Seconds for which the key has to wait at most; 0 when it may be worked on now."""
        waits = [0.0]
        now = asyncio.get_running_loop().time()
        for resource, store in self._stores.items():
            if not self.ready(key, store):
                waits += [write.give_up_at - now for write in self._writes[key, resource].values()]
        if len(waits) > 1:
            self._metrics.stale_holds.labels(self._name, "held").inc()
        return max(waits)

    def forget(self, key: Key) -> None:
        """Drops what is remembered for a key whose object is gone."""
        for resource in self._stores:
            self._writes.pop((key, resource), None)
