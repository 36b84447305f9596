"""`slipway up --kube`: the operator and the Ray runner of this machine, against a real API server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from slipway_local.down import stop_everything
from slipway_local.layout import Layout
from slipway_local.processes import marked
from slipway_local.up import UpError, down, status, up
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.resource import CONFIGMAPS, TRAINJOBS, Resource

from .conftest import require_binaries

pytestmark = [pytest.mark.kube, pytest.mark.ray, pytest.mark.slow]

ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False)


async def test_the_life_of_a_real_control_plane(tmp_path: Path) -> None:
    require_binaries()
    home = tmp_path / "home"
    try:
        first = await up(home, timeout=180, control_plane="kubernetes")
        async with Client(await load_config(str(first.kubeconfig))) as client:
            await client.get(ROLES, None, "cluster-admin")  # only a real API server has it
            keep = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keep", "namespace": "default"}}
            await client.create(CONFIGMAPS, keep)
            assert await client.list(TRAINJOBS, "default")
        assert (await up(home, control_plane="kubernetes")).already_running
        before = (await status(home)).parts
        assert set(before) == {"supervisor", "apiserver", "ray_runner", "operator"}

        os.kill(before["apiserver"], signal.SIGKILL)  # its etcd and kube-apiserver live on, and are ended by the next
        deadline = time.monotonic() + 60
        while (await status(home)).parts.get("apiserver") in (None, before["apiserver"]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        second = await up(home, timeout=120, control_plane="kubernetes")
        assert second.url == first.url
        async with Client(await load_config(str(second.kubeconfig))) as client:
            await client.get(CONFIGMAPS, "default", "keep")

        assert await down(home)
        assert not marked("SLIPWAY_SUPERVISED", str(home)), "etcd and its like are gone as well"
        assert (home / "kubernetes").is_dir(), "the data stays"
    finally:
        await stop_everything(Layout(home))
        await down(home, purge=True)


async def test_another_control_plane_than_the_one_that_runs_is_an_error(tmp_path: Path) -> None:
    require_binaries()
    home = tmp_path / "home"
    try:
        await up(home, timeout=180)
        with pytest.raises(UpError, match="the embedded API server runs already, and a real one was asked for"):
            await up(home, control_plane="kubernetes")
    finally:
        await stop_everything(Layout(home))
        await down(home, purge=True)
