"""A real control plane for the session; every test has a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from slipway_local.kubernetes import binaries
from slipway_local.kubernetes.control_plane import ControlPlane
from slipway_local.kubernetes.programs import Options
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager."""
    missing = binaries.missing()
    if missing:
        pytest.skip("; ".join(missing.values()))
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), Options(unsafe_no_fsync=True)) as started:
        yield started


@pytest.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """An administrator's client."""
    async with Client(await load_config(str(control_plane.kubeconfig), None)) as client:
        yield client


@pytest.fixture
def namespace() -> str:
    """The name of a namespace that does not exist yet."""
    return f"team-{uuid.uuid4().hex[:8]}"
