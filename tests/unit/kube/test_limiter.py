"""The limiter, on a clock that costs nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from slipway_operator.kube.errors import TooManyRequests
from slipway_operator.kube.limiter import AdaptiveLimiter

from .fake_clock import run

pytestmark = pytest.mark.timed


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_quiet_server_is_not_slowed_down() -> None:
    async def scenario() -> None:
        limiter = AdaptiveLimiter(initial=4, maximum=100)
        start = now()

        async def request() -> None:
            taken = await limiter.acquire(now() + 1e6)
            await asyncio.sleep(0.01)
            limiter.release(taken)

        await asyncio.gather(*(request() for _ in range(2000)))
        assert limiter.window > 50  # grew from 4 by additive increase
        assert now() - start < 0.01 * 2000 / 20

    run(scenario())


def test_the_window_halves_once_for_one_overload_and_never_below_one() -> None:
    async def scenario() -> None:
        limiter = AdaptiveLimiter(initial=32)
        places = [await limiter.acquire(now() + 10) for _ in range(32)]
        await asyncio.sleep(1)
        for taken in places:
            limiter.release(taken, throttled=True)
        assert limiter.window == 16
        for _ in range(10):
            await asyncio.sleep(1)
            taken = await limiter.acquire(now() + 10)
            await asyncio.sleep(1)
            limiter.release(taken, throttled=True)
        assert limiter.window == 1

    run(scenario())


def test_nothing_is_sent_before_retry_after_has_passed() -> None:
    async def scenario() -> None:
        limiter = AdaptiveLimiter(rng=random.Random(3))
        limiter.release(await limiter.acquire(now() + 1), throttled=True, retry_after=30)
        start = now()
        starts = sorted(await asyncio.gather(*(limiter.acquire(now() + 100) for _ in range(10))))
        assert starts[0] >= start + 30
        assert starts[-1] <= start + 33.1
        assert len({round(at, 6) for at in starts}) > 5  # not all in the same moment

    run(scenario())


def test_who_cannot_be_served_in_time_is_told_at_once() -> None:
    async def scenario() -> None:
        limiter = AdaptiveLimiter(initial=1)
        limiter.release(await limiter.acquire(now() + 1), throttled=True, retry_after=30)
        start = now()
        with pytest.raises(TooManyRequests) as caught:
            await limiter.acquire(now() + 5)
        assert (now(), round(caught.value.retry_after)) == (start, 30)
        await asyncio.sleep(31)
        taken = await limiter.acquire(now() + 1)
        with pytest.raises(TooManyRequests):
            await limiter.acquire(now() + 5)
        limiter.release(taken)
        assert limiter.in_flight == 0

    run(scenario())


def test_cancelled_waiters_give_their_place_on() -> None:
    async def scenario() -> None:
        rng = random.Random(5)
        limiter = AdaptiveLimiter(initial=3, maximum=3)
        served = 0

        async def request() -> None:
            nonlocal served
            taken = await limiter.acquire(now() + 1e6)
            try:
                await asyncio.sleep(rng.uniform(0, 1))
                served += 1
            finally:
                limiter.release(taken)

        tasks = [asyncio.create_task(request()) for _ in range(200)]
        for task in rng.sample(tasks, 100):
            await asyncio.sleep(rng.choice([0, 0.1]))
            task.cancel()
        await asyncio.wait_for(asyncio.wait(tasks), 1000)
        assert served >= 100
        assert limiter.in_flight == 0

    run(scenario())


def test_a_place_handed_to_somebody_who_was_cancelled_is_not_lost() -> None:
    async def scenario() -> None:
        limiter = AdaptiveLimiter(initial=1, maximum=1)
        taken = await limiter.acquire(now() + 10)
        cancelled = asyncio.create_task(limiter.acquire(now() + 10))
        next_one = asyncio.create_task(limiter.acquire(now() + 10))
        await asyncio.sleep(0)
        limiter.release(taken)  # hands it to the first
        cancelled.cancel()
        limiter.release(await next_one)
        assert limiter.in_flight == 0

    run(scenario())


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="initial"):
        AdaptiveLimiter(initial=0)
