"""Watches: committed changes as a stream, from any version that is still remembered.

A watch is a cursor into the resource's history, so a slow client costs no memory; one that falls behind the history is
told 410 Expired and lists again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from slipway_local.apiserver import errors
from slipway_local.apiserver.reading import parse_version
from slipway_local.apiserver.registry import Kind
from slipway_local.apiserver.rendering import Output, Renderer
from slipway_local.apiserver.selectors import EVERYTHING, Selector
from slipway_local.apiserver.storage import Event, Store, Stored

_MIN_TIMEOUT = 1800.0
Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class WatchOptions:
    """What a watch asks for."""

    selector: Selector = EVERYTHING
    resource_version: str = ""
    timeout: float | None = None
    bookmarks: bool = False
    initial_events: bool | None = None


class Watcher:
    """Streams changes."""

    def __init__(self, store: Store, renderer: Renderer, *, bookmark_seconds: float = 30.0) -> None:
        self._store = store
        self._renderer = renderer
        self._bookmark_seconds = bookmark_seconds

    def check(self, options: WatchOptions, match: str) -> None:
        """Raise ApiError for a combination that is not served."""
        parse_version(options.resource_version)
        if options.initial_events is not None and match != "NotOlderThan":
            field = errors.forbidden_field(
                "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
            raise errors.unprocessable("ListOptions", "meta.k8s.io", "", [field])
        if options.initial_events is None and match:
            field = errors.forbidden_field(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )
            raise errors.unprocessable("ListOptions", "meta.k8s.io", "", [field])

    async def stream(
        self, kind: Kind, namespace: str | None, options: WatchOptions, output: Output, send: Send
    ) -> None:
        """Send events until the time is up. The connection is the caller's."""
        run = _Run(self._renderer, kind, namespace, options.selector, output)
        asked = parse_version(options.resource_version)
        history = self._store.history(kind.resource)
        seen = self._store.version
        first = b""
        replay = options.initial_events if options.initial_events is not None else asked == 0
        if replay:
            for item in self._store.items(kind.resource, namespace):
                first += run.initial(item)
            if options.initial_events and options.bookmarks:
                first += self._renderer.bookmark(kind, seen, output, initial_end=True)
        else:
            seen = asked or seen
        try:
            cursor = history.cursor(seen)
        except LookupError:
            await send(_expired(seen, history.oldest))
            return
        await send(first)  # Also opens the stream, when it is empty.
        await self._follow(run, options, cursor, seen, send)

    async def _follow(self, run: _Run, options: WatchOptions, cursor: int, seen: int, send: Send) -> None:
        loop = asyncio.get_running_loop()
        timeout = options.timeout if options.timeout is not None else _MIN_TIMEOUT * (1 + random.random())
        deadline = loop.time() + timeout
        bookmark = loop.time() + self._bookmark_seconds
        history = self._store.history(run.kind.resource)
        while True:
            try:
                events, cursor = history.read(cursor)
            except LookupError:
                await send(_expired(seen, history.oldest))
                return
            lines = b"".join(run.line(event) for event in events if event.new.version > seen)
            seen = max(seen, self._store.version)
            if lines:
                await send(lines)
                continue
            now = loop.time()
            if options.bookmarks and (now >= bookmark or now >= deadline):
                bookmark = now + self._bookmark_seconds
                await send(self._renderer.bookmark(run.kind, seen, run.output))
            if now >= deadline:
                return
            until = min(deadline, bookmark) if options.bookmarks else deadline
            await asyncio.wait([self._store.changed(run.kind.resource)], timeout=max(0.0, until - now))


class _Run:
    """One watch: what it selects and how it writes."""

    def __init__(
        self, renderer: Renderer, kind: Kind, namespace: str | None, selector: Selector, output: Output
    ) -> None:
        self.kind = kind
        self.output = output
        self._renderer = renderer
        self._namespace = namespace
        self._selector = selector
        self._headers = True

    def initial(self, item: Stored) -> bytes:
        """An object that is there already."""
        return self._write("ADDED", item) if self._selected(item) else b""

    def line(self, event: Event) -> bytes:
        """A change, as this watch sees it: an object that starts or stops matching is added or deleted."""
        after = event.type != "DELETED" and self._selected(event.new)
        before = event.old is not None and self._selected(event.old)
        if after:
            return self._write("MODIFIED" if before else "ADDED", event.new)
        return self._write("DELETED", event.new) if before else b""

    def _selected(self, item: Stored) -> bool:
        if self._namespace is not None and item.namespace != self._namespace:
            return False
        return self.kind.matches(item, self._selector)

    def _write(self, type_: str, item: Stored) -> bytes:
        line = self._renderer.event(type_, self.kind, item, self.output, headers=self._headers)
        self._headers = False
        return line


def _expired(asked: int, oldest: int) -> bytes:
    status = errors.expired(f"too old resource version: {asked} ({oldest})").status()
    return orjson.dumps({"type": "ERROR", "object": status}) + b"\n"
