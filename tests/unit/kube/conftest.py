"""One misbehaving API server per test, and a client on it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest

from slipway_operator.kube.backoff import Backoff
from slipway_operator.kube.client import Client
from slipway_operator.kube.reflector import ReflectorConfig

from .fake_api import FakeApi

# Everything a hundred times faster than in production.
FAST = ReflectorConfig(
    page_size=10,
    watch_timeout=(5.0, 6.0),
    inactivity_timeout=0.7,
    silence_limit=0.5,
    outage_limit=2.0,
    backoff=Backoff(0.04, 0.3),
    settled_after=1.0,
)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[FakeApi]:
    server = FakeApi()
    await server.start()
    try:
        yield server
    finally:
        server.thaw()
        await server.stop()


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with serving() as server:
        yield server


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client(api.config, request_timeout=1.0, backoff=Backoff(0.01, 0.05), rng=random.Random(1)) as client:
        yield client


async def until(condition: Callable[[], object], seconds: float = 3.0) -> None:
    """Waits until it holds; fails when it does not within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)
