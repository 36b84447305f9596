"""A kind of object to test with, and a small client that says what a server answered: the same for every server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

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
        "needs": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "integer"}},
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
        {"rule": "self.size != 7", "messageExpression": "'seven is unlucky in ' + self.color"},
        {"rule": "!has(self.needs) || self.needs['missing'] == 1", "message": "needs.missing must be 1"},
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

    async def until(self, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
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
    """HTTP as a user who may do everything, in one namespace."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str = "default") -> None:
        self._session = session
        self.namespace = namespace

    def core(self, plural: str, namespace: str | None = None) -> str:
        """The path of a collection of a core kind."""
        return f"/api/v1/namespaces/{namespace or self.namespace}/{plural}"

    def test(self, plural: str, namespace: str | None = None, version: str = "v1") -> str:
        """The path of a collection of a kind of test.example.com."""
        return f"/apis/test.example.com/{version}/namespaces/{namespace or self.namespace}/{plural}"

    @property
    def widgets(self) -> str:
        """The path of the Widgets."""
        return self.test("widgets")

    @property
    def config_maps(self) -> str:
        """The path of the ConfigMaps."""
        return self.core("configmaps")

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

    async def make_namespace(self, suffix: str) -> str:
        """Create a namespace beside the test's own; its name."""
        name = f"{self.namespace}-{suffix}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        assert (await self.post("/api/v1/namespaces", body)).code == 201
        return name

    async def make(self, obj: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
        """Create a Widget or ConfigMap that must be accepted."""
        path = self.test("widgets", namespace) if obj["kind"] == "Widget" else self.core("configmaps", namespace)
        reply = await self.post(path, obj)
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

    async def eventually(self, check: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
        """Wait until something becomes true."""

        async def wait() -> None:
            while not await check():  # noqa: ASYNC110 - the server is the one who knows
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), seconds)

    async def gone(self, path: str, seconds: float = 10.0) -> None:
        """Wait until an object is no longer there."""

        async def check() -> bool:
            return (await self.get(path)).code == 404

        await self.eventually(check, seconds)
