"""A real server on a real socket for every test that looks into it; what any API server does is in tests/kube."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from slipway_local.apiserver.server import ApiServer

from ...kube.conformance.api import WIDGET_CRD, Client  # noqa: TID252 - `tests` is no package to import from


@contextlib.asynccontextmanager
async def _connected(server: ApiServer) -> AsyncIterator[Client]:
    context = ssl.create_default_context(cadata=server.entrance.ca.decode())
    headers = {"Authorization": f"Bearer {server.entrance.token}", "User-Agent": "tester/1"}
    connector = aiohttp.TCPConnector(ssl=context, limit=200)
    async with aiohttp.ClientSession(server.entrance.url, headers=headers, connector=connector) as session:
        yield Client(session)


@pytest.fixture
def connect() -> Callable[[ApiServer], Any]:
    """Open a client to a server that the test itself has started."""
    return _connected


@pytest.fixture
def widget_crd() -> dict[str, Any]:
    """The test's own CRD, to change at will."""
    copied: dict[str, Any] = orjson.loads(orjson.dumps(WIDGET_CRD))
    return copied


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Client]:
    """A client to a fresh server that also serves Widgets."""
    async with ApiServer(tmp_path / "state", crds=[WIDGET_CRD]) as server, _connected(server) as client:
        yield client
