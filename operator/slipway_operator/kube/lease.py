"""Leader election on a coordination.k8s.io/v1 Lease: at most one replica works at any time.

The order of times is what makes it safe. A leader trusts its lease for `renew_deadline` seconds from before it sent its
last successful renewal; nobody else takes the lease before `lease_duration` seconds after seeing it change. The gap
between the two is for requests that are already on their way. Expiry is judged on a clock that wall-clock steps do not
touch; the times that stand in the Lease are for people. A Lease that was deleted may still have a leader: whoever
creates it anew waits for `renew_deadline` before leading, and so does the very first one.

Like client-go's elector this does not fence: a request that the kernel still holds may arrive late.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from slipway_operator.kube.client import Client
from slipway_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, NotLeading
from slipway_operator.kube.metrics import Metrics
from slipway_operator.kube.resource import LEASES, Json, Resource, uid_of, version_of

log = logging.getLogger(__name__)


class LeaseApi(Protocol):
    """The part of a client that election needs."""

    async def get(self, res: Resource, namespace: str | None, name: str) -> Json:
        """As Client.get."""

    async def create(self, res: Resource, obj: Json) -> Json:
        """As Client.create."""

    async def replace(self, res: Resource, obj: Json) -> Json:
        """As Client.replace."""


def monotonic() -> float:
    """Seconds on a clock that counts a suspended machine's sleep as well, where the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _exit() -> None:
    os._exit(70)  # no cleanup: whatever still runs must not write


class LeaderElector:
    """Takes part in one election under one identity, which must be unique to this process."""

    def __init__(
        self,
        client: Client | LeaseApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        rng: random.Random | None = None,
        abort: Callable[[], None] = _exit,
        metrics: Metrics | None = None,
    ) -> None:
        """Times in seconds. `abort` ends the process when work does not stop before the lease has run out."""
        if not lease_duration > renew_deadline > 1.2 * retry_period > 0:
            raise ValueError("leader election needs lease_duration > renew_deadline > 1.2 * retry_period > 0")
        # The lease must not depend on a limiter that work fills or on the guard that the lease itself feeds.
        self._api: LeaseApi = client.unguarded() if isinstance(client, Client) else client
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._lease_duration = lease_duration
        self._renew_deadline = renew_deadline
        self._retry_period = retry_period
        self._clock = clock
        self._wall = wall
        self._rng = rng or random.Random()
        self._abort = abort
        self._lease: Json | None = None  # as last seen; None when it does not exist or must be read again
        self._seen: tuple[str, str] | None = None
        self._created = False  # we may have created the lease that we hold, and have not waited yet
        self._probation_ends: float | None = None
        self._free_at = float("-inf")  # nobody but its holder may take the lease before
        self._renewed_at = float("-inf")
        metrics = metrics or Metrics()
        metrics.leader.set_function(lambda: float(self.is_valid()))

    def is_valid(self) -> bool:
        """Whether this process may act as the leader at this moment."""
        return self._clock() < self._renewed_at + self._renew_deadline

    def guard(self) -> None:
        """The write guard for a client. Raises NotLeading."""
        if not self.is_valid():
            raise NotLeading(0, "NotLeading", f"{self.identity} does not hold lease {self._namespace}/{self._name}")

    async def run(self, lead: Callable[[], Awaitable[Any]]) -> None:
        """Waits for the lease, then runs `lead` under it; releases the lease when `lead` is through or on cancellation.

        Raises NotLeading when the lease was lost; by then `lead` has been cancelled and awaited.
        """
        await self._acquire()
        log.info("%s leads (lease %s/%s)", self.identity, self._namespace, self._name)
        work = asyncio.ensure_future(lead())
        renewal = asyncio.create_task(self._renew(), name="lease-renewal")
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost = await self._stop(work, renewal)
        if lost is not None:
            raise NotLeading(0, "LeadershipLost", lost)
        await work

    async def _stop(self, work: asyncio.Future[Any], renewal: asyncio.Task[str]) -> str | None:
        """Ends both, work first and under a lease that is still renewed; returns why the lease was lost, if it was."""
        if not work.done():
            work.cancel()
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        if not renewal.done():
            renewal.cancel()
            await asyncio.wait({renewal})
            await self._release()
            return None
        left = self._renewed_at + self._lease_duration - self._clock()
        self._renewed_at = float("-inf")
        why = str(renewal.exception() or renewal.result())
        log.error("leadership lost: %s", why)
        await asyncio.wait({work}, timeout=max(0.0, left))
        if not work.done():
            log.critical("work did not stop before the lease ran out: ending the process")
            self._abort()
        elif not work.cancelled() and work.exception() is not None:
            log.error("work failed while it was stopped", exc_info=work.exception())
        return why

    # -- holding on ------------------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        try:
            while True:
                try:
                    if await self._try(self._renew_deadline / 2):
                        return
                except (KubeError, TimeoutError) as error:
                    log.warning("lease %s/%s: %s", self._namespace, self._name, str(error) or "no answer in time")
                await asyncio.sleep(self._retry_period * self._rng.uniform(1.0, 1.2))
        except asyncio.CancelledError:
            await self._release()  # held already, but on probation
            raise

    async def _renew(self) -> str:
        """Renews until that fails for good; returns why."""
        problem = "the process was held up"
        while True:
            await asyncio.sleep(min(self._retry_period * self._rng.uniform(0.8, 1.0), max(0.0, self._left())))
            left = self._left()
            if left <= 0:
                return f"not renewed within {self._renew_deadline:g} s: {problem}"
            try:
                if not await self._try(min(self._renew_deadline / 2, left)):
                    return f"held by {self._holder(self._lease) or 'nobody'} now"
            except (KubeError, TimeoutError) as error:
                problem = str(error) or "no answer in time"
                log.warning("lease %s/%s not renewed: %s", self._namespace, self._name, problem)

    def _left(self) -> float:
        return self._renewed_at + self._renew_deadline - self._clock()

    async def _try(self, seconds: float) -> bool:
        """One attempt to take or renew the lease; False when somebody else has it."""
        sent_at = self._clock()
        async with asyncio.timeout(seconds):
            result = await self._take()
            if result == "changed":  # since it was read: read it again
                result = await self._take()
        if result != "held" or self._on_probation():
            return False
        self._renewed_at = sent_at
        return True

    def _on_probation(self) -> bool:
        """Whether a leader may still be working that had the lease before it was deleted and we created it anew.

        A lease that is taken over by a replace needs no such wait: its resourceVersion proves that nobody has renewed
        it since it was seen to run out.
        """
        if not self._created:
            return False
        if self._probation_ends is None:
            self._probation_ends = self._clock() + self._renew_deadline
        if self._clock() < self._probation_ends:
            return True
        self._created = False
        return False

    async def _take(self) -> Literal["held", "taken", "changed"]:
        if self._lease is None or self._holder(self._lease) != self.identity:
            try:
                self._observe(await self._api.get(LEASES, self._namespace, self._name))
            except NotFound:
                self._lease = None
        if not self._may_take():
            return "taken"
        try:
            if self._lease is None:
                # Noted before it is sent: the answer may be lost, and we would find ourselves to be the holder.
                self._created, self._probation_ends = not self.is_valid(), None
                lease: Json = {"metadata": {"namespace": self._namespace, "name": self._name}}
                answer = await self._api.create(LEASES, self._claim(lease))
            else:
                answer = await self._api.replace(LEASES, self._claim(self._lease))
        except (AlreadyExists, Conflict, NotFound):
            self._lease = None
            return "changed"
        self._observe(answer)
        return "held"

    def _may_take(self) -> bool:
        holder = self._holder(self._lease)
        if holder == self.identity or (not holder and self.is_valid()):
            return True  # ours, or it was deleted or emptied under us while everybody else still waits
        return self._clock() >= self._free_at

    def _observe(self, lease: Json) -> None:
        self._lease = lease
        if self._holder(lease) != self.identity:
            self._created = False
        if self._seen == (uid_of(lease), version_of(lease)):
            return
        self._seen = (uid_of(lease), version_of(lease))
        spec = lease.get("spec") or {}
        stated = float(spec.get("leaseDurationSeconds") or self._lease_duration)
        # A leader that has let go states 1 s. A short duration under a holder is somebody's edit: not to be trusted.
        wait = max(stated, self._lease_duration) if self._holder(lease) else stated
        self._free_at = self._clock() + wait

    @staticmethod
    def _holder(lease: Json | None) -> str:
        return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")

    def _claim(self, lease: Json) -> Json:
        """The lease as we want it."""
        now = self._timestamp()
        spec = dict(lease.get("spec") or {})
        if self._holder(lease) != self.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if "holderIdentity" in spec else 0)
        spec |= {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._lease_duration),
            "renewTime": now,
        }
        return {**lease, "apiVersion": LEASES.api_version, "kind": LEASES.kind, "spec": spec}

    async def _release(self) -> None:
        """Lets the next leader start at once; when that fails, it starts when the lease has run out."""
        self._renewed_at = float("-inf")
        lease = self._lease
        if lease is None or self._holder(lease) != self.identity:
            return
        spec = {**lease["spec"], "leaseDurationSeconds": 1, "renewTime": self._timestamp()}
        del spec["holderIdentity"]
        try:
            async with asyncio.timeout(min(2.0, self._renew_deadline / 2)):
                await self._api.replace(LEASES, {**lease, "spec": spec})
        except (KubeError, TimeoutError) as error:
            log.warning("lease %s/%s not released: %s", self._namespace, self._name, str(error) or "no answer in time")

    def _timestamp(self) -> str:
        return self._wall().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
