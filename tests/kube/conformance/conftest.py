"""Every test here runs twice: against `slipway_local.apiserver`, and against a real kube-apiserver, which is right."""

from __future__ import annotations

import asyncio
import itertools
import shutil
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

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.binaries import CONTROLLER_MANAGER
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_operator.kube.config import load_config

from .api import WIDGET_CRD, Client
from .kubectl import Kubectl

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


@pytest.fixture(scope="session")
def kube_server(control_plane: ControlPlane) -> Server:
    """The real one."""
    made = Server("kube", control_plane.kubeconfig)
    asyncio.run(_serve_widgets(made))
    # The garbage collector looks for new kinds every 30 s only, and at its start.
    control_plane.restart(CONTROLLER_MANAGER)
    return made


@pytest.fixture(scope="session")
def local_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded one, in a process of its own."""
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


@pytest.fixture(scope="session", params=["local", pytest.param("kube", marks=pytest.mark.kube)])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the two, with Widgets, shared by all tests."""
    made: Server = request.getfixturevalue(f"{request.param}_server")
    return made


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


@pytest.fixture(scope="session")
def program() -> str:
    """The kubectl that Kubernetes' own release ships, or one on PATH that is new enough."""
    try:
        return str(binaries.find("kubectl"))
    except binaries.MissingBinaryError:
        found = shutil.which("kubectl")
        # Before 1.29 kubectl apply reads /openapi/v2, which the embedded server does not serve.
        if found is None or (binaries.release(binaries.COMMANDS["kubectl"], Path(found)) or ()) < (1, 29):
            pytest.skip("no kubectl of version 1.29 or newer on PATH, and none was built")
        return found


@pytest.fixture
def kubectl(program: str, server: Server, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in a fresh namespace."""
    return fresh_kubectl(program, server, namespace, tmp_path_factory)


def fresh_kubectl(program: str, server: Server, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in a namespace that it creates."""
    home = tmp_path_factory.getbasetemp() / f"kubectl-{server.name}"
    home.mkdir(exist_ok=True)
    runner = Kubectl(program, server.kubeconfig, home, namespace)
    assert runner.run("create", "namespace", namespace) == f"namespace/{namespace} created\n"
    return runner
