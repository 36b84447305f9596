"""The API server's life: open the state, install what every server has, listen on loopback, write the kubeconfig, stop.

The state directory belongs to one process at a time; a lock says so. The port is kept across restarts, so clients that
lost their server find the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from slipway_api.crd import crds as slipway_crds
from slipway_local.apiserver import credentials
from slipway_local.apiserver.builtin import builtin_kinds, initial_objects
from slipway_local.apiserver.codec import same
from slipway_local.apiserver.crds import kinds_of
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
_BACKLOG = 1024


class StateDirInUseError(Exception):
    """Another process serves from this state directory."""


class ApiServer:
    """An API server on 127.0.0.1 that keeps everything in one directory.

    `port=0` takes the port that the directory had before, if it is free, else any. Raises StateDirInUseError,
    StorageError, or OSError where an explicit port is taken.
    """

    def __init__(
        self,
        state_dir: Path | str,
        port: int = 0,
        *,
        crds: list[dict[str, Any]] | None = None,
        clock: Callable[[], float] = time.time,
        history_limit: int = 8192,
        bookmark_seconds: float = 30.0,
    ) -> None:
        self.state_dir = Path(state_dir)
        self._asked_port = port
        self._crds = [*ray_crds(), *(slipway_crds() if crds is None else crds)]
        self._clock = clock
        self._history_limit = history_limit
        self._bookmark_seconds = bookmark_seconds
        self._stack = contextlib.AsyncExitStack()
        self.kubeconfig_path = self.state_dir / "kubeconfig"
        self.url = ""
        self.token = ""
        self.ca = b""

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
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(_locked(self.state_dir))
        self.token = credentials.load_token(self.state_dir)
        tls, self.ca = credentials.tls_context(self.state_dir)
        store = Store(self.state_dir / "state.db", clock=self._clock, history_limit=self._history_limit)
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
        api = Api(self.token, registry, self.resources, reader, renderer, watcher)
        server = web.Server(api.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = _listen(self.state_dir, self._asked_port)
        await web.SockSite(runner, listener, ssl_context=tls, backlog=_BACKLOG).start()
        port = listener.getsockname()[1]
        credentials.write_private(self.state_dir / "port", str(port).encode())
        self.url = f"https://127.0.0.1:{port}"
        credentials.write_private(self.kubeconfig_path, credentials.kubeconfig(self.url, self.ca, self.token))

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


@contextlib.contextmanager
def _locked(state_dir: Path) -> Any:
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirInUseError(f"{state_dir}: another API server serves from this directory") from None
        yield
    finally:
        os.close(descriptor)


def _listen(state_dir: Path, asked: int) -> socket.socket:
    candidates = [asked]
    if not asked:
        with contextlib.suppress(OSError, ValueError):
            candidates.insert(0, int((state_dir / "port").read_text()))
    for position, port in enumerate(candidates):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            if position == len(candidates) - 1:
                raise
            continue
        return listener
    raise AssertionError("unreachable")


async def serve(state_dir: Path, port: int, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
    """Serve until `stop` is set; `announce` gets the URL once requests are answered."""
    async with ApiServer(state_dir, port) as server:
        announce(server.url)
        await stop.wait()
