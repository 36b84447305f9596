"""Kubernetes Events: the story of an object that `kubectl describe` tells.

Recording never waits and never raises; a reconcile must not fail because its story could not be written. The same thing
said again counts up one Event (its name follows from what it says, so this survives restarts), and an object that
talks without end is cut short, because Events live in the same etcd as everything else.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import AlreadyExists, KubeError, NotFound, TooManyRequests, Transient
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import EVENTS, Json, uid_of

log = logging.getLogger(__name__)

T = TypeVar("T")
EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True)
class EventConfig:
    """Limits of a recorder."""

    queue_size: int = 1000
    """Different Events that may wait to be written; more are dropped and counted."""
    burst: int = 25
    """Events that one object may have at once."""
    refill_seconds: float = 300.0
    """After so long an object that has used up its burst may have one more."""
    memory: int = 4096
    """Objects and Events that are remembered."""
    attempts: int = 4
    backoff: Backoff = field(default=Backoff(0.5, 10.0))


@dataclass
class _Pending:
    body: Json
    count: int


class EventRecorder:
    """Records Events of one component. `run` writes them; until it runs they wait."""

    def __init__(
        self,
        client: Client,
        component: str,
        *,
        instance: str = "",
        config: EventConfig | None = None,
        wall: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`instance` tells replicas apart (a pod's name)."""
        self._client = client
        self._component = component
        self._instance = instance or component
        self._config = config or EventConfig()
        self._wall = wall
        self._rng = rng or random.Random()
        self._metrics = metrics or Metrics()
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def event(self, obj: Json, type: EventType, reason: str, message: str) -> None:
        """Notes that this happened to `obj` (a full object: apiVersion, kind, metadata). Never raises."""
        try:
            self._note(obj, type, reason, message)
        except Exception:
            log.exception("event %s not recorded", reason)

    def _note(self, obj: Json, type_: EventType, reason: str, message: str) -> None:
        message = message[:1024]  # the API server refuses longer ones
        metadata = obj["metadata"]
        text = "\0".join((uid_of(obj), self._component, type_, reason, message))
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        name = f"{metadata['name'][:200].rstrip('.-')}.{digest}"
        namespace = metadata.get("namespace") or "default"
        full_name = f"{namespace}/{name}"
        if (pending := self._pending.get(full_name)) is not None:
            pending.count += 1
            pending.body["lastTimestamp"] = self._now()
            return
        if not self._allowed(uid_of(obj)):
            self._metrics.events.labels("filtered").inc()
            return
        if len(self._pending) >= self._config.queue_size:
            self._metrics.events.labels("overflow").inc()
            return
        self._pending[full_name] = _Pending(self._body(obj, namespace, name, type_, reason, message), 1)
        self._wake.set()

    def _body(self, obj: Json, namespace: str, name: str, type_: EventType, reason: str, message: str) -> Json:
        now = self._now()
        metadata = obj["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": name},
            "involvedObject": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "name": metadata["name"],
                **{field: metadata[field] for field in ("namespace", "uid", "resourceVersion") if metadata.get(field)},
            },
            "type": type_,
            "reason": reason,
            "message": message,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    def _allowed(self, uid: str) -> bool:
        """One token bucket for each object."""
        now = asyncio.get_running_loop().time()
        config = self._config
        tokens, at = self._tokens.pop(uid, (float(config.burst), now))
        tokens = min(float(config.burst), tokens + (now - at) / config.refill_seconds)
        allowed = tokens >= 1.0
        _remember(self._tokens, uid, (tokens - 1.0 if allowed else tokens, now), config.memory)
        return allowed

    # -- writing ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes what was noted, oldest first, until cancelled."""
        while True:
            await self._wake.wait()
            await self.flush()

    async def flush(self) -> None:
        """Returns when everything that was noted is written or given up."""
        async with self._writing:  # whoever comes second returns only when the first has written its last one
            while self._pending:
                full_name, pending = self._pending.popitem(last=False)
                result = await self._persist(full_name, pending)
                self._metrics.events.labels(result).inc()
            self._wake.clear()

    async def _persist(self, full_name: str, pending: _Pending) -> str:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await self._write(full_name, pending)
            except (Transient, TooManyRequests) as error:
                if attempt == self._config.attempts:
                    log.warning("event %s given up: %s", full_name, error)
                    break
                await asyncio.sleep(max(error.retry_after, self._config.backoff.delay(attempt, self._rng)))
            except KubeError as error:  # also of a namespace that is being deleted
                log.warning("event %s refused: %s", full_name, error)
                break
            except Exception:
                log.exception("event %s not written", full_name)
                break
        return "dropped"

    async def _write(self, full_name: str, pending: _Pending) -> str:
        metadata = pending.body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        count = self._counts.get(full_name)
        if count is None:
            try:
                await self._client.create(EVENTS, {**pending.body, "count": pending.count})
            except AlreadyExists:  # said before this process started
                present = await self._client.get(EVENTS, namespace, name)
                count = int(present.get("count") or 1)
            else:
                _remember(self._counts, full_name, pending.count, self._config.memory)
                return "created"
        patch = {"count": count + pending.count, "lastTimestamp": pending.body["lastTimestamp"]}
        try:
            await self._client.merge_patch(EVENTS, namespace, name, patch)
        except NotFound:  # Events expire after an hour
            self._counts.pop(full_name, None)
            await self._client.create(EVENTS, {**pending.body, "count": pending.count})
            patch["count"] = pending.count
        _remember(self._counts, full_name, patch["count"], self._config.memory)
        return "counted"

    def _now(self) -> str:
        return self._wall().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _remember(memory: OrderedDict[str, T], key: str, value: T, size: int) -> None:
    """Sets the entry as the newest and forgets the oldest beyond `size`."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > size:
        memory.popitem(last=False)
