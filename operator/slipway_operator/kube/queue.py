"""The work queue: which object to look at next.

Keys, not events: ten changes of one object are one key. A key is never with two workers at once, and never lost: one
that is added while it is being worked on comes back when the worker is done with it. What somebody waits for goes
before what a person changed, and that before what a full list merely repeated; namespaces take turns, so that one
team's thousand jobs do not make another team's single job wait. Time is the event loop's. The queue knows nothing
about what its keys mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import Key

# Of so many keys taken, at least one is of the lowest priority, and one is not urgent: no stream may starve the others.
_LOW_TURN, _HIGH_TURN = 16, 4


class Priority(IntEnum):
    """Lower comes first."""

    URGENT = 0
    """Somebody holds resources until it is done: a run that has ended, and waits to hear that this is written down."""
    HIGH = 1
    """Something changed."""
    LOW = 2
    """A list repeated what may be known already."""


class QueueShutDown(Exception):  # noqa: N818 - the end of a queue is not an error
    """The queue gives out no more keys."""


@dataclass
class _Waiting:
    due: float
    priority: Priority
    timer: asyncio.TimerHandle


class _Lane:
    """Ready keys of one priority, first come first served within a namespace, namespaces in turn."""

    def __init__(self) -> None:
        # dicts, because they keep their order and lose any entry in constant time
        self._namespaces: dict[str, dict[Key, float]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: Key) -> bool:
        return key in self._namespaces.get(key.namespace, ())

    def push(self, key: Key, since: float) -> None:
        self._namespaces.setdefault(key.namespace, {})[key] = since
        self._size += 1

    def remove(self, key: Key) -> float:
        keys = self._namespaces[key.namespace]
        since = keys.pop(key)
        if not keys:
            del self._namespaces[key.namespace]
        self._size -= 1
        return since

    def pop(self) -> tuple[Key, float]:
        namespace, keys = next(iter(self._namespaces.items()))
        key = next(iter(keys))
        since = self.remove(key)
        if namespace in self._namespaces:
            self._namespaces[namespace] = self._namespaces.pop(namespace)  # to the end of the round
        return key, since


class WorkQueue:
    """A deduplicating, delaying, fair queue of keys. Not thread-safe: one event loop."""

    def __init__(
        self,
        name: str = "queue",
        *,
        base_delay: float = 0.005,
        max_delay: float = 1000.0,
        metrics: Metrics | None = None,
    ) -> None:
        """A key that failed n times in a row comes back after min(base_delay * 2^(n-1), max_delay) seconds."""
        self.name = name
        self._base = base_delay
        self._max = max_delay
        self._lanes = tuple(_Lane() for _ in Priority)
        self._waiting: dict[Key, _Waiting] = {}
        self._in_flight: dict[Key, Priority] = {}
        self._again: dict[Key, Priority] = {}
        self._failures: dict[Key, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._taken = 0
        self._closed = False
        self._metrics = metrics or Metrics()
        for priority in Priority:
            depth = self._metrics.queue_depth.labels(name, priority.name.lower())
            depth.set_function(self._lanes[priority].__len__)

    def __len__(self) -> int:
        """How many keys are ready."""
        return sum(map(len, self._lanes))

    @property
    def in_flight(self) -> frozenset[Key]:
        """The keys that workers hold."""
        return frozenset(self._in_flight)

    @property
    def waiting(self) -> frozenset[Key]:
        """The keys that become ready later."""
        return frozenset(self._waiting)

    def urgency(self, key: Key) -> Priority:
        """With what priority a key comes back: it stays urgent until it is done, and is never of low priority."""
        return min(Priority.HIGH, self._in_flight.get(key, Priority.HIGH))

    def failures(self, key: Key) -> int:
        """How many times in a row the key has failed."""
        return self._failures.get(key, 0)

    def add(self, key: Key, priority: Priority = Priority.HIGH) -> None:
        """Makes the key ready now; one that waits for a time or with a lower priority moves up."""
        if self._closed:
            return
        self._metrics.queue_adds.labels(self.name).inc()
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.timer.cancel()
            priority = min(priority, waiting.priority)
        if key in self._in_flight:
            self._again[key] = min(priority, self._again.get(key, Priority.LOW))
            return
        for lane_priority, lane in zip(Priority, self._lanes, strict=True):
            if key in lane:
                if priority < lane_priority:
                    self._lanes[priority].push(key, lane.remove(key))
                return
        self._lanes[priority].push(key, asyncio.get_running_loop().time())
        self._wake()

    def add_after(self, key: Key, delay: float, priority: Priority = Priority.HIGH) -> None:
        """Makes the key ready after `delay` seconds, unless it is, or becomes, ready sooner."""
        if delay <= 0:
            self.add(key, priority)
            return
        if self._closed or key in self._again or any(key in lane for lane in self._lanes):
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        waiting = self._waiting.get(key)
        if waiting is not None:
            priority = min(priority, waiting.priority)
            if waiting.due <= due:
                waiting.priority = priority
                return
            waiting.timer.cancel()
        self._waiting[key] = _Waiting(due, priority, loop.call_at(due, self._due, key))

    def add_rate_limited(self, key: Key, *, at_least: float = 0.0) -> float:
        """Adds the key after its backoff, which doubles with each call until `forget`; returns the delay in seconds."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        self._metrics.queue_retries.labels(self.name).inc()
        delay = max(at_least, min(self._max, self._base * 2.0 ** min(failures - 1, 64)))
        self.add_after(key, delay, self.urgency(key))
        return delay

    def forget(self, key: Key) -> None:
        """The key has succeeded: its next failure is a first one."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key, which is then in flight until `done`. Raises QueueShutDown."""
        while not self._closed:
            if len(self):
                return self._take()
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter.done() and not getter.cancelled():
                    self._wake()  # woken and cancelled at once: the key is still there for somebody else
                raise
        raise QueueShutDown(self.name)

    def done(self, key: Key) -> None:
        """The worker is through with the key; it becomes ready again if it was added meanwhile."""
        if key not in self._in_flight:
            raise ValueError(f"{key} is not in flight")
        del self._in_flight[key]
        if not self._in_flight:
            self._idle.set()
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again)

    def shutdown(self) -> None:
        """Gives out nothing more. Keys are dropped: the next start lists everything anyway."""
        self._closed = True
        for waiting in self._waiting.values():
            waiting.timer.cancel()
        self._waiting.clear()
        self._again.clear()
        while self._getters:
            self._wake()

    async def drained(self) -> None:
        """Returns when no key is in flight."""
        await self._idle.wait()

    def _due(self, key: Key) -> None:
        self.add(key, self._waiting[key].priority)

    def _take(self) -> Key:
        self._taken += 1
        ready = [priority for priority in Priority if len(self._lanes[priority])]
        priority = ready[-1] if self._taken % _LOW_TURN == 0 else ready[0]
        if self._taken % _HIGH_TURN == 0 and priority is Priority.URGENT and Priority.HIGH in ready:
            priority = Priority.HIGH
        key, since = self._lanes[priority].pop()
        self._in_flight[key] = priority
        self._idle.clear()
        self._metrics.queue_seconds.labels(self.name).observe(asyncio.get_running_loop().time() - since)
        return key

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
