"""What was acknowledged stays: kill -9 under load, restarts, the state directory's files and lock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml

from slipway_local.apiserver.entrance import StateDirInUseError, entrance
from slipway_local.apiserver.server import ApiServer
from slipway_local.apiserver.storage import StorageError

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@contextlib.asynccontextmanager
async def process(state_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The server as users start it, and its URL."""
    command = [sys.executable, "-m", "slipway_local.apiserver", "--state-dir", str(state_dir)]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        url = (await asyncio.wait_for(child.stdout.readline(), 30)).decode().strip()
        yield child, url
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def session(state_dir: Path, url: str) -> aiohttp.ClientSession:
    """A client with the kubeconfig's token."""
    config: Any = yaml.safe_load((state_dir / "kubeconfig").read_text())
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
    context = ssl.create_default_context(cafile=str(state_dir / "tls.crt"))
    connector = aiohttp.TCPConnector(ssl=context, limit=64)
    return aiohttp.ClientSession(url, headers=headers, connector=connector)


@dataclass
class Record:
    """What the clients were told about one name."""

    acknowledged: int = -1  # the last step that was answered
    attempted: int = -1  # the last step that was sent
    deleted: bool = False
    deleting: bool = False


@dataclass
class Ledger:
    """What the clients were told in all."""

    names: dict[str, Record] = field(default_factory=dict)
    version: int = 0

    def saw(self, body: dict[str, Any]) -> None:
        """Take note of an answer's version."""
        self.version = max(self.version, int(body["metadata"].get("resourceVersion", 0)))


async def storm(client: aiohttp.ClientSession, ledger: Ledger, prefix: str, worker: int) -> None:
    """Create, patch and sometimes delete, one name after another, until the server is gone."""
    chance = random.Random(f"{prefix}{worker}")
    for number in range(10_000):
        name = f"{prefix}-{worker}-{number}"
        record = ledger.names[name] = Record()
        for step in range(3):
            record.attempted = step
            data = {"step": str(step), "filler": "x" * 500}
            if step == 0:
                body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
                request = client.post(
                    CONFIG_MAPS, data=orjson.dumps(body), headers={"Content-Type": "application/json"}
                )
            else:
                patch = orjson.dumps({"data": data})
                headers = {"Content-Type": "application/merge-patch+json"}
                request = client.patch(f"{CONFIG_MAPS}/{name}", data=patch, headers=headers)
            async with request as response:
                body = orjson.loads(await response.read())
                assert response.status in (200, 201), body
                record.acknowledged = step
                ledger.saw(body)
        if chance.random() < 0.3:
            record.deleting = True
            async with client.delete(f"{CONFIG_MAPS}/{name}") as response:
                assert response.status == 200
                record.deleted = True


async def check(client: aiohttp.ClientSession, ledger: Ledger) -> None:
    """Compare the server's state with what the clients know."""
    async with client.get(CONFIG_MAPS) as response:
        listing = orjson.loads(await response.read())
    found = {item["metadata"]["name"]: int(item["data"]["step"]) for item in listing["items"]}
    for name, record in ledger.names.items():
        if record.deleted:
            assert name not in found, f"{name} is back"
        elif not record.deleting and record.acknowledged >= 0:
            assert name in found, f"{name} is lost"
        if name in found:
            assert record.acknowledged <= found[name] <= record.attempted, name
    assert found.keys() <= ledger.names.keys()
    assert int(listing["metadata"]["resourceVersion"]) >= ledger.version
    versions = [int(item["metadata"]["resourceVersion"]) for item in listing["items"]]
    assert len(set(versions)) == len(versions)


async def test_kill_9_takes_back_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    urls = set()
    for round_ in range(3):
        async with process(tmp_path) as (child, url), session(tmp_path, url) as client:
            urls.add(url)
            await check(client, ledger)
            workers = [asyncio.create_task(storm(client, ledger, f"r{round_}", w)) for w in range(24)]
            await asyncio.sleep(0.4 + 0.15 * round_)
            child.send_signal(signal.SIGKILL)
            ends = await asyncio.wait_for(asyncio.gather(*workers, return_exceptions=True), 20)
            await child.wait()
            wrong = [end for end in ends if not isinstance(end, (aiohttp.ClientError, ConnectionError))]
            assert wrong == []
    async with process(tmp_path) as (child, url), session(tmp_path, url) as client:
        await check(client, ledger)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 10) == 0
    assert len(urls) == 1, "the port stays the same"
    assert sum(record.acknowledged >= 0 for record in ledger.names.values()) > 100


async def test_a_restart_shows_the_same_world(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        await api.make(api.widget("a", label="abc"))
        await api.merge(f"{api.widgets}/a/status", {"status": {"state": "up"}})
        before = (await api.get(api.widgets)).body
        first = (server.entrance.url, server.entrance.token, server.entrance.kubeconfig.read_bytes())
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        assert (server.entrance.url, server.entrance.token, server.entrance.kubeconfig.read_bytes()) == first
        assert (await api.get(api.widgets)).body == before


async def test_definitions_are_brought_up_to_date_and_fill_in_new_defaults(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        await api.make(api.widget("a"))
    newer = orjson.loads(orjson.dumps(widget_crd))
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["added"] = {"type": "string", "default": "since"}
    async with ApiServer(tmp_path, crds=[newer]) as server, connect(server) as api:
        assert (await api.get(f"{api.widgets}/a")).body["spec"]["added"] == "since"
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.test.example.com"
        spec["properties"]["added"]["default"] = "edited"
        assert (await api.merge(crds, {"spec": newer["spec"]}, fieldManager="somebody")).code == 200
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        made = await api.make(api.widget("b"))
        assert made["spec"]["added"] == "edited", "what a user changed is the user's"


async def test_files_are_private_and_the_kubeconfig_works(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with ApiServer(state) as server:
        for name in ("token", "kubeconfig", "tls.key", "state.db", "lock"):
            assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        config = yaml.safe_load(server.entrance.kubeconfig.read_text())
        assert config["current-context"] == "slipway-local"
        assert config["contexts"][0]["context"]["namespace"] == "default"
        assert config["clusters"][0]["cluster"]["server"] == server.entrance.url
        assert server.entrance.url.startswith("https://127.0.0.1:")
        async with session(state, server.entrance.url) as client, client.get("/api/v1/namespaces/default") as response:
            assert response.status == 200


async def test_who_comes_before_the_server_waits_for_it(tmp_path: Path) -> None:
    async def ask() -> int:
        async with session(tmp_path, opened.url) as client, client.get("/api/v1/namespaces/default") as response:
            return response.status

    with entrance(tmp_path) as opened:
        asked = asyncio.create_task(ask())
        assert await asyncio.wait({asked}, timeout=0.3) == (set(), {asked})
        async with ApiServer(opened):
            assert await asyncio.wait_for(asked, 5) == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask()


async def test_one_server_per_directory(tmp_path: Path) -> None:
    async with ApiServer(tmp_path):
        with pytest.raises(StateDirInUseError):
            async with ApiServer(tmp_path):
                pass
    async with ApiServer(tmp_path):
        pass


async def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StorageError, match=r"state\.db"):
        async with ApiServer(tmp_path):
            pass


async def test_a_write_that_cannot_be_stored_is_refused_and_leaves_no_trace(
    tmp_path: Path, widget_crd: dict[str, Any], connect: Callable[[ApiServer], Any]
) -> None:
    async with ApiServer(tmp_path, crds=[widget_crd]) as server, connect(server) as api:
        await api.make(api.widget("a"))
        blocker = sqlite3.connect(tmp_path / "state.db")
        blocker.execute("CREATE TRIGGER full BEFORE INSERT ON objects BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        blocker.commit()
        failed = await asyncio.gather(*(api.post(api.widgets, api.widget(f"b{n}")) for n in range(5)))
        assert {(reply.code, reply.body["reason"]) for reply in failed} == {(500, "InternalError")}
        assert "disk is full" in failed[0].message
        patched = await api.merge(f"{api.widgets}/a", {"spec": {"size": 9}})
        assert patched.code == 500
        assert [w["metadata"]["name"] for w in (await api.get(api.widgets)).body["items"]] == ["a"]
        blocker.execute("DROP TRIGGER full")
        blocker.commit()
        blocker.close()
        assert (await api.merge(f"{api.widgets}/a", {"spec": {"size": 9}})).body["spec"]["size"] == 9
        assert (await api.post(api.widgets, api.widget("b0"))).code == 201
