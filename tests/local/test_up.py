"""`slipway up` and `slipway down` from outside: readiness, repetition, kills, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from slipway_local.down import stop_everything
from slipway_local.layout import Layout
from slipway_local.processes import ProcessRef, in_session, marked
from slipway_local.ray_runner.head import HEAD_MARK
from slipway_local.up import UpError, down, status, up
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.resource import CONFIGMAPS, NAMESPACES

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timed]


def family(home: Path) -> list[ProcessRef]:
    """Everything that serves this state directory: parts, Ray and jobs."""
    return [ref for ref in marked("SLIPWAY_HOME", str(home)) if ref.pid != os.getpid()]


async def eventually(check: Callable[[], Any], limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_the_life_of_a_control_plane(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said: list[str] = []
    began = time.monotonic()
    try:
        first = await up(home, timeout=180, progress=said.append)
        print(f"up in {time.monotonic() - began:.1f} s: {said}")
        assert not first.already_running
        assert len(said) == 5
        assert first.storage == (home / "storage").as_uri()
        assert home.stat().st_mode & 0o777 == 0o700
        async with Client(await load_config(str(first.kubeconfig))) as client:
            assert client.config.server == first.url
            await client.get(NAMESPACES, None, "default")
            keep = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keep", "namespace": "default"}}
            await client.create(CONFIGMAPS, keep)

        began = time.monotonic()
        second = await up(home)
        assert second.already_running
        assert time.monotonic() - began < 2
        parts = (await status(home)).parts
        assert set(parts) == {"supervisor", "apiserver", "ray_runner", "operator"}

        # Each part is started again; what did not die goes on.
        os.kill(parts["operator"], signal.SIGKILL)
        await eventually(lambda: _child(home, "operator") not in (None, parts["operator"]))
        again = await up(home, timeout=60)
        assert not again.already_running or (await status(home)).parts["operator"] != parts["operator"]

        # A killed supervisor takes nothing with it, and the next one takes over what it finds.
        before = (await status(home)).parts
        ray = json.loads((home / "ray" / "head.json").read_text())
        os.kill(before["supervisor"], signal.SIGKILL)
        await eventually(lambda: not psutil.pid_exists(before["supervisor"]) or _zombie(before["supervisor"]))
        assert not (await status(home)).running
        taken = await up(home, timeout=60)
        assert not taken.already_running
        after = (await status(home)).parts
        assert after["supervisor"] != before["supervisor"]
        assert {**after, "supervisor": 0} == {**before, "supervisor": 0}
        assert json.loads((home / "ray" / "head.json").read_text()) == ray

        session = in_session(ray["session"])
        assert session
        assert await down(home)
        assert family(home) == []
        assert not [ref for ref in session if ref.alive()]
        assert not marked(HEAD_MARK, ray["mark"])
        assert not (await status(home)).parts
        assert not await down(home), "there is nothing left to end"
        assert (home / "apiserver").is_dir(), "the data stays"
        await down(home, purge=True)
        assert not home.exists()
    finally:
        await stop_everything(Layout(home))
        assert family(home) == []
        await down(home, purge=True)


async def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "apiserver").write_text("in the way")
    try:
        with pytest.raises(UpError) as caught:
            await up(home, timeout=60)
        assert "apiserver keeps ending (exit code 1)" in str(caught.value)
        assert "the end of" in str(caught.value)
        assert "apiserver.log" in str(caught.value)
    finally:
        await down(home)  # while Ray is still starting
        assert family(home) == []
        await down(home, purge=True)


def _child(home: Path, name: str) -> int | None:
    try:
        pid = json.loads((home / "children.json").read_text())[name].get("pid")
    except (OSError, ValueError, KeyError):
        return None
    return int(pid) if pid else None


def _zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
