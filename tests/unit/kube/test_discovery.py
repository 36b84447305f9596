"""Whether an API group is served: asked once for many, and not again for a while."""

from __future__ import annotations

import asyncio

import pytest

from slipway_operator.kube.client import Client
from slipway_operator.kube.discovery import Discovery
from slipway_operator.kube.errors import Forbidden

from .fake_api import FakeApi, reject

GROUP = "kueue.x-k8s.io"


async def test_many_who_ask_at_once_are_one_request(api: FakeApi, client: Client) -> None:
    discovery = Discovery(client)
    assert await asyncio.gather(*(discovery.serves(GROUP) for _ in range(50))) == [True] * 50
    assert [asked.path for asked in api.requests] == [f"/apis/{GROUP}"]


async def test_what_appears_later_is_found(api: FakeApi, client: Client) -> None:
    api.served = set()
    discovery = Discovery(client, memory=0.05)
    assert not await discovery.serves(GROUP)
    api.served = None
    await asyncio.sleep(0.06)
    assert await discovery.serves(GROUP)


async def test_an_error_is_no_answer_and_is_not_remembered(api: FakeApi, client: Client) -> None:
    api.fault("list", reject(403, "Forbidden"))
    discovery = Discovery(client)
    with pytest.raises(Forbidden):
        await discovery.serves(GROUP)
    assert await discovery.serves(GROUP)
