"""Every test here runs twice: against `slipway_local.apiserver`, and against a real kube-apiserver, which is right."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from slipway_local.kubernetes.binaries import CONTROLLER_MANAGER
from slipway_operator.kube.config import load_config

from .api import WIDGET_CRD, Client

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """One of the two."""

    name: str
    kubeconfig: Path


@asynccontextmanager
async def connected(server: Server, namespace: str = "default") -> AsyncIterator[Client]:
    """A client with the kubeconfig's credentials."""
    config = await load_config(str(server.kubeconfig))
    assert config.tls is not None
    headers = {**await config.auth.headers(), "User-Agent": "tester/1"}
    connector = aiohttp.TCPConnector(ssl=config.tls, limit=200)
    async with aiohttp.ClientSession(config.server, headers=headers, connector=connector) as session:
        yield Client(session, namespace)


@pytest.fixture(scope="session", params=["local", pytest.param("kube", marks=pytest.mark.kube)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that also serves Widgets, shared by all tests."""
    if request.param == "kube":
        plane = request.getfixturevalue("control_plane")
        made = Server("kube", plane.kubeconfig)
        asyncio.run(_serve_widgets(made))
        # The garbage collector looks for new kinds every 30 s only, and at its start.
        plane.restart(CONTROLLER_MANAGER)
        yield made
        return
    state = tmp_path_factory.mktemp("local")
    child = subprocess.Popen(
        [sys.executable, "-m", "slipway_local.apiserver", "--state-dir", str(state)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("https://")
        made = Server("local", state / "kubeconfig")
        asyncio.run(_serve_widgets(made))
        yield made
    finally:
        child.terminate()
        child.wait(10)


async def _serve_widgets(server: Server) -> None:
    async with connected(server) as api:
        assert (await api.post(_CRDS, WIDGET_CRD)).code == 201

        async def served() -> bool:
            return (await api.get(api.widgets)).code == 200

        await api.eventually(served, 20.0)


@pytest.fixture
def namespace() -> str:
    """A name that no other test has."""
    return f"t{next(_NUMBERS)}"


@pytest.fixture
async def api(server: Server, namespace: str) -> AsyncIterator[Client]:
    """A client in a namespace of its own, which holds nothing but what the server puts into every namespace."""
    async with connected(server, namespace) as client:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        assert (await client.post("/api/v1/namespaces", body)).code == 201
        yield client


@pytest.fixture
def widget_crd() -> dict[str, Any]:
    """The test's own CRD, to change at will."""
    copied: dict[str, Any] = orjson.loads(orjson.dumps(WIDGET_CRD))
    return copied
