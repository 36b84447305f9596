"""Keeps one Ray head alive: adopts what an earlier runner left, or starts one; notices its death, starts the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from decimal import Decimal

from slipway_local.machine import Machine
from slipway_local.ray_runner.errors import RayStartFailed, RayUnavailable
from slipway_local.ray_runner.head import Head, RayHead
from slipway_local.ray_runner.jobs_api import JobsApi
from slipway_local.ray_runner.resources import Resources

log = logging.getLogger(__name__)

_PROCESS_CHECK = 0.25  # seconds between looks at its processes
_PING_EVERY = 10  # of these looks
_LONGEST_WAIT = 60.0


class RayKeeper:
    """The current head, if there is one, and what it has to give."""

    def __init__(self, ray: RayHead, machine: Machine) -> None:
        self.ray = ray
        self.head: Head | None = None
        self.problem = "Ray is starting"
        """Why there is no head."""
        self.capacity = Resources(Decimal(machine.cpus), Decimal(machine.gpus), Decimal(machine.memory))
        self.on_up: list[Callable[[], None]] = []
        """Called when a head is ready, and when there still is none for a new reason."""
        self.on_lost: list[Callable[[str], None]] = []
        """Called when a head has died and none of its processes, jobs included, is left."""
        self._api: JobsApi | None = None

    def api(self) -> JobsApi:
        """The client of the living head. Raises RayUnavailable when there is none."""
        if self._api is None:
            raise RayUnavailable(self.problem)
        return self._api

    async def run(self) -> None:
        """Until cancelled. Leaves Ray running: the next runner adopts it."""
        delay = 1.0
        try:
            head = await self.ray.adopt()
            while True:
                try:
                    head = head or await self.ray.start()
                    await self._use(head)
                except (RayStartFailed, RayUnavailable) as error:
                    self.problem = f"Ray does not start: {error}"
                    log.error("%s; trying again in %.0f s", self.problem, delay)
                    head = None
                    self._say_up()
                    await asyncio.sleep(delay)
                    delay = min(_LONGEST_WAIT, delay * 2)
                    continue
                delay = 1.0
                why = await self._until_dead(head)
                log.error("the Ray head died: %s", why)
                await self._lose(why)
                head = None
        finally:
            await self._close()

    async def _use(self, head: Head) -> None:
        found = await self.ray.machine(head)
        # Ray's own idea of memory leaves out what the control plane and its object store need less generously.
        self.capacity = Resources(found.cpus, found.gpus, min(self.capacity.memory, found.memory))
        self._api = self.ray.api(head)
        self.head = head
        self.ray.say_ready(head)
        self._say_up()

    def _say_up(self) -> None:
        for listener in self.on_up:
            listener()

    async def _until_dead(self, head: Head) -> str:
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            for _ in range(_PING_EVERY):
                part = head.dead_part()
                if part is not None:
                    return f"its {part} is gone"
                await asyncio.sleep(_PROCESS_CHECK)
            try:
                await self.api().ping()
                answered = loop.time()
            except RayUnavailable as error:
                if loop.time() - answered > self.ray.silence_limit:
                    return f"its dashboard has not answered for {self.ray.silence_limit:.0f} s: {error}"

    async def _lose(self, why: str) -> None:
        self.head = None
        self.problem = f"Ray is starting again, because {why}"
        await self._close()
        # First everything of the dead head is ended; only then may anything of its jobs count as free.
        while True:
            try:
                await self.ray.stop()
                break
            except RayStartFailed as error:
                log.error("%s", error)
                await asyncio.sleep(1.0)
        for listener in self.on_lost:
            listener(why)

    async def _close(self) -> None:
        api, self._api = self._api, None
        if api is not None:
            await api.close()
