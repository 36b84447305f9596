"""How many requests may be in flight at once, learnt from the server instead of configured.

A fixed rate is either too low for a quiet API server or too high for a busy one. This limiter grows a window while
requests succeed and halves it when the server answers 429 (AIMD, as TCP does), and sends nothing before the
Retry-After has passed. It never delays a watch, and leader election does not go through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque

from slipway_operator.kube.errors import TooManyRequests
from slipway_operator.kube.metrics import Metrics


class AdaptiveLimiter:
    """An AIMD window over requests in flight. Not thread-safe: one event loop."""

    def __init__(
        self,
        *,
        initial: int = 64,
        maximum: int = 256,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if not 1 <= initial <= maximum:
            raise ValueError(f"the window needs 1 <= initial <= maximum, not {initial} and {maximum}")
        self._window = float(initial)
        self._maximum = float(maximum)
        self._in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0
        self._halved_at = float("-inf")
        self._rng = rng or random.Random()
        self._metrics = metrics or Metrics()
        self._metrics.limiter_window.set(self._window)

    @property
    def window(self) -> float:
        """How many requests may be in flight now."""
        return self._window

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self._in_flight

    async def acquire(self, deadline: float) -> float:
        """Waits for a place; returns when it was taken (loop time), to be handed to `release`.

        `deadline` is a loop time. Raises TooManyRequests when a place cannot be had before it.
        """
        loop = asyncio.get_running_loop()
        await self._place(loop, deadline)
        try:
            while (pause := self._paused_until - loop.time()) > 0:
                if loop.time() + pause >= deadline:
                    raise TooManyRequests(429, "Throttled", "the server asked for a pause", pause)
                # Spread the restart, or everybody who waited would arrive in the same millisecond.
                await asyncio.sleep(pause * self._rng.uniform(1.0, 1.1))
        except BaseException:
            self._give_back()
            raise
        return loop.time()

    async def _place(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        if self._in_flight < int(self._window) and not self._waiters:
            self._in_flight += 1
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._give_back()  # the place was handed over in the very moment of giving up
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise TooManyRequests(429, "Throttled", "no request finished in time to make room") from None
            raise

    def release(self, taken_at: float, *, throttled: bool = False, retry_after: float = 0.0) -> None:
        """Gives the place back and says how the request went."""
        now = asyncio.get_running_loop().time()
        was_full = self._in_flight >= int(self._window)
        if throttled:
            self._metrics.limiter_throttled.inc()
            self._paused_until = max(self._paused_until, now + retry_after)
            # One halving for one overload: requests that were sent before the last one say nothing new.
            if taken_at > self._halved_at:
                self._window = max(1.0, self._window / 2)
                self._halved_at = now
        elif was_full:
            # A window that nobody fills says nothing about what the server can take.
            self._window = min(self._maximum, self._window + 1.0 / self._window)
        self._metrics.limiter_window.set(self._window)
        self._give_back()

    def _give_back(self) -> None:
        """One request less in flight; its place goes to whoever waits longest."""
        self._in_flight -= 1
        while self._waiters and self._in_flight < int(self._window):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)
