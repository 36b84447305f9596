"""The REST client: the API's verbs on raw JSON objects.

Raw JSON costs a quarter of the generated client's CPU per request, and an eighth of its memory per object. What must
hold for every request (deadline, guard, limiter, retries) is in transport.py. This file never decodes objects into
models and never decides to repeat a write.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal, Self

import aiohttp
import orjson

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.config import ConnectionConfig
from slipway_operator.kube.errors import BrokenStream, Expired, Transient, error_from_status
from slipway_operator.kube.limiter import AdaptiveLimiter
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import Json, Resource
from slipway_operator.kube.transport import CONNECT_SECONDS, Call, Connections, Transport, foreign_errors

Items = list[Json]
Propagation = Literal["Background", "Foreground", "Orphan"]

_JSON = "application/json"
_METADATA = "application/json;as={};g=meta.k8s.io;v=v1"
# An object is at most about 3 MiB in any API server; a longer line is not a watch event.
_LONGEST_LINE = 16 * 1024 * 1024


class Client:
    """Talks to one API server. Use as an async context manager, or call `close`."""

    def __init__(
        self,
        config: ConnectionConfig,
        *,
        limiter: AdaptiveLimiter | None = None,
        user_agent: str = "slipway",
        guard: Callable[[], None] | None = None,
        request_timeout: float = 30.0,
        attempts: int = 3,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`guard` runs right before every write and raises to stop it. `request_timeout` (seconds) bounds each call,
        with the limiter's wait and all retries in it; `attempts` bounds the tries within a call.
        """
        self.config = config
        self._metrics = metrics or Metrics()
        self._connections = Connections(config, user_agent)
        self._owns_connections = True
        self._transport = Transport(
            config,
            self._connections,
            limiter=limiter,
            guard=guard,
            request_timeout=request_timeout,
            attempts=attempts,
            backoff=backoff or Backoff(0.1, 5.0),
            rng=rng or random.Random(),
            metrics=self._metrics,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; a view made by `unguarded` leaves them to the client that it was made from."""
        if self._owns_connections:
            await self._connections.close()

    def unguarded(self) -> Client:
        """A view on the same connections without guard, limiter and retries: for the lease, which the first two depend
        on and which has its own idea of when to try again.
        """
        view = Client(self.config, attempts=1, request_timeout=self._transport.request_timeout, metrics=self._metrics)
        view._connections = view._transport.connections = self._connections
        view._owns_connections = False
        return view

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(self, res: Resource, namespace: str | None, name: str) -> Json:
        """One object. Raises NotFound."""
        return await self._json("get", "GET", res.path(namespace, name))

    async def list(
        self,
        res: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = 500,
    ) -> tuple[Items, str]:
        """All objects and the version of that list, fetched page by page of `limit` objects.

        When the pages expire under way (a slow reader, a busy etcd), one unpaged request takes their place.
        """
        for page_size in (limit, 0):
            items: Items = []
            version = ""
            pages = self.list_pages(
                res, namespace, label_selector=label_selector, field_selector=field_selector, limit=page_size
            )
            try:
                async with contextlib.aclosing(pages):
                    async for page, version in pages:  # noqa: B007 - the last page's version is the list's
                        items += page
            except Expired:
                if page_size == 0:
                    raise
            else:
                return items, version
        raise AssertionError("unreachable")

    async def list_pages(
        self,
        res: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = 500,
        metadata_only: bool = False,
    ) -> AsyncGenerator[tuple[Items, str], None]:
        """Yields (objects, resourceVersion) page by page; the version is the same in all pages of one list.

        Raises Expired when the list is too old to be continued: start again.
        """
        query = _selectors(label_selector, field_selector)
        if limit:
            query["limit"] = str(limit)
        accept = f"{_METADATA.format('PartialObjectMetadataList')},{_JSON}" if metadata_only else _JSON
        while True:
            page = await self._json("list", "GET", res.path(namespace), query=query, accept=accept)
            metadata = page.get("metadata") or {}
            items: Items = page.get("items") or []
            for item in items:  # the items of a list leave out what the list says once
                item["apiVersion"], item["kind"] = res.api_version, res.kind
            yield items, str(metadata.get("resourceVersion") or "")
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        res: Resource,
        namespace: str | None,
        resource_version: str,
        *,
        timeout_seconds: float,
        inactivity_timeout: float,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
        on_open: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Json, None]:
        """Yields raw events, BOOKMARK and ERROR among them, until the server ends the stream.

        `timeout_seconds` is asked of the server. Raises Transient when nothing at all arrives for
        `inactivity_timeout` seconds (a half-open connection looks like a quiet one), or the connection breaks;
        BrokenStream when a line is not an event. A last line that was cut off is dropped: it comes again when
        the watch resumes from the last version seen. `on_open` runs when the server has accepted the watch.
        """
        query = {
            **_selectors(label_selector, field_selector),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_seconds))),
        }
        accept = f"{_METADATA.format('PartialObjectMetadata')},{_JSON}" if metadata_only else _JSON
        call = Call("watch", "GET", res.path(namespace), query, None, _JSON, accept)
        timeouts = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=inactivity_timeout)
        with foreign_errors(str(call)):
            async with asyncio.timeout(self._transport.request_timeout):
                opened = await self._transport.open(call, timeouts)
            with contextlib.closing(opened) as response:
                self._metrics.requests.labels("watch", response.status).inc()
                if response.status != 200:
                    body = await response.read()
                    raise error_from_status(response.status, body, response.headers)
                if on_open is not None:
                    on_open()
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                    if len(rest) > _LONGEST_LINE:
                        raise BrokenStream(0, "BrokenStream", f"a line of more than {_LONGEST_LINE} bytes")
                    for line in lines:
                        if line.strip():
                            yield _event(line, res)

    async def discover(self, group_version: str) -> Items:
        """The resources of one group and version ("ray.io/v1", "v1"). Raises NotFound when there is none."""
        prefix = "/apis/" if "/" in group_version else "/api/"
        found = await self._json("get", "GET", prefix + group_version)
        resources: Items = found.get("resources") or []
        return resources

    # -- writing ---------------------------------------------------------------------------------------------------

    async def create(self, res: Resource, obj: Json) -> Json:
        """Creates it. Raises AlreadyExists."""
        namespace = (obj.get("metadata") or {}).get("namespace")
        if res.namespaced and not namespace:
            raise ValueError(f"{res.kind} to create has no metadata.namespace")
        return await self._json("create", "POST", res.path(namespace), body=obj)

    async def replace(self, res: Resource, obj: Json) -> Json:
        """Replaces it as a whole. Raises Conflict when its resourceVersion is no longer the current one."""
        return await self._json("update", "PUT", res.path_of(obj), body=obj)

    async def apply(self, res: Resource, obj: Json, *, field_manager: str, force: bool = True) -> Json:
        """Server-side apply: creates the object, or owns and sets exactly these fields of it.

        Raises Conflict where another manager owns a field and `force` is False.
        """
        return await self._apply(res, obj, None, field_manager, force)

    async def apply_status(self, res: Resource, obj: Json, *, field_manager: str, force: bool = True) -> Json:
        """Server-side apply of the status subresource. Raises NotFound when the object is gone."""
        return await self._apply(res, obj, "status", field_manager, force)

    async def _apply(self, res: Resource, obj: Json, subresource: str | None, manager: str, force: bool) -> Json:
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        body = {"apiVersion": res.api_version, "kind": res.kind, **obj}
        # JSON is YAML; the media type is what asks for an apply.
        content_type = "application/apply-patch+yaml"
        path = res.path_of(obj, subresource)
        return await self._json("apply", "PATCH", path, query=query, body=body, content_type=content_type)

    async def merge_patch(
        self,
        res: Resource,
        namespace: str | None,
        name: str,
        patch: Json,
        *,
        subresource: str | None = None,
        resource_version: str | None = None,
    ) -> Json:
        """JSON merge patch (RFC 7386). With a `resource_version` it raises Conflict unless that is the current one."""
        if resource_version is not None:
            patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": resource_version}}
        path = res.path(namespace, name, subresource)
        return await self._json("patch", "PATCH", path, body=patch, content_type="application/merge-patch+json")

    async def delete(
        self,
        res: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
    ) -> Json:
        """Deletes it; answers with the object while finalizers hold it, else with a Status.

        Raises NotFound, or Conflict when it is not the object of that `uid` or version any more.
        """
        conditions = {"uid": uid, "resourceVersion": resource_version}
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {name: value for name, value in conditions.items() if value is not None},
        }
        return await self._json("delete", "DELETE", res.path(namespace, name), body=options)

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> bytes:
        """Any request; the answer's bytes. Errors, deadline, guard and limiter are as for every other call."""
        return await self._transport.request(Call("raw", method, path, query, body, content_type, accept))

    async def _json(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Json:
        call = Call(verb, method, path, query, body, content_type, accept)
        answer = await self._transport.request(call)
        try:
            decoded = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            raise Transient(200, "BrokenAnswer", f"{call}: the answer is not JSON: {error}") from error
        if not isinstance(decoded, dict):
            raise Transient(200, "BrokenAnswer", f"{call}: the answer is not a JSON object")
        return decoded


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    pairs = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in pairs.items() if value}


def _event(line: bytes, res: Resource) -> Json:
    try:
        event = orjson.loads(line)
        kind, obj = event["type"], event["object"]
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            obj["apiVersion"], obj["kind"] = res.api_version, res.kind
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BrokenStream(0, "BrokenStream", f"watch of {res.label}: a line is not an event: {error}") from error
    if not isinstance(obj, dict):
        raise BrokenStream(0, "BrokenStream", f"watch of {res.label}: an event without an object")
    return event  # type: ignore[no-any-return]
