"""RayServices with a real API server, Ray and Ray Serve, judged from outside: objects, answers, processes.

One control plane serves the whole module, and the tests are one story: what an earlier one has left is where the next
begins, because a service costs seconds to start.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from slipway_api.serving import (
    ROUTER_APPLICATION,
    ROUTER_DEPLOYMENT,
    ROUTER_IMPORT_PATH,
    RouterConfig,
    RouterUserConfig,
    WeightedVersion,
)
from slipway_local.processes import ProcessRef, in_session, marked
from slipway_local.ray_runner.service import FINALIZER
from slipway_local.ray_runner.translate import SERVICE_MARK
from slipway_operator.kube.client import Client
from slipway_operator.kube.config import load_config
from slipway_operator.kube.errors import NotFound
from slipway_operator.kube.resource import RAYJOBS, RAYSERVICES, SECRETS

from .rayjobs import pod, rayjob
from .rayservices import application, rayservice
from .world import World, living_world

pytestmark = [pytest.mark.ray, pytest.mark.slow]

APPS = Path(__file__).parent / "serve_apps"
# Fixed ones of Ray 2.60 (ray/serve/_private/constants.py): proxies, and where replicas begin to try.
RAYS_FALLBACK_PORT = 8500
RAYS_PORTS = {8000, 8404, RAYS_FALLBACK_PORT, 9000, 9101, 9500, *range(30000, 31001)}
MOUNT = {"name": "keys", "mountPath": "/etc/keys"}


class Neighbour:
    """Ray's proxy behind HAProxy as another control plane has it: on Ray's own port, which it is ready to share."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self.socket.bind(("127.0.0.1", RAYS_FALLBACK_PORT))
            self.socket.listen(1000)
            self.there = True
        except OSError:  # somebody has the port to himself
            self.there = False

    def was_called(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Neighbour]:
    found = Neighbour()
    with found.socket:
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, neighbour: Neighbour) -> Iterator[World]:
    with living_world(tmp_path_factory.mktemp("world")) as world:
        yield world


def worker(*, word: str = "plain", secret: str | None = None) -> dict[str, Any]:
    """The pod template of a worker that finds tiny_app."""
    made = pod(cpu="500m", env=[{"name": "PYTHONPATH", "value": str(APPS)}, {"name": "WORD", "value": word}])
    if secret is not None:
        made["spec"]["containers"][0]["volumeMounts"] = [MOUNT]
        made["spec"]["volumes"] = [{"name": "keys", "secret": {"secretName": secret}}]
    return made


class Services:
    """RayServices as a user sees them."""

    def __init__(self, client: Client, world: World, http: aiohttp.ClientSession) -> None:
        self.client = client
        self.world = world
        self.http = http

    async def get(self, name: str) -> dict[str, Any]:
        return await self.client.get(RAYSERVICES, "default", name)

    async def wait(self, name: str, until: Callable[[dict[str, Any]], Any], limit: float = 40) -> dict[str, Any]:
        """The object, when its status is so."""
        deadline = time.monotonic() + limit
        while True:
            found = await self.get(name)
            if until(found.get("status") or {}):
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{name}: {json.dumps(found.get('status'), indent=1)}\n{self.world.runner_log()}")
            await asyncio.sleep(0.1)

    async def ready(self, name: str, limit: float = 40) -> dict[str, Any]:
        return await self.wait(name, lambda status: ready(status)["status"] == "True", limit)

    async def ask(self, name: str, path: str = "") -> dict[str, Any]:
        url = (await self.get(name))["metadata"]["annotations"]["slipway.dev/url"]
        async with self.http.get(url + path) as response:
            assert response.status == 200, (response.status, await response.text())
            answer: dict[str, Any] = await response.json()
            return answer

    async def answers(self, name: str, until: Callable[[dict[str, Any]], Any], limit: float = 30) -> dict[str, Any]:
        """The first answer that is so."""

        last: list[Any] = [None]

        async def ask() -> dict[str, Any] | None:
            try:
                last[0] = answer = await self.ask(name)
                return answer if until(answer) else None
            except (AssertionError, aiohttp.ClientError, TimeoutError) as error:
                last[0] = repr(error)
            return None

        try:
            return await self.until(ask, limit)
        except AssertionError as error:
            raise AssertionError(f"{last[0]}\n{json.dumps(await self.get(name), indent=1)}\n{error}") from None

    async def until(self, ask: Callable[[], Awaitable[Any]], limit: float = 30) -> Any:
        deadline = time.monotonic() + limit
        while not (answer := await ask()):
            assert time.monotonic() < deadline, self.world.runner_log()
            await asyncio.sleep(0.1)
        return answer

    async def configure(self, name: str, *applications: dict[str, Any]) -> None:
        config = yaml.safe_dump({"applications": list(applications)})
        await self.client.merge_patch(RAYSERVICES, "default", name, {"spec": {"serveConfigV2": config}})

    async def delete(self, name: str, limit: float = 30) -> None:
        await self.client.delete(RAYSERVICES, "default", name)

        async def gone() -> bool:
            try:
                await self.get(name)
            except NotFound:
                return True
            return False

        await self.until(gone, limit)


@pytest.fixture
async def services(world: World) -> AsyncIterator[Services]:
    async with (
        Client(await load_config(str(world.kubeconfig)), user_agent="test") as client,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
    ):
        yield Services(client, world, http)


def ready(status: dict[str, Any]) -> dict[str, Any]:
    found: list[dict[str, Any]] = status.get("conditions") or []
    return next((one for one in found if one["type"] == "Ready"), {"status": "", "reason": "", "message": ""})


def replicas(obj: dict[str, Any]) -> list[ProcessRef]:
    return [ref for ref, mark in marked(SERVICE_MARK).items() if mark.endswith(f"/{obj['metadata']['uid']}")]


def listening_pids(pids: set[int], connections: list[Any]) -> set[int]:
    return {c.pid for c in connections} & pids


def command(ref: ProcessRef) -> str:
    try:
        return " ".join(psutil.Process(ref.pid).cmdline())
    except psutil.Error:
        return ""


async def test_two_services_answer_under_their_own_urls(services: Services) -> None:
    secret = {"metadata": {"name": "keys"}, "data": {"key": base64.b64encode(b"first").decode()}}
    await services.client.create(SECRETS, {**secret, "metadata": {**secret["metadata"], "namespace": "default"}})
    await services.client.create(
        RAYSERVICES,
        rayservice(
            "one",
            application("router", args={"sibling": "v-1", "file": "/etc/keys/key"}, user_config={"weight": 1}),
            application("v-1", route=None, cpus=0),
            worker=worker(word="one", secret="keys"),
        ),
    )
    await services.client.create(
        RAYSERVICES, rayservice("two", application("teller", args={"a": 1}), worker=worker(word="two"))
    )
    one, two = await services.ready("one", 120), await services.ready("two", 60)
    status = one["status"]
    assert status["activeServiceStatus"]["applicationStatuses"].keys() == {"router", "v-1"}
    assert status["activeServiceStatus"]["applicationStatuses"]["router"]["serveDeploymentStatuses"] == {
        "Teller": {"status": "HEALTHY"}
    }
    assert "pendingServiceStatus" not in status
    assert (status["numServeEndpoints"], status["serviceStatus"], status["observedGeneration"]) == (1, "Running", 1)
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "Ready": "NonZeroServeEndpoints",
        "UpgradeInProgress": "NoPendingCluster",
    }
    assert one["metadata"]["finalizers"] == [FINALIZER]
    first, second = await services.ask("one", "/v1/models"), await services.ask("two")
    assert (first["word"], first["config"], first["file"]) == ("one", {"weight": 1}, "first")
    assert (second["word"], second["args"]) == ("two", {"a": 1})
    siblings = {ref.pid for ref in replicas(one)}
    assert {first["pid"], first["sibling"]} <= siblings
    assert second["pid"] in {ref.pid for ref in replicas(two)}
    # Whatever listens of this Ray, HAProxy and the replicas' own servers included, listens on loopback.
    pids = {ref.pid for ref in in_session(int(services.world.ray["session"]))} | {ref.pid for ref in replicas(one)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in pids]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    assert not any("ray.util.client.server" in psutil.Process(c.pid).cmdline() for c in listening), "nobody asks for it"
    names = {psutil.Process(c.pid).name() for c in listening}
    assert "haproxy" in names
    port = int(one["metadata"]["annotations"]["slipway.dev/url"].split(":")[2].split("/")[0])
    assert port in {c.laddr.port for c in listening if psutil.Process(c.pid).name() == "haproxy"}
    assert listening_pids(siblings, listening) == siblings, "each replica has a server of its own"
    # What Ray would take by itself, another control plane on this machine may have.
    assert not {c.laddr.port for c in listening} & RAYS_PORTS


async def test_a_job_finds_room_beside_the_services(services: Services) -> None:
    """Two services hold half a CPU each, of two; a job for one CPU runs, one for two never could and says why."""
    await services.client.create(RAYJOBS, rayjob("beside", "true", cpu="1"))
    await services.client.create(RAYJOBS, rayjob("big", "true", cpu="2"))

    async def done() -> bool:
        status = (await services.client.get(RAYJOBS, "default", "beside")).get("status") or {}
        return bool(status.get("jobDeploymentStatus") == "Complete")

    await services.until(done)

    async def waits() -> bool:
        status = (await services.client.get(RAYJOBS, "default", "big")).get("status") or {}
        return "1 of 2 CPUs free, 0 jobs ahead" in str(status.get("message"))

    await services.until(waits)
    await services.client.delete(RAYJOBS, "default", "big")


async def test_user_config_and_secrets_change_without_a_new_replica(services: Services) -> None:
    before = await services.ask("one")
    await services.configure(
        "one",
        application("router", args={"sibling": "v-1", "file": "/etc/keys/key"}, user_config={"weight": 2}),
        application("v-1", route=None, cpus=0),
    )
    await services.client.merge_patch(
        SECRETS, "default", "keys", {"data": {"key": base64.b64encode(b"second").decode()}}
    )
    after = await services.answers("one", lambda a: a["config"] == {"weight": 2} and a["file"] == "second")
    assert (after["pid"], after["sibling"]) == (before["pid"], before["sibling"])
    obj = await services.wait("one", lambda status: status["observedGeneration"] == 2)
    assert ready(obj["status"])["status"] == "True"


async def test_what_cannot_be_deployed_is_told_and_hurts_nobody(services: Services) -> None:
    calm = await services.ask("two")
    await services.client.create(
        RAYSERVICES,
        rayservice(
            "bad",
            {**application("sky", cpus=0, args={"weather": "wet"}), "import_path": "tiny_app:broken"},
            worker={**worker(), "spec": {**worker()["spec"], "containers": [worker_container(cpu="0")]}},
        ),
    )
    bad = await services.wait(
        "bad", lambda s: app_status(s, "pendingServiceStatus", "sky").get("status") == "DEPLOY_FAILED"
    )
    assert "no such weather: wet" in app_status(bad["status"], "pendingServiceStatus", "sky")["message"]
    assert (ready(bad["status"])["status"], ready(bad["status"])["reason"]) == ("False", "Initializing")
    await services.client.merge_patch(RAYSERVICES, "default", "bad", {"spec": {"serveConfigV2": "a: [b"}})
    bad = await services.wait("bad", lambda s: ready(s)["reason"] == "ValidationFailed")
    assert "spec.serveConfigV2: is not YAML" in ready(bad["status"])["message"]
    # Only Serve itself knows that this is wrong.
    await services.configure("bad", {**application("sky", cpus=0), "import_path": "a:b:c"})
    bad = await services.wait("bad", lambda s: "Ray Serve refuses it" in ready(s)["message"])
    assert "applications.0.import_path" in ready(bad["status"])["message"]
    assert "at most one colon" in ready(bad["status"])["message"]
    await services.delete("bad")
    assert (await services.ask("two"))["pid"] == calm["pid"]


def worker_container(cpu: str) -> dict[str, Any]:
    container: dict[str, Any] = worker()["spec"]["containers"][0]
    return {**container, "resources": {"requests": {"cpu": cpu}}}


def app_status(status: dict[str, Any], side: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ((status.get(side) or {}).get("applicationStatuses") or {}).get(name) or {}
    return found


async def test_a_killed_replica_and_a_killed_runner_change_nothing_for_long(services: Services, world: World) -> None:
    before = await services.ask("two")
    kept = await services.ask("one")
    world.kill_runner()
    os.kill(before["pid"], signal.SIGKILL)
    after = await services.answers("two", lambda answer: answer["pid"] != before["pid"])
    assert after["word"] == "two"
    await services.configure("two", application("teller", args={"a": 1}, user_config={"since": "while nobody looked"}))
    world.start_runner()
    last = await services.answers("two", lambda answer: answer["config"] == {"since": "while nobody looked"})
    assert last["pid"] == after["pid"]
    assert (await services.ask("one"))["pid"] == kept["pid"]


async def test_a_killed_serve_controller_comes_back_and_takes_changes(services: Services, world: World) -> None:
    before = await services.ask("two")
    controllers = [ref for ref in in_session(int(world.ray["session"])) if "ServeController" in command(ref)]
    assert len(controllers) == 1
    controllers[0].signal(signal.SIGKILL)
    await services.configure("two", application("teller", args={"a": 1}, user_config={"since": "the controller died"}))
    after = await services.answers("two", lambda answer: answer["config"] == {"since": "the controller died"})
    assert after["pid"] == before["pid"]


async def test_a_new_ray_head_gets_every_service_again(services: Services, world: World) -> None:
    before = (await services.get("one"))["metadata"]["annotations"]["slipway.dev/url"]
    gcs = ProcessRef.from_json(world.ray["core"]["gcs_server"])
    gcs.signal(signal.SIGKILL)
    lost = await services.wait("one", lambda s: "Ray is starting again" in ready(s)["message"])
    assert (ready(lost["status"])["status"], ready(lost["status"])["reason"]) == ("False", "ZeroServeEndpoints")
    assert "numServeEndpoints" not in lost["status"]
    assert app_status(lost["status"], "activeServiceStatus", "router")["status"] == "NOT_STARTED"
    one, _ = await services.ready("one", 150), await services.ready("two", 60)
    assert one["metadata"]["annotations"]["slipway.dev/url"] == before
    assert (await services.ask("one"))["config"] == {"weight": 2}
    assert (await services.ask("two"))["config"] == {"since": "the controller died"}


async def test_our_router_speaks_with_a_server_of_ray_serve_llms_protocol(services: Services) -> None:
    """The adaptor of engine vllm on a real Ray Serve; vLLM itself is not here (tests/serving/test_vllm.py)."""
    versions = [WeightedVersion(name="v-1", application="v-1", weight=100)]
    router = {
        "name": ROUTER_APPLICATION,
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT_PATH,
        "args": RouterConfig(namespace="default", name="llm", uid="u").to_wire(),
        "deployments": [{"name": ROUTER_DEPLOYMENT, "user_config": RouterUserConfig(versions=versions).to_wire()}],
    }
    engine = {"name": "v-1", "route_prefix": None, "import_path": "fake_vllm:engine", "args": {}}
    await services.client.create(RAYSERVICES, rayservice("llm", router, engine, worker=worker(), cpu="100m"))
    url = (await services.ready("llm", 90))["metadata"]["annotations"]["slipway.dev/url"]
    body = {"messages": [{"role": "user", "content": "one two three"}]}
    async with services.http.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "one two three "
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    async with services.http.post(f"{url}/v1/completions", json={"prompt": "x"}) as response:
        assert response.status == 502, "the stand-in has no completions: the version has failed"
    await services.delete("llm")


async def test_deleting_one_leaves_the_other(services: Services) -> None:
    obj = await services.get("one")
    url = obj["metadata"]["annotations"]["slipway.dev/url"]
    before = await services.ask("two")
    assert replicas(obj)
    await services.delete("one")
    assert not replicas(obj)
    async with services.http.get(url) as response:
        assert response.status == 404
    assert (await services.ask("two"))["pid"] == before["pid"]
    state = services.world.state
    assert [path.name.split("_")[1] for path in (state / "services").iterdir()] == ["two"]
    assert [path.name.split("_")[1] for path in (state / "serve").iterdir()] == ["two"]
    await services.delete("two")


async def test_a_neighbour_has_heard_nothing(neighbour: Neighbour) -> None:
    if not neighbour.there:
        pytest.skip(f"port {RAYS_FALLBACK_PORT} of this machine is taken")
    assert not neighbour.was_called()
