"""A proxy between one client and an API server that breaks on purpose what networks and servers break by accident.

It listens on plain HTTP on loopback, passes everything on with the client's own credentials, and writes down which
verbs were used on which resources: that is what an RBAC role has to allow. It changes no object.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from slipway_operator.kube.config import ConnectionConfig

_METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
# Hop by hop, or set anew by the HTTP library.
_NOT_PASSED_ON = {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "date", "server"}
_EXPIRED = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": 410,
        "reason": "Expired",
        "message": "injected: too old resource version",
    },
}
WRITES = frozenset({"create", "update", "patch", "delete"})


@dataclass(frozen=True)
class Asked:
    """One request, as RBAC sees it."""

    verb: str
    resource: str  # "trainjobs.slipway.dev/status"; "" for what is no resource
    at: float  # loop time
    applies: bool = False  # server-side apply: it creates what is not there


@dataclass
class Fault:
    """What happens to requests that match, instead of or on top of being passed on."""

    act: Callable[[web.Request, Passed], Awaitable[web.StreamResponse]]
    verbs: frozenset[str]
    resource: str  # "" for every one
    every: int = 1  # one in so many
    times: int | None = None  # None: until it is lifted
    seen: int = 0
    hit: int = 0

    def takes(self, asked: Asked) -> bool:
        """Whether this request is one of those; counts it."""
        if asked.verb not in self.verbs or (self.resource and asked.resource != self.resource):
            return False
        if self.times is not None and self.hit >= self.times:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.hit += 1
        return True


Passed = Callable[[], Awaitable[web.StreamResponse]]
"""Passes the request on, and answers with the server's answer."""


def reject(status: int, reason: str, *, retry_after: int | None = None) -> Callable[..., Awaitable[web.Response]]:
    """The server is never asked."""

    async def act(request: web.Request, passed: Passed) -> web.Response:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason}
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return web.json_response({**body, "message": "injected"}, status=status, headers=headers)

    return act


def delay(seconds: float) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The server is asked late."""

    async def act(request: web.Request, passed: Passed) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await passed()

    return act


async def lose_answer(request: web.Request, passed: Passed) -> web.StreamResponse:
    """The server does it, and its answer never arrives."""
    answer = await passed()
    if request.transport is not None:
        request.transport.abort()
    return answer


@dataclass
class _Stream:
    """An open watch."""

    resource: str
    response: web.StreamResponse
    request: web.Request
    frozen: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Use as an async context manager; `connection` is for the client under test."""

    def __init__(self, upstream: ConnectionConfig) -> None:
        """`upstream`: where the API server is, and whose rights the client has."""
        self._upstream = upstream
        self._faults: list[Fault] = []
        self._streams: list[_Stream] = []
        self._stack = contextlib.AsyncExitStack()
        self._session: aiohttp.ClientSession
        self.asked: list[Asked] = []
        """Every request so far."""
        self.verbs: set[str] = set()
        """"resource verb" of every request so far that was not refused by a fault."""
        self.url = ""

    @property
    def connection(self) -> ConnectionConfig:
        """How the client under test reaches the API server through this proxy."""
        return ConnectionConfig(server=self.url, auth=self._upstream.auth)

    async def __aenter__(self) -> FaultProxy:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._upstream.tls or True)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        )
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.done.set()
        await self._stack.aclose()

    # -- faults ----------------------------------------------------------------------------------------------------

    def fault(
        self,
        act: Callable[..., Awaitable[web.StreamResponse]],
        verbs: Iterable[str] = WRITES,
        resource: str = "",
        *,
        every: int = 1,
        times: int | None = None,
    ) -> Fault:
        """From now on, for requests with these verbs on that resource."""
        fault = Fault(act, frozenset(verbs), resource, every, times)
        self._faults.append(fault)
        return fault

    def lift(self) -> None:
        """No fault any more; frozen watches stay frozen, as a half-open connection does."""
        self._faults.clear()

    async def cut_watches(self, resource: str = "") -> int:
        """Ends open watches in the middle of a line; how many."""
        cut = 0
        for stream in self._open(resource):
            with contextlib.suppress(ConnectionError):
                await stream.response.write(b'{"type":"MODIFIED","object":{"kind":"')
            if stream.request.transport is not None:
                stream.request.transport.abort()
            stream.done.set()
            cut += 1
        return cut

    async def expire_watches(self, resource: str = "") -> int:
        """Answers open watches with an ERROR event, 410; how many."""
        told = 0
        for stream in self._open(resource):
            with contextlib.suppress(ConnectionError):
                await stream.response.write(json.dumps(_EXPIRED).encode() + b"\n")
            stream.done.set()
            told += 1
        return told

    def freeze_watches(self, resource: str = "") -> int:
        """Open watches stay open and say nothing more, not even bookmarks; how many."""
        streams = self._open(resource)
        for stream in streams:
            stream.frozen = True
        return len(streams)

    def open_watches(self, resource: str = "") -> int:
        """How many watches are open and not frozen."""
        return sum(1 for stream in self._open(resource) if not stream.frozen)

    def _open(self, resource: str) -> list[_Stream]:
        return [s for s in self._streams if not s.done.is_set() and resource in ("", s.resource)]

    # -- what was asked --------------------------------------------------------------------------------------------

    def busiest_second(self, since: float) -> int:
        """The most requests within one second from that loop time on."""
        times = [asked.at for asked in self.asked if asked.at >= since]
        most, start = 0, 0
        for end, at in enumerate(times):
            while at - times[start] > 1.0:
                start += 1
            most = max(most, end - start + 1)
        return most

    # -- passing on ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = _read(request, asyncio.get_running_loop().time())
        self.asked.append(asked)

        async def passed() -> web.StreamResponse:
            return await self._pass(request, asked)

        fault = next((fault for fault in self._faults if fault.takes(asked)), None)
        return await (passed() if fault is None else fault.act(request, passed))

    async def _pass(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON}
        url = self._upstream.server + request.raw_path
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        if asked.resource:
            # Before the answer: a client that leaves without waiting for it has used its right all the same.
            self.verbs.add(f"{asked.resource} {asked.verb}")
        try:
            async with self._session.request(
                request.method, URL(url, encoded=True), data=await request.read(), headers=headers, timeout=timeout
            ) as answer:
                if asked.applies and answer.status == 201:
                    self.verbs.add(f"{asked.resource} create")
                if asked.verb == "watch" and answer.status == 200:
                    return await self._stream(request, asked, answer)
                kept = {n: v for n, v in answer.headers.items() if n.lower() not in _NOT_PASSED_ON}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        except (aiohttp.ClientError, OSError):
            if request.transport is not None:  # the server is gone, and so is this connection
                request.transport.abort()
            return web.Response(status=502)

    async def _stream(self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream = _Stream(asked.resource, response, request)
        self._streams.append(stream)
        copying = asyncio.create_task(_copy(stream, answer))
        try:
            ended = asyncio.create_task(stream.done.wait())
            await asyncio.wait({copying, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
        finally:
            copying.cancel()
            stream.done.set()
            self._streams.remove(stream)
        return response


async def _copy(stream: _Stream, answer: aiohttp.ClientResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for chunk in answer.content.iter_any():
            if stream.frozen:
                await stream.done.wait()
            await stream.response.write(chunk)


def _read(request: web.Request, at: float) -> Asked:
    """The request's verb and resource (https://kubernetes.io/docs/reference/access-authn-authz/authorization)."""
    parts = request.path.strip("/").split("/")
    group = "" if parts[0] == "api" else parts[1] if len(parts) > 1 else ""
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    resource = f"{rest[0]}.{group}" if rest and group else (rest[0] if rest else "")
    if len(rest) > 2:
        resource += f"/{rest[2]}"
    verb = _METHODS.get(request.method, request.method.lower())
    if verb == "get" and len(rest) == 1:
        verb = "watch" if "watch" in request.query else "list"
    applies = request.content_type == "application/apply-patch+yaml"
    return Asked(verb, resource, at, applies)
