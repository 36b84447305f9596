"""The life of the process: what starts when, what stops when, and what ends everything.

Start: health endpoint, caches, (all caches warm), leader election, workers. Stop: workers, Events, lease, caches,
health endpoint, so that nothing loses what it stands on. Anything that fails for good stops all the rest; the process
is then started again from outside, because a fresh start is the best tested path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from slipway_operator.kube.controller import Controller
from slipway_operator.kube.events import EventRecorder
from slipway_operator.kube.health import HealthServer, health_app
from slipway_operator.kube.lease import LeaderElector
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.reflector import Reflector

log = logging.getLogger(__name__)

Service = Callable[[], Coroutine[None, None, None]]


class SyncTimeout(Exception):  # noqa: N818 - says what happened
    """A cache did not get its first list in time."""


class Manager:
    """Runs reflectors, controllers and services until told to stop."""

    def __init__(
        self,
        *,
        reflectors: Sequence[Reflector],
        controllers: Sequence[Controller],
        services: Sequence[Service] = (),
        recorder: EventRecorder | None = None,
        elector: LeaderElector | None = None,
        health_address: tuple[str, int] | None = None,
        sync_timeout: float = 120.0,
        stop_timeout: float = 6.0,
        watchdog_period: float = 0.5,
        metrics: Metrics | None = None,
    ) -> None:
        """`services` run on every replica, leading or not, and only end by being cancelled. `stop_timeout` is how long
        reconciles may take to end by themselves after a stop was asked for, in seconds.
        """
        self._reflectors = reflectors
        self._controllers = controllers
        self._services = services
        self._recorder = recorder
        self._elector = elector
        self._sync_timeout = sync_timeout
        self._stop_timeout = stop_timeout
        self._watchdog_period = watchdog_period
        self._metrics = metrics or Metrics()
        self._stop = asyncio.Event()
        self.health: HealthServer | None = None
        if health_address is not None:
            app = health_app(
                {f"watch {r.label}": r.unhealthy for r in reflectors},
                {f"cache {r.label}": self._unready(r) for r in reflectors},
                self._metrics,
            )
            self.health = HealthServer(app, *health_address)

    def stop(self) -> None:
        """Asks for an orderly end; `run` returns when that is done."""
        self._stop.set()

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT ask for an orderly end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    async def run(self) -> None:
        """Runs until `stop`. Raises what ended it otherwise: SyncTimeout, NotLeading, a failed service's error."""
        async with contextlib.AsyncExitStack() as stack:
            if self.health is not None:
                await self.health.start()
                stack.push_async_callback(self.health.stop)
            background = [self._watchdog, *(reflector.run for reflector in self._reflectors), *self._services]
            if self._recorder is not None:
                background.append(self._recorder.run)
            tasks = await stack.enter_async_context(_running(background))
            await self._first(tasks, self._synced())
            if not self._stop.is_set():
                await self._first(tasks, self._work())

    async def _first(self, background: list[asyncio.Task[None]], job: Coroutine[None, None, None]) -> None:
        """Awaits it, unless something in the background ends first: that should not happen and is raised."""
        task = asyncio.create_task(job)
        try:
            everything: list[asyncio.Task[None]] = [task, *background]
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for ended in background:
                if ended.done():
                    ended.result()
                    raise RuntimeError(f"{ended.get_name()} ended by itself")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        task.result()

    async def _synced(self) -> None:
        """Waits for the first lists, or for the request to stop."""

        async def all_settled() -> None:
            for reflector in self._reflectors:
                await reflector.settled.wait()

        settled = asyncio.create_task(all_settled())
        stop = asyncio.create_task(self._stop.wait())
        try:
            either: list[asyncio.Task[Any]] = [settled, stop]
            await asyncio.wait(either, timeout=self._sync_timeout, return_when=asyncio.FIRST_COMPLETED)
            if not settled.done() and not stop.done():
                late = [f"{r.label} ({r.error or 'no answer'})" for r in self._reflectors if not r.settled.is_set()]
                raise SyncTimeout(f"no first list within {self._sync_timeout:g} s: {', '.join(late)}")
        finally:
            settled.cancel()
            stop.cancel()

    async def _work(self) -> None:
        if self._elector is None:
            await self._lead()
            return
        election = asyncio.create_task(self._elector.run(self._lead))
        stop = asyncio.create_task(self._stop.wait())
        try:
            either: list[asyncio.Task[Any]] = [election, stop]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._elector.is_valid():
                election.cancel()  # still a candidate: nothing to end in order
            await asyncio.wait({election})
        finally:
            stop.cancel()
            if not election.done():
                election.cancel()
                await asyncio.wait({election})
        if not election.cancelled():
            election.result()

    async def _lead(self) -> None:
        """Runs the controllers; after `stop` lets them end what they have begun, for a while."""

        async def all_workers() -> None:
            async with asyncio.TaskGroup() as group:
                for controller in self._controllers:
                    group.create_task(controller.run())

        workers = asyncio.create_task(all_workers())
        stop = asyncio.create_task(self._stop.wait())
        try:
            either: list[asyncio.Task[Any]] = [workers, stop]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for controller in self._controllers:
                controller.queue.shutdown()
            _, late = await asyncio.wait({workers}, timeout=self._stop_timeout)
            if late:
                held = [str(key) for controller in self._controllers for key in controller.queue.in_flight]
                log.warning("reconciles are cut short: %s", ", ".join(held))
        finally:
            stop.cancel()
            workers.cancel()
            await asyncio.wait({workers})
        if not workers.cancelled():
            workers.result()
        await self._flush_events()  # here, while the lease still allows writes

    async def _flush_events(self) -> None:
        if self._recorder is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._recorder.flush()

    async def _watchdog(self) -> None:
        """Measures how late the loop is: a call that blocks it blocks the lease, the watch and the probes as well."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._watchdog_period
            await asyncio.sleep(self._watchdog_period)
            lag = max(0.0, loop.time() - due)
            self._metrics.loop_lag.set(lag)
            if lag > 1.0:
                log.warning("the event loop was blocked for %.1f s", lag)

    @staticmethod
    def _unready(reflector: Reflector) -> Callable[[], str | None]:
        return lambda: None if reflector.settled.is_set() else f"no first list yet ({reflector.error or 'no answer'})"


@contextlib.asynccontextmanager
async def _running(jobs: Sequence[Service]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that live as long as the block; on its end they are cancelled and awaited."""

    async def run(job: Service) -> None:
        await job()

    tasks = [asyncio.create_task(run(job), name=getattr(job, "__qualname__", repr(job))) for job in jobs]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
