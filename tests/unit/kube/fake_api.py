"""A small API server that can be told to misbehave: the fault injection behind this folder's tests.

It keeps objects in memory and speaks enough of list, watch and write for the runtime, over real HTTP. Everything that
was asked of it is in `requests`, in order. A `Fault` answers in place of the normal handling, or around it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from slipway_operator.kube.config import ConnectionConfig, StaticAuth
from slipway_operator.kube.resource import Resource

Json = dict[str, Any]
Answer = Callable[["Asked"], Awaitable[web.StreamResponse | None]]


@dataclass
class Asked:
    """One request as the server saw it."""

    verb: str
    path: str
    plural: str
    namespace: str
    name: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Json | None
    http: web.Request
    at: float = field(default_factory=time.monotonic)


@dataclass
class Fault:
    """Handles the next `times` requests of a verb (of one resource): returns an answer, or None to go on normally."""

    verb: str
    answer: Answer
    times: int
    plural: str | None = None

    def matches(self, asked: Asked) -> bool:
        return self.times > 0 and self.verb in (asked.verb, "*") and self.plural in (asked.plural, None)


def status(code: int, reason: str, message: str = "injected", **headers: str) -> web.Response:
    """A Status answer."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }
    return web.json_response(body, status=code, headers=headers)


def reject(code: int, reason: str = "Injected", **headers: str) -> Answer:
    async def answer(_: Asked) -> web.Response:
        return status(code, reason, **headers)

    return answer


def delay(seconds: float) -> Answer:
    async def answer(_: Asked) -> None:
        await asyncio.sleep(seconds)

    return answer


def drop(asked: Asked) -> None:
    """Cuts the connection without an answer."""
    transport = asked.http.transport
    if transport is not None:
        transport.abort()


async def close_at_once(asked: Asked) -> web.StreamResponse:
    drop(asked)
    return web.Response()


def stream(*chunks: bytes, end: str = "close") -> Answer:
    """A watch that sends these bytes, then ends: "close" in order, "cut" the connection, or "freeze" with it open."""

    async def answer(asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(asked.http)
        for chunk in chunks:
            await response.write(chunk)
        if end == "freeze":
            await asyncio.sleep(3600)
        if end == "cut":
            await asyncio.sleep(0.02)
            drop(asked)
        return response

    return answer


def line(type_: str, obj: Json) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


class FakeApi:
    """The server. `await start()`, `await stop()`; `stop` and `start` again keep the port and the objects."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.history: list[tuple[int, str, str, Json]] = []
        self.version = 100
        self.compacted = 0
        self.requests: list[Asked] = []
        self.faults: list[Fault] = []
        self.served: set[str] | None = None
        """Plurals with a CRD; None serves everything."""
        self.bookmark_every: float | None = None
        self.duplicate = False
        self.gone_as_event = True
        self.port = 0
        self._pages: dict[str, tuple[list[Json], int]] = {}
        self._watchers: list[tuple[str, asyncio.Queue[bytes | None]]] = []
        self._withheld = 0
        self._runner: web.AppRunner | None = None
        self._thawed = asyncio.Event()
        self._thawed.set()

    # -- for the tests ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        for _, queue in self._watchers:
            queue.put_nowait(None)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def config(self) -> ConnectionConfig:
        return ConnectionConfig(f"http://127.0.0.1:{self.port}", StaticAuth({"Authorization": "Bearer t"}))

    def fault(self, verb: str, answer: Answer, *, times: int = 1, plural: str | None = None) -> Fault:
        self.faults.append(Fault(verb, answer, times, plural))
        return self.faults[-1]

    def asked(self, verb: str, plural: str | None = None) -> list[Asked]:
        return [a for a in self.requests if a.verb == verb and plural in (a.plural, None)]

    def freeze(self) -> None:
        """Open connections stay open and say nothing more; new requests get no answer."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def withhold(self, events: int = 1) -> None:
        """The next events happen, but no open watch tells of them, and none that starts later."""
        self._withheld = events

    def compact(self) -> None:
        """Forgets history: a watch from before now is answered with 410."""
        self.compacted = self.version

    def put(self, res: Resource, name: str, namespace: str = "ns", **content: Any) -> Json:
        """Creates or changes an object as somebody else would; other parts of it stay."""
        old = self.objects.get((res.plural, namespace, name))
        obj = copy.deepcopy(old) if old else {"metadata": {"name": name, "namespace": namespace}}
        metadata = content.pop("metadata", {})
        obj.update(content)
        obj["metadata"].update(metadata)
        return self._store(res.plural, "MODIFIED" if old else "ADDED", obj)

    def remove(self, res: Resource, name: str, namespace: str = "ns") -> None:
        self._drop_object((res.plural, namespace, name))

    def get(self, res: Resource, name: str, namespace: str = "ns") -> Json | None:
        return self.objects.get((res.plural, namespace, name))

    # -- the world -------------------------------------------------------------------------------------------------

    def _store(self, plural: str, type_: str, obj: Json) -> Json:
        self.version += 1
        metadata = obj["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["resourceVersion"] = str(self.version)
        self.objects[plural, metadata.get("namespace", ""), metadata["name"]] = obj
        self._tell(plural, type_, obj)
        return obj

    def _drop_object(self, key: tuple[str, str, str]) -> Json:
        obj = copy.deepcopy(self.objects.pop(key))
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._tell(key[0], "DELETED", obj)
        return obj

    def _tell(self, plural: str, type_: str, obj: Json) -> None:
        if self._withheld:
            self._withheld -= 1
            return
        obj = copy.deepcopy(obj)
        self.history.append((self.version, plural, type_, obj))
        for _ in range(2 if self.duplicate else 1):
            for watched, queue in self._watchers:
                if watched == plural:
                    queue.put_nowait(line(type_, obj))

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        asked = await self._parse(http)
        self.requests.append(asked)
        await self._thawed.wait()
        for fault in self.faults:
            if fault.matches(asked):
                fault.times -= 1
                answer = await fault.answer(asked)
                if answer is not None:
                    return answer
        if self.served is not None and asked.plural not in self.served:
            return status(404, "NotFound", "the server could not find the requested resource")
        handler: Answer = getattr(self, f"_{asked.verb}")
        answer = await handler(asked)
        assert answer is not None
        return answer

    async def _parse(self, http: web.Request) -> Asked:
        parts = http.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        parts += ["", "", ""]
        raw = await http.read()
        body = json.loads(raw) if raw else None
        verbs = {"POST": "create", "PUT": "replace", "DELETE": "delete", "PATCH": "patch", "GET": "get"}
        verb = verbs[http.method]
        if verb == "get" and not parts[1]:
            verb = "watch" if "watch" in http.query else "list"
        if verb == "patch" and "apply" in http.headers["Content-Type"]:
            verb = "apply"
        return Asked(verb, http.path, parts[0], namespace, parts[1], dict(http.query), dict(http.headers), body, http)

    async def _list(self, asked: Asked) -> web.Response:
        limit = int(asked.query.get("limit", 0))
        token = asked.query.get("continue")
        if token:
            if token not in self._pages:
                return status(410, "Expired", "the continue token is too old")
            items, version = self._pages.pop(token)
        else:
            items = [
                copy.deepcopy(obj)
                for (plural, namespace, _), obj in sorted(self.objects.items())
                if plural == asked.plural and asked.namespace in ("", namespace)
            ]
            version = self.version
        metadata: Json = {"resourceVersion": str(version)}
        if limit and len(items) > limit:
            metadata["continue"] = uuid.uuid4().hex
            self._pages[metadata["continue"]] = (items[limit:], version)
            items = items[:limit]
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})

    def expire_pages(self) -> None:
        self._pages.clear()

    async def _watch(self, asked: Asked) -> web.StreamResponse:
        since = int(asked.query["resourceVersion"] or 0)
        if since < self.compacted and not self.gone_as_event:
            return status(410, "Expired", "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(asked.http)
        if since < self.compacted:
            gone = {"kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410}
            await response.write(line("ERROR", gone))
            return response
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, plural, type_, obj in self.history:
            if version > since and plural == asked.plural:
                queue.put_nowait(line(type_, obj))
        watcher = (asked.plural, queue)
        self._watchers.append(watcher)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + float(asked.query.get("timeoutSeconds", 300))
        try:
            while True:
                wait = min(self.bookmark_every or 3600.0, max(0.0, ends_at - loop.time()))
                try:
                    message = await asyncio.wait_for(queue.get(), wait)
                except TimeoutError:
                    if loop.time() >= ends_at:
                        return response
                    message = line("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
                if message is None:
                    return response
                await self._thawed.wait()
                await response.write(message)
        finally:
            self._watchers.remove(watcher)

    async def _get(self, asked: Asked) -> web.Response:
        obj = self.objects.get((asked.plural, asked.namespace, asked.name))
        return web.json_response(obj) if obj else status(404, "NotFound")

    async def _create(self, asked: Asked) -> web.Response:
        assert asked.body is not None
        obj = asked.body
        if (asked.plural, asked.namespace, obj["metadata"]["name"]) in self.objects:
            return status(409, "AlreadyExists")
        return web.json_response(self._store(asked.plural, "ADDED", obj), status=201)

    async def _replace(self, asked: Asked) -> web.Response:
        assert asked.body is not None
        old = self.objects.get((asked.plural, asked.namespace, asked.name))
        if old is None:
            return status(404, "NotFound")
        wanted = asked.body["metadata"].get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        asked.body["metadata"]["uid"] = old["metadata"]["uid"]
        return web.json_response(self._store(asked.plural, "MODIFIED", asked.body))

    async def _patch(self, asked: Asked) -> web.Response:
        assert asked.body is not None
        old = self.objects.get((asked.plural, asked.namespace, asked.name))
        if old is None:
            return status(404, "NotFound")
        wanted = asked.body.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        return web.json_response(self._store(asked.plural, "MODIFIED", _merged(old, asked.body)))

    async def _apply(self, asked: Asked) -> web.Response:
        assert asked.body is not None
        old = self.objects.get((asked.plural, asked.namespace, asked.name))
        merged = _merged(old or {}, asked.body)
        if old == merged:
            return web.json_response(old)
        return web.json_response(self._store(asked.plural, "MODIFIED" if old else "ADDED", merged))

    async def _delete(self, asked: Asked) -> web.Response:
        key = (asked.plural, asked.namespace, asked.name)
        if key not in self.objects:
            return status(404, "NotFound")
        uid = ((asked.body or {}).get("preconditions") or {}).get("uid")
        if uid and uid != self.objects[key]["metadata"]["uid"]:
            return status(409, "Conflict")
        return web.json_response(self._drop_object(key))


def _merged(old: Json, patch: Json) -> Json:
    result = copy.deepcopy(old)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = _merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result
