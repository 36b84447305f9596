"""The API server's life: open the state, install what every server has, answer whoever comes in, stop.

The state directory belongs to one process at a time; a lock says so. The port is kept across restarts, so clients that
lost their server find the next one (entrance.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from slipway_api.crd import crds as slipway_crds
from slipway_local.apiserver.builtin import builtin_kinds, initial_objects
from slipway_local.apiserver.codec import same
from slipway_local.apiserver.crds import kinds_of
from slipway_local.apiserver.entrance import BACKLOG, Entrance, entrance
from slipway_local.apiserver.errors import ApiError
from slipway_local.apiserver.handlers import Api
from slipway_local.apiserver.housekeeping import Housekeeping
from slipway_local.apiserver.rayapi import ray_crds
from slipway_local.apiserver.reading import Reader
from slipway_local.apiserver.registry import Registry
from slipway_local.apiserver.rendering import Renderer
from slipway_local.apiserver.resources import CRDS, Place, Resources, WriteOptions
from slipway_local.apiserver.schema import SchemaError, apply_defaults
from slipway_local.apiserver.storage import Event, Store
from slipway_local.apiserver.watch import Watcher

log = logging.getLogger(__name__)

_INSTALLER = "slipway-local"


class ApiServer:
    """An API server on 127.0.0.1 that keeps everything in one directory.

    It is given the directory, or an entrance to it that is open already. Raises StorageError, and what `entrance` does.
    """

    def __init__(
        self,
        where: Path | Entrance,
        *,
        crds: list[dict[str, Any]] | None = None,
        clock: Callable[[], float] = time.time,
        history_limit: int = 8192,
        bookmark_seconds: float = 30.0,
    ) -> None:
        self._where = where
        self._crds = [*ray_crds(), *(slipway_crds() if crds is None else crds)]
        self._clock = clock
        self._history_limit = history_limit
        self._bookmark_seconds = bookmark_seconds
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> ApiServer:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        where = self._where
        self.entrance = where if isinstance(where, Entrance) else stack.enter_context(entrance(where))
        store = Store(self.entrance.state_dir / "state.db", clock=self._clock, history_limit=self._history_limit)
        store.open()
        registry = Registry(builtin_kinds())
        definitions = Definitions(store, registry)
        store.start()
        stack.push_async_callback(store.close)
        self.resources = Resources(store, registry, self._clock)
        self.housekeeping = Housekeeping(store, registry, self.resources, self._clock)
        await self._install(definitions)
        self.housekeeping.start()
        stack.push_async_callback(self.housekeeping.stop)
        renderer = Renderer(self._clock)
        reader = Reader(store, renderer, self._clock)
        watcher = Watcher(store, renderer, bookmark_seconds=self._bookmark_seconds)
        api = Api(self.entrance.token, registry, self.resources, reader, renderer, watcher)
        server = web.Server(api.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener, tls = self.entrance.listener, self.entrance.tls
        await web.SockSite(runner, listener, ssl_context=tls, backlog=BACKLOG).start()

    async def _install(self, definitions: Definitions) -> None:
        for plural, obj in initial_objects():
            await self._ensure(plural, obj, replace=False)
        for crd in self._crds:
            await self._ensure("customresourcedefinitions", crd, replace=True)
        await definitions.migrate()

    async def _ensure(self, plural: str, obj: dict[str, Any], *, replace: bool) -> None:
        """Create an object that every server has; bring a definition up to date that this server made."""
        registry, store = self.resources.registry, self.resources.store
        group, _, version = obj["apiVersion"].rpartition("/")
        kind = registry.get(group, version, plural)
        assert kind is not None
        options = WriteOptions(manager=_INSTALLER)
        live = store.head(kind.resource, "", obj["metadata"]["name"])
        if live is None:
            await self.resources.create(kind, "", {**obj, "metadata": dict(obj["metadata"])}, options)
            return
        current = kind.load(live)
        managers = {entry["manager"] for entry in current["metadata"].get("managedFields") or []}
        if not replace or live.deleting or managers != {_INSTALLER}:
            return  # What somebody else has changed or replaced is theirs now.
        wanted = {**current, "spec": obj["spec"]}
        try:
            await self.resources.update(Place(kind, "", live.name), wanted, options)
        except ApiError as failure:
            log.warning("%s is kept as it is: %s", live.name, failure.message)


class Definitions:
    """Keeps the registry in step with the stored CustomResourceDefinitions."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._changed: set[str] = set()
        for item in store.items(CRDS):
            self._serve(item.load())
        store.observe(self._observe)

    def _observe(self, event: Event) -> None:
        if event.new.resource != CRDS:
            return
        new = event.new.load()
        if event.type == "DELETED":
            self._registry.drop(new["spec"]["group"], new["spec"]["names"]["plural"])
            return
        if event.old is not None and same(event.old.load()["spec"], new["spec"]):
            return
        self._registry.drop(new["spec"]["group"], new["spec"]["names"]["plural"])
        self._serve(new)
        if event.old is not None:
            self._changed.add(event.new.name)

    def _serve(self, crd: dict[str, Any]) -> None:
        try:
            for kind in kinds_of(crd):
                self._registry.add(kind)
        except SchemaError as failure:
            log.error("%s is stored but cannot be served: %s", crd["metadata"]["name"], failure)

    async def migrate(self) -> None:
        """Fill in defaults that a definition gained while this server was away, as a read from etcd would."""
        for resource in sorted(self._changed):
            kind = self._registry.of_resource(resource)
            for item in self._store.items(resource):
                obj = item.load()
                if kind is not None:
                    apply_defaults(obj, kind.node)
                    if not same(obj, item.load()):
                        await self._store.put(resource, obj, item)
        self._changed.clear()
