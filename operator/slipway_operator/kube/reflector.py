"""Keeps a store equal to the server: list once, watch from there, and start over only when something may be lost.

Every way in which a watch can go wrong ends in one of two states, "resume from the last version seen" or "list again",
after a jittered wait; nothing ends the loop but its cancellation. A list shows deletions only by absence, so a deleted
CRD, a refused list or a list from the past never removes an object from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import (
    BrokenStream,
    Expired,
    Forbidden,
    KubeError,
    NotFound,
    TooManyRequests,
    Transient,
    error_from_status,
)
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import Json, Resource, at_least, version_of
from slipway_operator.kube.store import Change, Changes, Store

log = logging.getLogger(__name__)

Handler = Callable[[Change, bool], None]
"""Called with (change, live): live is False for what a list showed, True for what a watch told."""


@dataclass(frozen=True)
class ReflectorConfig:
    """Times in seconds."""

    page_size: int = 500
    watch_timeout: tuple[float, float] = (15.0, 20.0)
    """The server is asked to end a watch after a random time in this range, so that watches spread over servers.

    Short, because over HTTP/1.1 a frozen watch and a quiet one are the same until the end is due. client-go waits for
    minutes, and has pings of HTTP/2. Resuming is one cheap request: API servers answer it from memory, and they send a
    bookmark before they end a quiet watch, so its version does not age."""
    inactivity_timeout: float = 24.0
    """A watch that is silent for so long is taken for dead: its end was due, and did not come."""
    silence_limit: float = 22.0
    """An open watch that is silent for so long is reported as unhealthy; before the inactivity timeout, so that a
    frozen cache is known before it is cured."""
    outage_limit: float = 900.0
    """Without any contact for so long, failing to reconnect is reported as unhealthy too: only a restart is left."""
    backoff: Backoff = field(default=Backoff(0.8, 30.0))
    settled_after: float = 10.0
    """A watch that lived so long counts as a success, and its end needs no wait."""
    relist_after: float = 3600.0
    """A full list follows when the last one is older than this: the safety net for an event that was never sent."""
    old_list_limit: int = 10
    """After so many lists in a row from before what was already seen, the server was restored from a backup."""

    def __post_init__(self) -> None:
        if not self.silence_limit < self.inactivity_timeout:
            raise ValueError("silence_limit must be below inactivity_timeout, or health is the last to know")


class Reflector:
    """The cache of one resource (in one namespace, or all), and the stream of its changes."""

    def __init__(
        self,
        client: Client,
        store: Store,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
        optional: bool = False,
        dispensable: bool = False,
        config: ReflectorConfig | None = None,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`metadata_only` fetches no spec and no status. `optional`: its CRD may be missing, and the start does not
        wait for it. `dispensable`: optional, and reading it may be forbidden as well; then nothing is ever in the
        store, so only for what everything works without.
        """
        self.resource: Resource = store.resource
        self.label = f"{self.resource.label} in {namespace}" if namespace else self.resource.label
        """What metrics, probes and logs call it: two reflectors of one resource in two namespaces are told apart."""
        self.store = store
        self.synced = asyncio.Event()
        """Set when the store holds a complete list, for ever after."""
        self.settled = asyncio.Event()
        """Set when a start may go on: synced, optional and missing, or dispensable and forbidden."""
        self.missing = False
        """Whether the server does not know the resource now."""
        self.error: KubeError | None = None
        """What stands between this cache and the server now; None while it is in touch."""
        self._client = client
        self._namespace = namespace
        self._selectors: dict[str, Any] = {
            "label_selector": label_selector,
            "field_selector": field_selector,
            "metadata_only": metadata_only,
        }
        self._optional = optional or dispensable
        self._dispensable = dispensable
        self._config = config or ReflectorConfig()
        self._rng = rng or random.Random()
        self._metrics = metrics or Metrics()
        self._handlers: list[Handler] = []
        self._relist: str | None = "start"
        self._relist_due = 0.0
        self._old_lists = 0
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._contact = 0.0
        self._opened: float | None = None
        self._export()

    def add_handler(self, handler: Handler) -> None:
        """Calls `handler` after every change of the store. It must be quick; what it raises is logged and counted."""
        self._handlers.append(handler)

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        loop = self._loop = asyncio.get_running_loop()
        self._contact = loop.time()
        while True:
            started = loop.time()
            wait_at_least = 0.0
            clean = False
            try:
                if self._relist is not None:
                    await self._list(self._relist)
                await self._watch()
                clean = True
            except Exception as error:
                wait_at_least = self._classify(error)
            finally:
                self._opened = None
            if loop.time() - started >= self._config.settled_after:
                self._failures = 0
                if clean:
                    continue
            self._failures += 1
            await asyncio.sleep(max(wait_at_least, self._config.backoff.delay(self._failures, self._rng)))

    def unhealthy(self) -> str | None:
        """Why a restart of the process might help; None when all is well or waiting is all that can be done."""
        age = self.contact_age()
        if self._opened is not None and age > self._config.silence_limit:
            return f"watch of {self.label}: open, but silent for {age:.1f} s"
        if age > self._config.outage_limit:
            return f"watch of {self.label}: no contact for {age:.0f} s ({self.error})"
        return None

    def contact_age(self) -> float:
        """Seconds since the server was last heard; 0 before the start."""
        return self._now() - self._contact

    # -- one round -------------------------------------------------------------------------------------------------

    async def _list(self, reason: str) -> None:
        self._metrics.relists.labels(self.label, reason).inc()
        objects, version = await self._pages(self._config.page_size)
        if self._from_the_past(version):
            raise Transient(
                0, "OldList", f"list of {self.label} is from version {version}, before what was already seen"
            )
        self._emit(self.store.replace(objects, version), live=False)
        self._relist = None
        self._relist_due = self._now() + self._config.relist_after * self._rng.uniform(0.9, 1.1)
        self._in_touch()
        self.missing = False
        self.synced.set()
        self.settled.set()

    async def _pages(self, page_size: int) -> tuple[list[Json], str]:
        """All objects as the store will hold them, so that never more than one page exists in full."""
        objects: list[Json] = []
        version = ""
        pages = self._client.list_pages(self.resource, self._namespace, limit=page_size, **self._selectors)
        try:
            async with contextlib.aclosing(pages):
                async for page, version in pages:  # noqa: B007 - the version is that of the last page
                    self._contact = self._now()
                    objects += [self.store.prepare(obj) for obj in page]
                    await asyncio.sleep(0)
        except Expired:
            if page_size == 0:
                raise
            return await self._pages(0)  # the pages grew too old under way: everything at once
        return objects, version

    def _from_the_past(self, version: str) -> bool:
        seen = self.store.resource_version
        if not seen or at_least(version, seen) is not False:
            self._old_lists = 0
            return False
        self._old_lists += 1
        if self._old_lists <= self._config.old_list_limit:
            return True
        log.warning("the server went back from version %s to %s: restored from a backup?", seen, version)
        self._old_lists = 0
        return False

    async def _watch(self) -> None:
        config = self._config
        events = self._client.watch(
            self.resource,
            self._namespace,
            self.store.resource_version,
            timeout_seconds=self._rng.uniform(*config.watch_timeout),
            inactivity_timeout=config.inactivity_timeout,
            on_open=self._on_open,
            **self._selectors,
        )
        burst = 0
        async with contextlib.aclosing(events):
            async for event in events:
                self._contact = self._now()
                self._on_event(event)
                self._failures = 0  # only now: an ERROR event is no progress
                burst += 1
                if burst % 200 == 0:
                    await asyncio.sleep(0)  # a full buffer must not keep workers and the lease waiting
                if self._contact >= self._relist_due:
                    break  # a server may keep a watch for longer than it was asked to
        if self._now() >= self._relist_due:
            self._relist = "periodic"

    def _on_open(self) -> None:
        self._opened = self._now()
        self._in_touch()

    def _on_event(self, event: Json) -> None:
        kind, obj = event["type"], event["object"]
        self._metrics.watch_events.labels(self.label, kind).inc()
        if kind == "ERROR":
            raise error_from_status(int(obj.get("code") or 500), obj)
        version = version_of(obj)
        if not version:
            raise BrokenStream(0, "BrokenStream", f"watch of {self.label}: {kind} without a version")
        if kind == "BOOKMARK":
            self.store.advance(version)
        elif kind == "DELETED":
            self._emit(self.store.remove(self.store.prepare(obj)), live=True)
        elif kind in ("ADDED", "MODIFIED"):
            self._emit(self.store.upsert(self.store.prepare(obj)), live=True)
        else:
            raise BrokenStream(0, "BrokenStream", f"watch of {self.label}: unknown event type {kind!r}")

    def _emit(self, changes: Changes, *, live: bool) -> None:
        for change in changes:
            for handler in self._handlers:
                try:
                    handler(change, live)
                except Exception:
                    # A missed call is repaired by the next full list; a dead reflector by nothing.
                    self._metrics.handler_errors.labels(self.label).inc()
                    log.exception("a handler of %s failed", self.label)

    # -- when it went wrong ----------------------------------------------------------------------------------------

    def _classify(self, error: Exception) -> float:
        """Decides between resuming and listing again; returns the least number of seconds to wait."""
        label = self.label
        if not isinstance(error, KubeError):
            log.error("cache of %s: unexpected error, listing again", label, exc_info=error)
            self._relist = "bug"
            self.error = KubeError(0, type(error).__name__, str(error))
            return 0.0
        self.error = error
        if error.status:
            self._contact = self._now()  # a refusal is an answer: the server is there
        if isinstance(error, Expired):
            self._relist = "expired"
        elif isinstance(error, BrokenStream):
            self._relist = "broken"
        elif isinstance(error, NotFound):
            if not self.missing:
                log.warning("%s is not served (is its CRD installed?), trying on", label)
            self.missing = True
            self._relist = "missing"
            if self._optional:
                self.settled.set()
        elif isinstance(error, (Transient, TooManyRequests)):
            log.info("watch of %s interrupted: %s", label, error)
            return error.retry_after
        else:
            log.warning("cache of %s: %s", label, error)
            self._relist = "refused"
            if self._dispensable and isinstance(error, Forbidden):
                self.settled.set()
        return 0.0

    def _in_touch(self) -> None:
        self._contact = self._now()
        self.error = None

    def _now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def _export(self) -> None:
        """Gauges that are read at the moment of a scrape, so that a stuck loop cannot keep them looking fresh."""
        label = self.label
        self._metrics.watch_staleness.labels(label).set_function(self.contact_age)
        self._metrics.watch_age.labels(label).set_function(
            lambda: 0.0 if self._opened is None else self._now() - self._opened
        )
        self._metrics.cached_objects.labels(label).set_function(lambda: len(self.store))
        self._metrics.resource_missing.labels(label).set_function(lambda: float(self.missing))
