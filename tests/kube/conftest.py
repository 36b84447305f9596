"""A real control plane for the whole session, where this machine has or can build one."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config

NEEDED = (*binaries.SERVERS, "kubectl")


def require_binaries(names: Iterable[str] = NEEDED) -> None:
    """Skips the test where a program is missing; fails it in CI, where nothing may be skipped for that."""
    for name in names:
        try:
            binaries.find(name)
        except binaries.MissingBinaryError as error:
            reason = f"no real control plane: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager with Slipway's and KubeRay's definitions, shared by all tests.

    Tests keep to namespaces of their own, and hurt only control planes that they start themselves.
    """
    require_binaries()
    with ControlPlane(tmp_path_factory.mktemp("kube"), Options(audit="writes", unsafe_no_fsync=True)) as plane:
        yield plane


@pytest.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """An administrator's client."""
    async with Client(await load_config(str(control_plane.kubeconfig), None)) as client:
        yield client


@pytest.fixture
def namespace() -> str:
    """The name of a namespace that does not exist yet."""
    return f"team-{uuid.uuid4().hex[:8]}"
