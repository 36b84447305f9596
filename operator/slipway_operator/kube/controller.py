"""Workers that take keys from a queue and bring the world closer to what the object says.

`Controller._settle` is the only place that knows what an outcome leads to. A controller gets keys and never events, so
that a reconcile depends on the state of the world alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from slipway_operator.kube.errors import Conflict, KubeError, NotLeading, TooManyRequests, Transient
from slipway_operator.kube.logs import bound
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.outcomes import Done, Outcome, ReconcileTimeout, RequeueAfter, TerminalError
from slipway_operator.kube.queue import Priority, QueueShutDown, WorkQueue
from slipway_operator.kube.reflector import Reflector
from slipway_operator.kube.resource import Json, Key, Resource, controller_of, key_of
from slipway_operator.kube.store import Change, Store

__all__ = ["Controller", "Key", "indexed", "own_key", "owner_of"]

log = logging.getLogger(__name__)

Reconcile = Callable[[Key], Awaitable[Outcome]]
MapFn = Callable[[Json], Iterable[Key]]

# The cache usually shows a write through an event, which brings the key back at once. A bookmark shows it without one.
_HOLD_POLL = 0.5


def own_key(obj: Json) -> Iterable[Key]:
    """Maps an object to its own key."""
    return (key_of(obj),)


def owner_of(resource: Resource) -> MapFn:
    """Maps a child to the key of its controller owner, if that is of this resource's kind and group."""

    def map_child(obj: Json) -> Iterable[Key]:
        owner = controller_of(obj)
        if owner is None or owner.get("kind") != resource.kind:
            return ()
        if str(owner.get("apiVersion", "")).rpartition("/")[0] != resource.group:
            return ()
        return (Key(key_of(obj).namespace if resource.namespaced else "", str(owner["name"])),)

    return map_child


def indexed(store: Store, index: str) -> MapFn:
    """Maps an object to the objects of `store` that its index has under the object's key ("namespace/name")."""
    return lambda obj: tuple(key_of(found) for found in store.by_index(index, str(key_of(obj))))


class Controller:
    """One control loop: a queue, a reconcile function, and workers."""

    def __init__(
        self,
        name: str,
        queue: WorkQueue,
        reconcile: Reconcile,
        workers: int = 4,
        timeout: float = 120.0,
        *,
        hold: Callable[[Key], float] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`timeout` bounds one reconcile, in seconds. `hold` (Expectations.hold) says for how long a key must wait for
        the cache.
        """
        self.name = name
        self.queue = queue
        self._reconcile = reconcile
        self._workers = workers
        self._timeout = timeout
        self._hold = hold
        self._metrics = metrics or Metrics()
        self._metrics.workers_busy.labels(name).set_function(lambda: len(queue.in_flight))

    def watches(
        self, reflector: Reflector, map_fn: MapFn = own_key, *, when: Callable[[Change], bool] | None = None
    ) -> None:
        """Queues the keys that `map_fn` names whenever an object of the reflector changes.

        Both the old and the new state are mapped: a child that changed hands concerns both owners. `when` leaves out
        changes that no reconcile needs to see; what a full list shows is of low priority and never left out.
        """

        def handle(change: Change, live: bool) -> None:
            if live and when is not None and not when(change):
                return
            priority = Priority.HIGH if live else Priority.LOW
            states = [state for state in (change.old, change.new) if state is not None]
            for key in {key for state in states for key in map_fn(state)}:
                self.queue.add(key, priority)

        reflector.add_handler(handle)

    async def run(self) -> None:
        """Works until the queue is shut down (each worker ends the reconcile that it is in) or until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name}-{number}")

    async def _work(self) -> None:
        while True:
            try:
                key = await self.queue.get()
            except QueueShutDown:
                return
            with bound(controller=self.name, key=str(key)):
                try:
                    await self._handle(key)
                except asyncio.CancelledError:
                    self.queue.add(key)  # interrupted, not done: it is not lost if work starts again
                    raise
                finally:
                    self.queue.done(key)
            await asyncio.sleep(0)  # a reconcile that never waits must not keep the watch and the lease waiting

    async def _handle(self, key: Key) -> None:
        wait = self._hold(key) if self._hold is not None else 0.0
        if wait > 0:
            self.queue.add_after(key, min(wait, _HOLD_POLL), self.queue.urgency(key))
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        result: Outcome | Exception
        try:
            result = await self._bounded(key)
        except Exception as error:
            result = error
        self._metrics.reconcile_seconds.labels(self.name).observe(loop.time() - started)
        label = self._settle(key, result)
        self._metrics.reconciles.labels(self.name, label).inc()

    async def _bounded(self, key: Key) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                return await self._reconcile(key)
        except TimeoutError as error:
            if limit.expired():
                raise ReconcileTimeout(f"reconcile took more than {self._timeout:g} s") from error
            raise  # some library's timeout: an error as any other

    def _settle(self, key: Key, result: Outcome | Exception) -> str:
        """What follows from an outcome; returns its name for the metric."""
        match result:
            case Done():
                self.queue.forget(key)
                return "done"
            case RequeueAfter(seconds):
                self.queue.forget(key)
                self.queue.add_after(key, seconds)
                return "requeue_after"
            case TerminalError():
                self.queue.forget(key)
                log.error("given up until something changes: %s", result)
                return "terminal"
            case ReconcileTimeout():
                delay = self.queue.add_rate_limited(key)
                log.error("%s; trying again in %.3g s", result, delay)
                return "timeout"
            case Conflict() | TooManyRequests() | Transient() | NotLeading():
                # Expected on a busy or a restarting server: a line is enough, a traceback would say nothing.
                delay = self.queue.add_rate_limited(key, at_least=getattr(result, "retry_after", 0.0))
                log.info("trying again in %.3g s: %s", delay, result)
                return "conflict" if isinstance(result, Conflict) else "unavailable"
            case KubeError():
                delay = self.queue.add_rate_limited(key)
                log.warning("trying again in %.3g s: %s", delay, result)
                return "error"
            case Exception():
                delay = self.queue.add_rate_limited(key)
                log.error("reconcile failed, trying again in %.3g s", delay, exc_info=result)
                return "error"
            case _:
                delay = self.queue.add_rate_limited(key)
                log.error("reconcile returned %r, which is no outcome", result)
                return "error"
