"""A real server on a real socket for every test, and a small client that says what it got."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from slipway_local.apiserver import ApiServer

WIDGETS = "/apis/test.example.com/v1/namespaces/default/widgets"

_SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10, "description": "How big."},
        "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "label": {"type": "string", "maxLength": 8, "minLength": 2, "pattern": "^[a-z]+$"},
        "ratio": {"type": "number", "exclusiveMinimum": True, "minimum": 0},
        "when": {"type": "string", "format": "date-time"},
        "port": {"x-kubernetes-int-or-string": True},
        "maybe": {"type": "string", "nullable": True},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 5, "items": {"type": "string"}},
        "atoms": {"type": "array", "items": {"type": "string"}},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "amount": {"type": "integer", "default": 1},
                    "note": {"type": "string"},
                },
                "x-kubernetes-validations": [
                    {
                        "rule": "!has(oldSelf.note) || has(self.note)",
                        "message": "note may not be removed",
                    }
                ],
            },
        },
        "nested": {
            "type": "object",
            "default": {},
            "properties": {"depth": {"type": "integer", "default": 3}},
        },
        "fixed": {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}],
        },
    },
    "x-kubernetes-validations": [
        {"rule": "!has(self.ratio) || self.ratio < 100.0", "message": "ratio is too high", "fieldPath": ".ratio"},
        {"rule": "self.size != 7", "messageExpression": "'seven is unlucky: ' + string(self.size)"},
        {"rule": "!has(self.free) || self.free.missing == 1", "message": "needs free.missing"},
    ],
}

WIDGET_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.example.com"},
    "spec": {
        "group": "test.example.com",
        "scope": "Namespaced",
        "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["wd"], "categories": ["toys"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "description": "A thing to test with.",
                        "properties": {
                            "spec": _SPEC,
                            "status": {
                                "type": "object",
                                "properties": {
                                    "state": {"type": "string"},
                                    "done": {"type": "integer"},
                                    "conditions": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["type"],
                                        "items": {
                                            "type": "object",
                                            "required": ["type", "status"],
                                            "properties": {
                                                "type": {"type": "string"},
                                                "status": {"type": "string"},
                                                "reason": {"type": "string"},
                                            },
                                        },
                                    },
                                },
                            },
                        },
                        "x-kubernetes-validations": [
                            {"rule": "self.metadata.name.size() <= 20", "message": "name is too long"}
                        ],
                    }
                },
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                    {
                        "name": "Ready",
                        "type": "string",
                        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
                    },
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "selectableFields": [{"jsonPath": ".spec.color"}],
            }
        ],
    },
}


@dataclass
class Reply:
    """Status code, parsed body and headers of one answer."""

    code: int
    body: Any
    headers: Any

    @property
    def message(self) -> str:
        """The message of a Status."""
        return str(self.body.get("message", ""))


@dataclass
class Stream:
    """A watch that is under way; events in the order of arrival."""

    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, event: dict[str, Any]) -> None:
        """Take an event in."""
        self.events.append(event)
        self._news.set()

    async def until(self, count: int, seconds: float = 5.0) -> list[dict[str, Any]]:
        """The first events, once there are that many."""

        async def wait() -> None:
            while len(self.events) < count:
                self._news.clear()
                await self._news.wait()

        await asyncio.wait_for(wait(), seconds)
        return self.events[:count]

    def said(self) -> list[tuple[str, str]]:
        """(type, name) of every event."""
        return [(event["type"], event["object"].get("metadata", {}).get("name", "")) for event in self.events]


class Client:
    """HTTP with the server's credentials."""

    widgets = WIDGETS

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session

    async def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **extra: Any
    ) -> Reply:
        """One request."""
        headers = {"Content-Type": content_type} if body is not None else {}
        headers |= extra.pop("headers", {})
        data = body if body is None or isinstance(body, (bytes, str)) else orjson.dumps(body)
        async with self._session.request(method, path, data=data, headers=headers, **extra) as response:
            raw = await response.read()
            return Reply(response.status, orjson.loads(raw) if raw[:1] in b"{[" else raw.decode(), response.headers)

    async def get(self, path: str, **params: str) -> Reply:
        """GET"""
        return await self.call("GET", path, params=params)

    async def post(self, path: str, body: Any, **params: str) -> Reply:
        """POST"""
        return await self.call("POST", path, body, params=params)

    async def put(self, path: str, body: Any, **params: str) -> Reply:
        """PUT"""
        return await self.call("PUT", path, body, params=params)

    async def merge(self, path: str, body: Any, **params: str) -> Reply:
        """PATCH with a JSON merge patch."""
        return await self.call("PATCH", path, body, "application/merge-patch+json", params=params)

    async def apply(self, path: str, body: Any, manager: str = "me", **params: str) -> Reply:
        """PATCH with server-side apply."""
        query = {"fieldManager": manager, **params}
        return await self.call("PATCH", path, body, "application/apply-patch+yaml", params=query)

    async def delete(self, path: str, body: Any = None, **params: str) -> Reply:
        """DELETE"""
        return await self.call("DELETE", path, body, params=params)

    def widget(self, name: str, /, metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        """A Widget."""
        return {
            "apiVersion": "test.example.com/v1",
            "kind": "Widget",
            "metadata": {"name": name, **(metadata or {})},
            "spec": {"size": 1, **spec},
        }

    def config_map(self, name: str, /, metadata: dict[str, Any] | None = None, **data: str) -> dict[str, Any]:
        """A ConfigMap."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, **(metadata or {})},
            "data": data,
        }

    async def make(self, obj: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
        """Create a Widget or ConfigMap that must be accepted."""
        path = WIDGETS if obj["kind"] == "Widget" else "/api/v1/namespaces/default/configmaps"
        reply = await self.post(path.replace("default", namespace), obj)
        assert reply.code == 201, reply.body
        made: dict[str, Any] = reply.body
        return made

    @contextlib.asynccontextmanager
    async def watch(self, path: str, headers: dict[str, str] | None = None, **params: str) -> AsyncIterator[Stream]:
        """A watch, started when the body is entered."""
        stream = Stream()
        async with self._session.get(path, params={"watch": "true", **params}, headers=headers) as response:
            assert response.status == 200, await response.text()

            async def read() -> None:
                async for line in response.content:
                    stream.add(orjson.loads(line))
                stream.ended = True

            task = asyncio.create_task(read())
            try:
                yield stream
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def eventually(self, check: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
        """Wait until something becomes true."""

        async def wait() -> None:
            while not await check():  # noqa: ASYNC110 - the server is the one who knows
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), seconds)

    async def gone(self, path: str) -> None:
        """Wait until an object is no longer there."""

        async def check() -> bool:
            return (await self.get(path)).code == 404

        await self.eventually(check)


@contextlib.asynccontextmanager
async def _connected(server: ApiServer) -> AsyncIterator[Client]:
    context = ssl.create_default_context(cadata=server.ca.decode())
    headers = {"Authorization": f"Bearer {server.token}", "User-Agent": "tester/1"}
    connector = aiohttp.TCPConnector(ssl=context, limit=200)
    async with aiohttp.ClientSession(server.url, headers=headers, connector=connector) as session:
        yield Client(server, session)


@pytest.fixture
def connect() -> Callable[[ApiServer], Any]:
    """Open a client to a server that the test itself has started."""
    return _connected


@pytest.fixture
def widget_crd() -> dict[str, Any]:
    """The test's own CRD, to change at will."""
    copied: dict[str, Any] = orjson.loads(orjson.dumps(WIDGET_CRD))
    return copied


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Client]:
    """A client to a fresh server that also serves Widgets."""
    async with ApiServer(tmp_path / "state", crds=[WIDGET_CRD]) as server, _connected(server) as client:
        yield client
